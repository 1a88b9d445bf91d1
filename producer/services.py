"""The long-running services behind a short command: a worker, and Flower."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence

from producer.embedded import check_engine, worker_command
from producer.errors import UsageError
from producer.restarts import Restarts
from producer.supervisor import Supervisor
from producer.worker_name import free_name
from workers.flower_doors import ADVICE, is_loopback
from workers.settings import DEFAULT_REDIS_URL, Settings

#: Options of Celery's worker that would do harm here, by all their names, and why.
REFUSED = {
    ("--autoscale",): "a worker has a fixed number of threads: -c, or WHISPER_CONCURRENCY",
    ("-P", "--pool"): "the tasks of a worker run in threads of its own: leave it out",
    ("-D", "--detach"): "nobody would start it again when it fails: let systemd, Compose or nohup do that",
}
QUEUES = ("-Q", "--queues")


def run_worker(arguments: Sequence[str], changes: Mapping[str, str], name: str | None, config: Settings) -> int:
    """Run a Celery worker with these settings (``WHISPER_*``) and further Celery arguments; returns its exit code.

    One that fails is started again, up to ``worker_restarts`` times in a row, by the same ``name`` (None: one that is
    free on this host). Raises UsageError without its packages, and for arguments that would do harm.
    """
    check_arguments(arguments)
    check_engine(config)
    environment = {**os.environ, **changes}
    with contextlib.nullcontext(name) if name else free_name(config.redis_url or DEFAULT_REDIS_URL) as called:
        command = worker_command(called, *arguments)
        return Supervisor(command, environment, Restarts(config.worker_restarts)).run()


def check_arguments(arguments: Sequence[str]) -> None:
    """Raise UsageError for options of Celery's worker that this one cannot have."""
    for names, why in REFUSED.items():
        for given in _given(arguments, names):
            raise UsageError(f"{given}: {why}")
    if len(_given(arguments, QUEUES)) > 1:
        raise UsageError("-Q: given twice, Celery takes the last one only: name all queues in one, as in -Q a,b")


def _given(arguments: Sequence[str], names: Sequence[str]) -> list[str]:
    """Each time that an option is given by one of its names: ``-Q a``, ``-Qa``, ``--queues a`` or ``--queues=a``."""
    return [
        name
        for one in arguments
        for name in names
        if one.partition("=")[0] == name or (len(name) == 2 and one.startswith(name) and not one.startswith("--"))
    ]


def run_flower(address: str, port: int, arguments: Sequence[str], config: Settings) -> None:
    """Become Flower with the app loaded, so that queue lengths and tasks are read right.

    Raises UsageError without the package, and for an address that others reach without a password.
    """
    if importlib.util.find_spec("flower") is None:
        raise UsageError("Flower is not installed: pip install '.[flower]' in a checkout")
    # Flower itself looks again, when it has read all of its options: `workers.flower_doors`.
    given = os.environ.get("FLOWER_BASIC_AUTH") or os.environ.get("FLOWER_AUTH")
    protected = given or any(one.lstrip("-").startswith(("basic", "auth", "conf")) for one in arguments)
    if not protected and not is_loopback(address):
        raise UsageError(f"--address {address}: {ADVICE}")
    command = [sys.executable, "-P", "-m", "workers", "flower", f"--address={address}", f"--port={port}"]
    # Flower's own default keeps 100 000 tasks in memory.
    _become([*command, *arguments], {"FLOWER_MAX_TASKS": "20000", **os.environ})


def _become(command: Sequence[str], environment: Mapping[str, str]) -> None:
    os.execve(command[0], list(command), dict(environment))

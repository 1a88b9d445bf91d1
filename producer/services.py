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


def run_worker(arguments: Sequence[str], changes: Mapping[str, str], name: str | None, config: Settings) -> int:
    """Run a Celery worker with these settings (``WHISPER_*``) and further Celery arguments; returns its exit code.

    One that fails is started again, up to ``worker_restarts`` times in a row, by the same ``name`` (None: one that is
    free on this host). Raises UsageError without its packages.
    """
    check_engine(config)
    environment = {**os.environ, **changes}
    with contextlib.nullcontext(name) if name else free_name(config.redis_url or DEFAULT_REDIS_URL) as called:
        command = worker_command(called, *arguments)
        return Supervisor(command, environment, Restarts(config.worker_restarts)).run()


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

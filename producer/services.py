"""The long-running services behind a short command: a worker, and Flower."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import sys
from collections.abc import Mapping, Sequence

from producer.embedded import worker_command
from producer.errors import UsageError
from workers.settings import Settings


def run_worker(arguments: Sequence[str], changes: Mapping[str, str], name: str) -> None:
    """Become a Celery worker with these settings (``WHISPER_*``) and further Celery arguments."""
    _become(worker_command(name, *arguments), {**os.environ, **changes})


def run_flower(address: str, port: int, arguments: Sequence[str], config: Settings) -> None:
    """Become Flower with the app loaded, so that queue lengths and tasks are read right.

    Raises UsageError without the package, and for an address that others reach without a password.
    """
    if importlib.util.find_spec("flower") is None:
        raise UsageError("Flower is not installed: pip install 'whisper-fleet[flower]'")
    protected = os.environ.get("FLOWER_BASIC_AUTH") or os.environ.get("FLOWER_AUTH")
    if not protected and not _is_loopback(address):
        raise UsageError(
            f"--address {address}: Flower can revoke tasks and stop workers: set FLOWER_BASIC_AUTH=user:password first"
        )
    command = [sys.executable, "-m", "celery", "-A", "workers", "flower", f"--address={address}", f"--port={port}"]
    # Without a password Flower's API answers nobody; on loopback it may.
    defaults = {} if protected else {"FLOWER_UNAUTHENTICATED_API": "true"}
    # Flower's own default keeps 100 000 tasks in memory.
    defaults["FLOWER_MAX_TASKS"] = "20000"
    _become([*command, *arguments], {**defaults, **os.environ})


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _become(command: Sequence[str], environment: Mapping[str, str]) -> None:
    os.execve(command[0], list(command), dict(environment))

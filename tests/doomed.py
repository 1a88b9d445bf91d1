"""Starts workers whose engine fails on demand."""

from __future__ import annotations

import subprocess
from pathlib import Path

from fleet import Fleet
from producer.embedded import start_guarded, worker_command


def start_doomed(fleet: Fleet, doom: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """The worker of `doomed_worker`, which fails as the file ``doom`` says."""
    number = len(fleet.workers) + 1
    command = worker_command(f"test{number}@%h", *arguments)
    place = command.index("workers")
    command[place : place + 1] = ["celery", "-A", "doomed_worker"]
    environment = fleet.environment(DOOM_FILE=str(doom), PYTHONPATH=str(Path(__file__).parent))
    fleet.workers.append(start_guarded(command, environment, fleet.log_path(number)))
    return fleet.workers[-1]

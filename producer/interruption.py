"""What Ctrl-C and SIGTERM do to a command that has a job."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from producer.job import Job


class Terminated(BaseException):
    """SIGTERM: it ends a command as Ctrl-C does, with another exit code."""


@contextmanager
def resumable(job: Job, *, force: bool = False) -> Iterator[None]:
    """Say how to go on when a person interrupts. ``force``: the command starts over each time."""
    try:
        yield
    except (KeyboardInterrupt, Terminated):
        again = "the same command without --force" if force else "the same command"
        typer.echo(f"interrupted: the answers so far are kept in {job.step.job_path}; {again} resumes", err=True)
        raise

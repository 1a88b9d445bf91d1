"""What Ctrl-C and SIGTERM do to a command that has a job."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from producer.job import Job


class Terminated(BaseException):
    """SIGTERM: it ends a command as Ctrl-C does, with another exit code."""


@contextmanager
def resumable(job: Job) -> Iterator[None]:
    """Say how to go on when a person interrupts."""
    try:
        yield
    except (KeyboardInterrupt, Terminated):
        typer.echo(
            f"interrupted: the answers so far are kept in {job.step.job_path}; the same command resumes", err=True
        )
        raise

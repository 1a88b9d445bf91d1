"""The GPU side of the fleet: the Celery app, the tasks and the engine. ``celery -A workers worker`` starts a worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from celery import Celery


def __getattr__(name: str) -> Celery:
    """``celery``: the app, under the name that ``celery -A workers`` looks for."""
    if name != "celery":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from workers.app import app

    return app

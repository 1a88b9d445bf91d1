"""The GPU side of the fleet: the Celery app, the tasks and the engine. ``celery -A workers worker`` starts a worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from celery import Celery


def __getattr__(name: str) -> Celery:
    """``celery``: the app, under the name that ``celery -A workers`` looks for. A wrong setting ends that command."""
    if name != "celery":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from workers.errors import SettingsError
    from workers.exit_codes import CANNOT_START_WORDS

    try:
        from workers.app import app
    except SettingsError as error:  # Celery would show it as a traceback within a usage error
        raise SystemExit(f"{CANNOT_START_WORDS}{error}") from None
    from workers import broker_clock

    # Whatever consumes by this app looks for messages of silent workers too, remote control from its first moment on.
    broker_clock.install()
    return app

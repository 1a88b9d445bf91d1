"""The GPU side of the fleet: the Celery app, the tasks and the engine. ``celery -A workers worker`` starts a worker."""

from workers.app import app as celery

__all__ = ["celery"]

"""What Flower and the logs see of a message: short, and without secrets, whoever sent it."""

from __future__ import annotations

from typing import Any

from celery.worker.request import Request

from workers.delivery import CallDroppedError


class FleetRequest(Request):  # type: ignore[misc]
    """A request whose summaries are made here: what the sender wrote there may hold signed URLs or prompts."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._argsrepr, self._kwargsrepr = summaries(*self._payload[:2])
        # Not the sender's own name for it (``shadow``): a worker counts its messages by name, for as long as it lives.
        self.name = self._type
        self._request_dict.pop("shadow", None)

    def maybe_expire(self) -> Any:
        """Not one that comes again: it was begun in time, and may still run here. What is over is known by its mark."""
        return None if (self.delivery_info or {}).get("redelivered") else super().maybe_expire()

    def on_failure(self, exc_info: Any, *args: Any, **options: Any) -> None:
        """Flower hears of a dropped call as of one that was revoked: of what is ignored Celery tells it nothing."""
        if isinstance(getattr(exc_info.exception, "exc", exc_info.exception), CallDroppedError):
            self.send_event("task-revoked", terminated=False, signum=None, expired=False)
        try:
            super().on_failure(exc_info, *args, **options)
        except MemoryError:  # which Celery raises again: nobody would acknowledge the message
            self.acknowledge()

    def info(self, safe: bool = False) -> Any:
        """For `inspect active`: always the summaries."""
        return super().info(safe=True)


def summaries(args: Any, kwargs: Any) -> tuple[str, str]:
    """Short forms of a task's arguments: how many records or which rows, and of which job."""
    kwargs = kwargs if isinstance(kwargs, dict) else {}
    records = args[0] if isinstance(args, list | tuple) and args else kwargs.get("records")
    first = records[0] if isinstance(records, list) and records else None
    count = len(records) if isinstance(records, list) else 0
    noun = "record" if count == 1 else "records"
    job, row = kwargs.get("job"), first.get("row") if isinstance(first, dict) else None
    rows = f"{count} {'row' if count == 1 else 'rows'} from row {row}" if type(row) is int else f"{count} {noun}"
    return f"({rows})", f"{{job: {job[:200]}}}" if isinstance(job, str) else "{}"

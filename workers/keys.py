"""Every key that this project keeps in Redis, beside Celery's own. The one place that names them.

===============================  ======  ==============================================================================
key                              type    content
===============================  ======  ==============================================================================
``whisper:jobs``                 hash    job id -> registration (JSON, `producer.registry.Registration`)
``whisper:job:{id}:results``     stream  entries ``{"r": RowResult as JSON}``, deleted once journaled
``whisper:job:{id}:progress``    hash    the collector's published state: rows, answered, failed, audio_seconds, reasons
                                         (JSON), state (``running`` or ``complete``), step_path
``whisper:worker:{name}``        string  what a worker is and can do (JSON, `workers.presence.Presence`), expires
===============================  ======  ==============================================================================

Celery's: the lists ``transcribe`` and ``translate`` (with a suffix for priorities other than 0), ``unacked``,
``unacked_index`` and ``celery-task-meta-*`` for results of interactive calls.
"""

from __future__ import annotations

JOBS = "whisper:jobs"
WORKERS_PATTERN = "whisper:worker:*"
RESULT_FIELD = b"r"


def results(job: str) -> str:
    """The stream of a job's answers."""
    return f"whisper:job:{job}:results"


def progress(job: str) -> str:
    """What the collector last published about a job."""
    return f"whisper:job:{job}:progress"


def worker(name: str) -> str:
    """What a live worker says of itself."""
    return f"whisper:worker:{name}"

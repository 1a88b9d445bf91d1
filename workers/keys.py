"""Every key that this project keeps in Redis, beside Celery's own. Who needs a name takes it from here.

===============================  ======  ==============================================================================
key                              type    content
===============================  ======  ==============================================================================
``whisper:jobs``                 hash    job id -> registration (JSON, `producer.registry.Registration`)
``whisper:job:{id}:results``     stream  entries ``{"r": RowResult or PartResult as JSON}``, deleted once journaled;
                                         expires two weeks after the last answer
``whisper:job:{id}:progress``    hash    the collector's published state: rows, answered, failed, audio_seconds, reasons
                                         (JSON), state (``running`` or ``complete``), step_path
``whisper:workers``              sorted  the keys of the live workers (below), by when they expire; trimmed by them
                                 set
``whisper:worker:{name}          string  what a worker is and can do (JSON, `workers.presence.Presence`), expires;
:{process}``                             two of one name are two
``whisper:starting``             sorted  the keys of the workers that start, likewise
                                 set
``whisper:starting:{name}        string  which part of its start a worker is in (JSON, `workers.startup.Starting`),
:{process}``                             expires
``whisper:task:{id}``            hash    what workers know of a message that was begun and not ended: ``holder`` (the
                                         process that runs it), ``alone`` (``1``: nothing else ran there), ``deaths``,
                                         ``deaths_alone`` (how often its worker died), a field ``row:{n}`` per row that
                                         needs nothing more from this message; ``cancelled``, where its sender has given
                                         it up; ``copied``, where it was given out again while it runs; ``told_to_end``,
                                         the holder, where it was; expires after a day
``whisper:task:{id}:held``       string  the process that runs it now, renewed by it; ``done`` for two minutes after the
                                         end, a day for spans (`workers.split`) and for what was given out again
                                         meanwhile; expires
``whisper:beat:{process}``       string  nothing: that it could be written tells a worker that others could renew their
                                         marks; expires
``whisper:unacked``              hash    kombu's: the messages that workers hold, each with the queue it goes back to
``whisper:unacked:index``        sorted  kombu's: their tags, by when their holders last said so (by Redis's clock)
                                 set
``whisper:unacked:mutex``        string  kombu's: held by the worker that gives out again what silent ones held
===============================  ======  ==============================================================================

Celery's: the lists ``transcribe`` and ``translate`` (with a suffix for priorities other than 0) and
``celery-task-meta-*`` for results of interactive calls. Not ``unacked``, which all Celery applications of a database
share by default: each gives out again what others have held for longer than its own visibility timeout.
"""

from __future__ import annotations

from collections.abc import Iterable

JOBS = "whisper:jobs"
#: A list that nobody writes to.
NOTHING = "whisper:nothing"
WORKERS = "whisper:workers"
STARTING = "whisper:starting"
UNACKED, UNACKED_INDEX, UNACKED_MUTEX = "whisper:unacked", "whisper:unacked:index", "whisper:unacked:mutex"
#: Longer than any message waits for its next run; what is forgotten only costs another try.
TASK_EXPIRES_SECONDS = 86_400
#: From the last answer on: what nobody has collected by then belongs to a job that was given up or replaced.
RESULTS_EXPIRE_SECONDS = 14 * 86_400
RESULT_FIELD = b"r"
_SETTLED = "row:"


def results(job: str) -> str:
    """The stream of a job's answers."""
    return f"whisper:job:{job}:results"


def progress(job: str) -> str:
    """What the collector last published about a job."""
    return f"whisper:job:{job}:progress"


def worker(name: str, process: str) -> str:
    """What a live worker says of itself."""
    return f"whisper:worker:{name}:{process}"


def starting(name: str, process: str) -> str:
    """How far a worker's start is."""
    return f"{STARTING}:{name}:{process}"


def task(task_id: str) -> str:
    """What workers know of a message that was begun."""
    return f"whisper:task:{task_id}"


def held(task_id: str) -> str:
    """Who runs a message now."""
    return f"whisper:task:{task_id}:held"


def beat(process: str) -> str:
    """What a worker writes to see that Redis takes it."""
    return f"whisper:beat:{process}"


def settled_row(row: int) -> str:
    """The field of a message's hash that says: this row needs nothing more from this message."""
    return f"{_SETTLED}{row}"


def settled_rows(mark: Iterable[bytes]) -> frozenset[int]:
    """The rows whose fields (`settled_row`) are among those of a message's hash."""
    return frozenset(int(name[len(_SETTLED) :]) for name in mark if name.startswith(_SETTLED.encode()))

"""A decode process: ``python -m workers.decode_process <descriptor> <parent pid> <limits as JSON>``.

Not for people: `workers.audio.DecodePool` starts it, talks to it over the socket (`workers.decode_wire`) and ends it
with SIGKILL.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import pairwise, starmap
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from workers.audio import BEYOND_END, AudioLimits
from workers.decode_wire import CUTS, END, ERROR, GO_ON, PROGRESS, READY, SPAN_END, pack_block
from workers.errors import TranscriptionError, TransientError
from workers.guard import die_with_parent

if TYPE_CHECKING:
    from workers.audio_source import LocalFile
    from workers.decode_job import AudioEnd, DecodeJob

#: A terminal's Ctrl-C, Ctrl-\\ and end, and a supervisor's TERM.
ENDING_SIGNALS = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM)
#: Descriptors: a file, a socket, the model, and room for what libraries open on the way.
OPEN_FILES = 256
#: Often enough for any decode deadline, rare enough to cost nothing.
PROGRESS_SECONDS = 0.5


def main(arguments: list[str]) -> int:
    """Serve requests until the worker closes the socket. Returns the exit code."""
    # What ends a worker or starts it anew may reach all its processes: it drains, and needs its decoders.
    for number in ENDING_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    die_with_parent(int(arguments[1]))
    limits = AudioLimits(**json.loads(arguments[2]))
    _confine(limits)
    with suppress(ImportError):
        from setproctitle import setproctitle

        setproctitle("whisper-fleet: decode")
    # The codecs and the model, before the first request comes; not before the guard and the limits are in place.
    import workers.cuts  # noqa: F401
    from workers.voice_activity import VoiceActivity

    VoiceActivity()
    connection: Connection[Any, Any] = Connection(int(arguments[0]))
    # libmpg123 writes a line per damaged frame, and has no switch that libsndfile passes on. What went wrong with a
    # file is in its error message; what goes wrong before this line is for the operator to see.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    connection.send_bytes(READY)
    try:
        while True:
            request = json.loads(connection.recv_bytes()[1:])
            for message in _messages(request, limits, _progress(connection), lambda: connection.recv_bytes() == GO_ON):
                connection.send_bytes(message)
    except (EOFError, OSError):  # the worker closed its end
        return 0


def _messages(
    request: dict[str, Any], limits: AudioLimits, progress: Callable[[], None], goes_on: Callable[[], bool]
) -> Iterator[bytes]:
    """The answer to one request: blocks, then the end or an error, whatever happens.

    ``goes_on``: waits for the worker's word on the next span.
    """
    try:
        yield from _spans(request, limits, progress, goes_on)
    except TranscriptionError as error:
        yield _error(error.type, error.message, isinstance(error, TransientError))
    except MemoryError:
        limit = f"{limits.decode_memory_bytes / 2**30:g} GiB (WHISPER_DECODE_MEMORY_BYTES)"
        yield _error("too_large_to_decode", f"decoding needs more memory than {limit}")
    except Exception as error:  # noqa: BLE001 - the last resort: a record's error instead of a dead process
        text = " ".join(str(error).split())[:300]
        yield _error("decode_failed", f"{type(error).__name__}: {text}")


def _spans(
    request: dict[str, Any], limits: AudioLimits, progress: Callable[[], None], goes_on: Callable[[], bool]
) -> Iterator[bytes]:
    from workers.audio_source import local_file
    from workers.cuts import find_cuts
    from workers.decode_job import AudioEnd, DecodeJob

    start_s, end_s = request["start_s"] or 0.0, float("inf") if request["end_s"] is None else request["end_s"]
    whole = DecodeJob(request["source"], limits, progress, start_s, end_s, request["channel"])
    with local_file(whole.source, limits, progress) as file:
        seconds, cuts = find_cuts(file, whole) if request["cut"] else (0.0, [])
        if cuts:
            yield CUTS + json.dumps({"seconds": seconds, "cuts": cuts}).encode()
        ends: list[AudioEnd] = []
        for begin, stop in pairwise((start_s, *cuts, end_s)):
            if ends:
                yield SPAN_END
                if not goes_on():
                    break
            ends.append((yield from _span(file, whole.part(begin, stop), later=bool(ends) or request["later"])))
    end = AudioEnd(
        sum(one.duration_s for one in ends),
        tuple(sorted({flag for one in ends for flag in one.flags})),
        max(one.channels for one in ends),
    )
    yield END + json.dumps(asdict(end)).encode()


def _span(file: LocalFile, job: DecodeJob, *, later: bool) -> Generator[bytes, None, AudioEnd]:
    """The blocks of one span. A file that cannot be read any more at a ``later`` one is cut short, but audio."""
    from workers.audio_decode import decoded
    from workers.decode_job import AudioEnd
    from workers.quiet import QuietVoice, may_raise

    voice = QuietVoice()
    blocks = decoded(file, job)
    while True:
        try:
            samples = next(blocks)
        except StopIteration as stop:
            end: AudioEnd = stop.value
            break
        except TranscriptionError as error:
            if not later or error.type != "not_audio":
                raise
            end = AudioEnd(0.0, ("truncated",))
            break
        yield from starmap(pack_block, voice.add(samples, may_raise=may_raise(job)))
    yield from starmap(pack_block, voice.finish(may_raise=may_raise(job)))
    if later and BEYOND_END in end.flags:
        return replace(end, flags=("truncated",))
    return end


def _error(type_: str, message: str, transient: bool = False) -> bytes:
    return ERROR + json.dumps({"type": type_, "message": message, "transient": transient}).encode()


def _progress(connection: Connection[Any, Any]) -> Callable[[], None]:
    """What tells the worker, now and then, that work goes on."""
    last = time.monotonic()

    def progress() -> None:
        nonlocal last
        if time.monotonic() - last >= PROGRESS_SECONDS:
            last = time.monotonic()
            connection.send_bytes(PROGRESS)

    return progress


def _confine(limits: AudioLimits) -> None:
    """Resource limits for code that reads hostile files: memory, no core files, few descriptors."""
    for what, value in (
        (resource.RLIMIT_AS, limits.decode_memory_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
    ):
        _, hard = resource.getrlimit(what)
        allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(what, (allowed, allowed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

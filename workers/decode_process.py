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
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

from workers.audio import AudioLimits
from workers.decode_wire import END, ERROR, PROGRESS, READY, pack_block
from workers.errors import TranscriptionError, TransientError
from workers.guard import die_with_parent

#: Descriptors: a file, a socket, the model, and room for what libraries open on the way.
OPEN_FILES = 256
#: Often enough for any decode deadline, rare enough to cost nothing.
PROGRESS_SECONDS = 0.5


def main(arguments: list[str]) -> int:
    """Serve requests until the worker closes the socket. Returns the exit code."""
    # A terminal's Ctrl-C and a supervisor's TERM reach the whole group: the worker drains, and needs its decoders.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    die_with_parent(int(arguments[1]))
    limits = AudioLimits(**json.loads(arguments[2]))
    _confine(limits)
    with suppress(ImportError):
        from setproctitle import setproctitle

        setproctitle("whisper-fleet: decode")
    # The codecs and the model, before the first request comes; not before the guard and the limits are in place.
    import workers.audio_decode  # noqa: F401
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
            for message in _messages(request, limits, _progress(connection)):
                connection.send_bytes(message)
    except (EOFError, OSError):  # the worker closed its end
        return 0


def _messages(request: dict[str, Any], limits: AudioLimits, progress: Callable[[], None]) -> Iterator[bytes]:
    """The answer to one request: blocks, then the end or an error, whatever happens."""
    from workers.audio_decode import open_audio
    from workers.voice_activity import VoiceActivity

    try:
        voice = VoiceActivity()
        span = request["start_s"], request["end_s"]
        decoded = open_audio(request["source"], limits, *span, progress, request["channel"])
        while True:
            try:
                samples = next(decoded)
            except StopIteration as stop:
                end = stop.value
                break
            yield pack_block(samples, voice.probabilities(samples))
        last = voice.finish()
        if last.size:
            yield pack_block(last[:0], last)
        yield END + json.dumps(asdict(end)).encode()
    except TranscriptionError as error:
        yield _error(error.type, error.message, isinstance(error, TransientError))
    except MemoryError:
        limit = f"{limits.decode_memory_bytes / 2**30:g} GiB (WHISPER_DECODE_MEMORY_BYTES)"
        yield _error("too_large_to_decode", f"decoding needs more memory than {limit}")
    except Exception as error:  # noqa: BLE001 - the last resort: a record's error instead of a dead process
        text = " ".join(str(error).split())[:300]
        yield _error("decode_failed", f"{type(error).__name__}: {text}")


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

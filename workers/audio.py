"""Any file or URL as 16 kHz mono blocks: the worker's side of the decode processes.

Decoding runs in persistent child processes: a C codec that crashes, hangs or eats memory on a broken file takes only
that file's record with it, and neither the GIL nor a thread of the worker is busy with decoding. The pipe between the
two (its messages: `workers.decode_wire`) is the back-pressure: a child stops where the worker does not read.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt

from workers.decode_child import DecodeChild
from workers.decode_wire import BLOCK, CUTS, END, ERROR, GO_ON, HALT, SPAN_END, unpack_block
from workers.errors import TranscriptionError, TransientError
from workers.places import ClosedError, Places
from workers.settings import URL_SCHEMES, Settings

logger = logging.getLogger(__name__)

#: Whisper's and Silero's sample rate.
SAMPLE_RATE_HZ = 16_000
#: Silero's frame at 16 kHz: 32 ms.
FRAME_SAMPLES = 512

#: Importing the codecs takes about a second; a cold network file system takes longer.
_START_SECONDS = 120.0
#: How often a thread that waits for a decode process looks whether it still should.
CHECK_SECONDS = 0.5
#: What a decode process died of that no file does for certain. Somebody else's SIGKILL is most often the kernel, short
#: of memory.
NOT_THE_FILES_FAULT = ("SIGKILL", "SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM")


@dataclass(frozen=True, slots=True)
class AudioLimits:
    """What one recording may cost, where it may come from, and where its path leads: settings of the same names."""

    max_audio_seconds: float = 24 * 3600.0
    max_audio_bytes: int = 8 * 2**30
    max_channels: int = 8
    max_sample_rate_hz: int = 768_000
    decode_timeout_seconds: float = 60.0
    decode_cpu_seconds: float = 3600.0
    decode_memory_bytes: int = 4 * 2**30
    download_timeout_seconds: float = 3600.0
    max_redirects: int = 5
    #: A recording of several times this length is cut into spans of about this length.
    span_seconds: float = 600.0
    #: Folders whose files may be read, None: all.
    audio_roots: Sequence[str] | None = None
    url_schemes: Sequence[str] = URL_SCHEMES
    #: Hosts to fetch from, None: all.
    url_hosts: Sequence[str] | None = None
    allow_private_addresses: bool = False
    path_map: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_settings(cls, settings: Settings) -> AudioLimits:
        """The limits that the settings of the same names set."""
        return cls(**{limit.name: getattr(settings, limit.name) for limit in fields(cls)})


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of a recording: float32[n] samples in [-1, 1], and float32[k] speech probabilities.

    The probabilities are of the 512-sample frames that became full with this block, so ``k`` is not ``n / 512``; over
    a whole recording there is one for every started frame. Either array may be empty.
    """

    samples: npt.NDArray[np.float32]
    speech: npt.NDArray[np.float32]


def map_path(source: str, path_map: Mapping[str, str]) -> str:
    """``source`` with the longest prefix that ``path_map`` knows replaced; ``/a`` leads ``/a/b``, not ``/ab``.

    A ``file:`` URL that has none of them as it is written is looked up as the path that it stands for.
    """
    local = re.fullmatch(r"(?i:file://(?:localhost)?)(/.*)", source, re.DOTALL)
    for name in (source, unquote(local[1])) if local else (source,):
        for prefix in sorted(path_map, key=len, reverse=True):
            if name == prefix or name.startswith(prefix if prefix.endswith("/") else prefix + "/"):
                return path_map[prefix] + name[len(prefix) :]
    return source


#: Flag of a recording that ends before the wanted span begins.
BEYOND_END = "span_beyond_end"


class AudioStream:
    """One recording on its way in. Iterate it once; then ``duration_s``, ``flags`` and ``channels`` tell what came.

    One that is cut into spans is iterated span by span (`next_span`). ``cuts`` (seconds from the recording's start,
    known with the first block) say where, ``told_s`` how long the whole is.

    ``duration_s``: seconds decoded (of the asked span). ``flags``: ``truncated`` (the file ends before its header says,
    cannot be read further, or has another behind it that is not read), ``damaged`` (parts were left out),
    ``other_tracks`` (it has more than this one), `BEYOND_END`.
    ``channels``: how many the recording has, whichever was asked for.
    """

    def __init__(
        self, child: DecodeChild, timeout_seconds: float, shutting_down: threading.Event, check: Callable[[], None]
    ) -> None:
        self.duration_s = 0.0
        self.flags: tuple[str, ...] = ()
        self.channels = 1
        self.finished = False
        self.told_s = 0.0
        self.cuts: tuple[float, ...] = ()
        self.at_cut = False
        self._child = child
        self._timeout_seconds = timeout_seconds
        self._shutting_down = shutting_down
        self._check = check

    def __iter__(self) -> Iterator[Block]:
        """The blocks up to the next cut or the end, as they come (about 10 s each).

        Raises TranscriptionError: what is wrong with the file, or ``decode_timeout``, ``decode_crashed``. And what
        ``check`` raises (`DecodePool.open`).
        """
        while not self.finished:
            message = self._receive()
            tag, body = message[:1], message[1:]
            if tag == BLOCK:
                yield Block(*unpack_block(body))
            elif tag == CUTS:
                found = json.loads(body)
                self.told_s, self.cuts = float(found["seconds"]), tuple(map(float, found["cuts"]))
            elif tag == SPAN_END:
                self.at_cut = True
                return
            elif tag == END:
                end = json.loads(body)
                self.duration_s, self.flags = float(end["duration_s"]), tuple(end["flags"])
                self.channels = int(end["channels"])
                self.finished = True
            elif tag == ERROR:
                self.finished = True
                error = json.loads(body)
                kind = TransientError if error["transient"] else TranscriptionError
                raise kind(error["type"], error["message"])

    def next_span(self, wanted: bool = True) -> bool:
        """After a span: whether there is another one to be iterated. The recording ends here if none is ``wanted``."""
        if not self.at_cut:
            return False
        self.at_cut = False
        with suppress(OSError):  # a child that died: the next read says so
            self._child.answer(GO_ON if wanted else HALT)
        if not wanted:
            for _ in self:
                pass
        return wanted

    def _receive(self) -> bytes:
        deadline = time.monotonic() + self._timeout_seconds
        while True:
            self._check()
            left_seconds = deadline - time.monotonic()
            try:
                return self._child.receive(min(CHECK_SECONDS, max(0.0, left_seconds)))
            except TimeoutError:
                if left_seconds > CHECK_SECONDS:
                    continue
                message = (
                    f"the decoder gave nothing for {self._timeout_seconds:g} s; a slow disk or server needs a higher "
                    "WHISPER_DECODE_TIMEOUT_SECONDS"
                )
                raise TransientError("decode_timeout", message) from None
            except (EOFError, OSError):
                if self._shutting_down.is_set():
                    raise TransientError("worker_stopping", "the worker stopped while it decoded this file") from None
                cause = self._child.cause_of_death()
                kind = TransientError if cause in NOT_THE_FILES_FAULT else TranscriptionError
                raise kind("decode_crashed", f"the decoder crashed on this file ({cause})") from None


class DecodePool:
    """``processes`` decode processes, started as they are needed and replaced when they fail. Thread-safe.

    One more is for whoever cannot wait: bulk jobs of long recordings hold theirs for minutes. Not for one-off calls: a
    process takes about a second to start. Raises RuntimeError from the constructor when the first one does not start
    (a missing package, say): better at a worker's start than as every record's error.
    """

    def __init__(self, processes: int, limits: AudioLimits) -> None:
        #: How many recordings that are not urgent can be read at once.
        self.processes = processes
        self._limits = limits
        # PR_SET_PDEATHSIG follows the thread that starts a child, so one thread of the pool's own starts them all;
        # the threads that decode come and go.
        self._spawner = ThreadPoolExecutor(1, thread_name_prefix="decode-spawner")
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._children: set[DecodeChild] = set()
        try:
            first = self._start()
        except (OSError, EOFError) as error:
            self._spawner.shutdown()
            raise RuntimeError(
                f"decode processes do not start ({str(error) or 'the process ended'}); see its error above"
            ) from error
        # A warm process goes before one not started yet (None).
        self._places: Places[DecodeChild | None] = Places([*[None] * processes, first])

    @contextmanager
    def open(
        self,
        source: str,
        start_s: float | None = None,
        end_s: float | None = None,
        channel: int | None = None,
        *,
        cut: bool = False,
        later: bool = False,
        urgent: bool = False,
        check: Callable[[], None] = lambda: None,
    ) -> Iterator[AudioStream]:
        """The audio of ``source`` (path, ``file:``, ``http(s):`` or fsspec URL), from ``start_s`` to ``end_s``.

        ``channel`` (from 0) takes that one alone, None the mean of all. ``cut``: a long one comes in spans
        (`workers.cuts`); ``later``: this is one of them, not the first. Waits for a free process; the ``urgent`` have
        one more. Leaving the context before the stream's end costs that process its life. Raises TranscriptionError
        (also from the iteration): see `workers.audio_decode.open_audio` for the types. ``check`` is called twice a
        second by who waits for a process or its audio; what it raises ends the waiting.
        """
        child = self._checkout(urgent, check)
        stream = AudioStream(child, self._limits.decode_timeout_seconds, self._closed, check)
        try:
            with suppress(OSError):  # a child that died while idle: the first read says so
                wanted = {"start_s": start_s, "end_s": end_s, "channel": channel, "cut": cut, "later": later}
                child.request({"source": map_path(source, self._limits.path_map), **wanted})
            yield stream
        finally:
            self._checkin(child, urgent, reusable=stream.finished)

    def close(self) -> None:
        """End all children; streams still open fail with ``worker_stopping``."""
        self._closed.set()
        self._places.close()
        with self._lock:
            children = list(self._children)
        for child in children:
            child.kill()
        for child in children:
            child.reap()
        self._spawner.shutdown(wait=False)

    def _checkout(self, urgent: bool, check: Callable[[], None]) -> DecodeChild:
        try:
            child = self._places.take(urgent=urgent, check=check)
        except ClosedError:
            raise TransientError("worker_stopping", "the worker is stopping") from None
        if child is not None and child.idle():
            return child
        if child is not None:
            self._forget(child)
        try:
            return self._start()
        except (OSError, EOFError, RuntimeError) as error:
            self._places.put(None, urgent=urgent)
            raise TransientError("decode_unavailable", f"no decode process could be started: {error}") from error

    def _checkin(self, child: DecodeChild, urgent: bool, *, reusable: bool) -> None:
        if reusable and not self._closed.is_set():
            self._places.put(child, urgent=urgent)
        else:
            self._forget(child)
            self._places.put(None, urgent=urgent)

    def _start(self) -> DecodeChild:
        child = self._spawner.submit(DecodeChild, asdict(self._limits)).result()
        with self._lock:
            self._children.add(child)
        try:
            child.receive(_START_SECONDS)
        except (OSError, EOFError):
            self._forget(child)
            raise
        if self._closed.is_set():  # close() may have looked before this child was listed
            child.kill()
        return child

    def _forget(self, child: DecodeChild) -> None:
        child.kill()
        with self._lock:
            self._children.discard(child)
        child.release()

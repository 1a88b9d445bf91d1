"""A stand-in for the engine, for load tests and users' own tests. IT TRANSCRIBES NOTHING: its texts are made up.

It behaves like an engine where queues care: windows are encoded one after another, decoded together in steps of a
fixed length, and at most ``max_num_seqs`` at once. The same audio always gives the same text.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
import zlib
from concurrent.futures import Future
from dataclasses import dataclass
from importlib import metadata

from workers.device import batch
from workers.errors import EngineLostError
from workers.interface import EngineFacts, EngineLoad, WindowRequest, WindowResult, WindowSegment, turn_s
from workers.languages import LANGUAGES
from workers.messages import TASKS
from workers.models import STANDIN
from workers.progress import Progress
from workers.settings import Settings


@dataclass(slots=True)
class _Running:
    request: WindowRequest
    future: Future[WindowResult]
    steps_left: int


class StandInEngine:
    """Answers every window with ``stand-in <checksum of the samples>`` after a set time."""

    def __init__(self, settings: Settings) -> None:
        self._encode_seconds = settings.standin_encode_ms / 1000
        self._step_seconds = settings.standin_step_ms / 1000
        self._steps = settings.standin_steps
        self._facts = EngineFacts(
            model=STANDIN,
            revision="standin",
            device="none",
            version=metadata.version("whisper-fleet"),
            tasks=TASKS,
            languages=tuple(LANGUAGES),
            max_num_seqs=batch(settings).max_num_seqs,
            tensor_parallel_size=settings.tensor_parallel_size,
            max_tokens=settings.max_tokens,
        )
        #: A heap: when it is whose turn, a number for those of the same time, and the window.
        self._waiting: list[tuple[float, int, _Running]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._lost: str | None = None
        self._progress = Progress(self._facts.max_num_seqs)
        threading.Thread(target=self._work, name="standin", daemon=True).start()

    @property
    def facts(self) -> EngineFacts:
        """A model called ``standin`` that claims every task and language."""
        return self._facts

    def submit(self, request: WindowRequest) -> Future[WindowResult]:
        """Queue one window."""
        future: Future[WindowResult] = Future()
        with self._changed:
            if self._lost is not None:
                raise EngineLostError(self._lost)
            self._progress.started()
            future.add_done_callback(lambda _: self._progress.ended())
            one = _Running(request, future, self._steps)
            turn = turn_s(request.urgent, time.monotonic())
            heapq.heappush(self._waiting, (turn, next(self._numbers), one))
            self._changed.notify()
        return future

    def healthy(self) -> bool:
        """True until closed or failed."""
        return self._lost is None

    def stalled_seconds(self) -> float:
        """How long the windows in flight have made no step; 0.0 without any."""
        return self._progress.stalled_seconds()

    def load(self) -> EngineLoad:
        """How busy it is."""
        return self._progress.load()

    def fail(self, reason: str) -> None:
        """Fail what is left."""
        with self._changed:
            self._lost = self._lost or reason
            self._changed.notify()

    def close(self) -> None:
        """Fail what is left."""
        self.fail("the engine was closed")

    def _work(self) -> None:
        running: list[_Running] = []
        while True:
            with self._changed:
                while not (self._lost or self._waiting or running):
                    self._changed.wait()
                if self._lost is not None:
                    break
                admitted = self._next() if len(running) < self._facts.max_num_seqs else None
            if admitted is not None:
                time.sleep(self._encode_seconds)
                running.append(admitted)
            time.sleep(self._step_seconds)
            self._progress.moved()
            for one in running:
                one.steps_left -= 1
                if one.steps_left <= 0 and one.future.set_running_or_notify_cancel():
                    one.future.set_result(_made_up(one.request))
            running = [one for one in running if one.steps_left > 0 and not one.future.cancelled()]
        for one in [*running, *(one for _, _, one in self._waiting)]:
            if one.future.set_running_or_notify_cancel():
                one.future.set_exception(EngineLostError(self._lost))

    def _next(self) -> _Running | None:
        """The window whose turn it is, of those that anybody still wants. With the lock held."""
        while self._waiting:
            _, _, one = heapq.heappop(self._waiting)
            if not one.future.cancelled():
                return one
        return None


def _made_up(request: WindowRequest) -> WindowResult:
    text = f"stand-in {zlib.crc32(request.samples.tobytes()):08x}"
    seconds = len(request.samples) / 16_000
    return WindowResult(
        text=text,
        language=request.language or "en",
        language_probability=1.0,
        no_speech_prob=0.0,
        avg_logprob=0.0,
        compression_ratio=1.0,
        temperature=request.temperature,
        segments=(WindowSegment(0.0, seconds, text),) if request.timestamps else (),
        flags=("standin",),
    )

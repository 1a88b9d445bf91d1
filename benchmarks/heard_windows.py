"""Which windows a worker asks its engine for: those that it cuts, and the rest of each where the model stops early.

Found by decoding them with the worker's own rules (`workers.seek`, `workers.fallback`), once, before any clock runs.
Further tries of a window at higher temperatures are not among them: they are the same window again.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

from workers.fallback import FallbackDecoder
from workers.gates import Gates
from workers.interface import EngineFacts, EngineLoad, WindowRequest, WindowResult
from workers.pauses import Speech
from workers.seek import SeekingDecoder

#: What follows on an answer is asked within this time, or the work is done.
SETTLED_SECONDS = 0.3

#: A window of a recording, by number, and its first sample that is decoded: 0 for all of it.
Part = tuple[int, int]
Decode = Callable[[Sequence[WindowRequest]], Sequence[WindowResult]]


@dataclass(frozen=True, slots=True)
class Cut:
    """A window as it is cut, and where somebody speaks in it."""

    request: WindowRequest
    speech: Speech


def heard_parts(recordings: Sequence[Sequence[Cut]], decode: Decode, gates: Gates) -> list[list[Part]]:
    """Of each recording what a worker has decoded of it, in order. ``decode`` answers any number of windows at once."""
    parts: list[list[Part]] = [[] for _ in recordings]

    class Noting(FallbackDecoder):
        def submit(self, request: WindowRequest, speech_seconds: float, identity: str) -> Future[WindowResult]:
            place, number = map(int, identity.split("/")[:2])
            left_out = len(recordings[place][number].request.samples) - len(request.samples)
            parts[place].append((number, left_out))
            return super().submit(request, speech_seconds, identity)

    engine = _Collected()
    decoder = SeekingDecoder(Noting(engine, gates))
    try:
        answers = [
            decoder.submit(cut.request, cut.speech, f"{place}/{number}")
            for place, cuts in enumerate(recordings)
            for number, cut in enumerate(cuts)
        ]
        while not all(answer.done() for answer in answers):
            if asked := list(engine.asked()):
                results = decode([request for request, _ in asked])
                for (_, future), result in zip(asked, results, strict=True):
                    future.set_result(result)
        for answer in answers:
            answer.result()  # its error, if it is one
    finally:
        decoder.close()
    return [sorted(own) for own in parts]


def requests(cuts: Sequence[Cut], parts: Sequence[Part]) -> list[WindowRequest]:
    """One recording's parts as they are asked for."""
    wholes = [(cuts[number].request, first_sample) for number, first_sample in parts]
    return [replace(whole, samples=whole.samples[first_sample:]) for whole, first_sample in wholes]


class _Collected:
    """An engine that only takes windows down. It is always busy: no try is begun before its turn."""

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[tuple[WindowRequest, Future[WindowResult]]] = queue.SimpleQueue()
        self.facts = EngineFacts("", "", "cpu", "", (), (), max_num_seqs=1)

    def submit(self, request: WindowRequest) -> Future[WindowResult]:
        future: Future[WindowResult] = Future()
        self._asked.put((request, future))
        return future

    def asked(self) -> Iterator[tuple[WindowRequest, Future[WindowResult]]]:
        """Those that wait for an answer, without those that are not needed any more."""
        try:
            while True:
                request, future = self._asked.get(timeout=SETTLED_SECONDS)
                if future.set_running_or_notify_cancel():
                    yield request, future
        except queue.Empty:
            return

    def load(self) -> EngineLoad:
        return EngineLoad(running=1, waiting=1)

    def healthy(self) -> bool:
        return True

    def stalled_seconds(self) -> float:
        return 0.0

    def fail(self, reason: str) -> None:
        """Nothing runs."""

    def close(self) -> None:
        """Nothing runs."""

"""An engine whose answers a test writes itself, at the seam where vLLM and the stand-in stand, and a run through it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace

from workers.interface import Engine, EngineFacts, EngineLoad, WindowRequest, WindowResult, WindowSegment
from workers.messages import Item, Options, Record, Task
from workers.runtime import Runtime
from workers.settings import load_settings
from workers.transcriber import Transcriber

FACTS = EngineFacts("test-model", "1", "none", "0", ("transcribe",), ("en", "de", "zh"), max_num_seqs=8)


class ScriptedEngine:
    """An engine that answers each window with ``answer(request, number of the window)``: a result or an error."""

    def __init__(self, answer: Callable[[WindowRequest, int], WindowResult | Exception], facts: EngineFacts) -> None:
        self.requests: list[WindowRequest] = []
        self.facts = facts
        #: A full batch: nothing is begun before its turn.
        self.in_flight = facts.max_num_seqs
        self._answer = answer

    def submit(self, request: WindowRequest) -> Future[WindowResult]:
        answer = self._answer(request, len(self.requests))
        self.requests.append(request)
        future: Future[WindowResult] = Future()
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)
        return future

    def healthy(self) -> bool:
        return True

    def load(self) -> EngineLoad:
        return EngineLoad(running=self.in_flight)

    def close(self) -> None:
        pass


def said(request: WindowRequest, number: int) -> WindowResult:
    """A plain answer that tells the window's number."""
    return WindowResult(
        text=f"window {number}",
        language=request.language or "de",
        language_probability=0.5 + number / 10,
        no_speech_prob=0.0,
        avg_logprob=-0.1,
        compression_ratio=1.0,
        temperature=request.temperature,
        # To the end of the window, so that nothing is left to go on with.
        segments=(WindowSegment(0.5, len(request.samples) / 16_000, f"window {number}"),) if request.timestamps else (),
    )


def heard(text: str = "it is raining again", **figures: object) -> WindowResult:
    """A result that every gate lets pass, but for ``figures``."""
    figures = {
        "language": "en",
        "language_probability": 0.9,
        "no_speech_prob": 0.0,
        "avg_logprob": -0.2,
        "compression_ratio": 1.0,
        "temperature": 0.0,
        **figures,
    }
    return WindowResult(text, **figures)  # type: ignore[arg-type]


def transcribed(
    runtime: Runtime,
    records: list[Record],
    engine: Engine | None = None,
    *,
    task: Task = "transcribe",
    **options: object,
) -> list[list[Item]]:
    """Each record's items, in the order of delivery, which has to be the order of the records."""
    transcriber = (
        runtime.transcriber if engine is None else Transcriber(engine, runtime.pool, load_settings(), threads=1)
    )
    delivered: list[tuple[Record, list[Item]]] = []
    transcriber.transcribe(records, task, Options(**options), lambda record, items: delivered.append((record, items)))  # type: ignore[arg-type]
    assert [record for record, _ in delivered] == records
    return [items for _, items in delivered]


def scripted(
    answer: Callable[[WindowRequest, int], WindowResult | Exception] = said, **facts: object
) -> ScriptedEngine:
    return ScriptedEngine(answer, replace(FACTS, **facts))  # type: ignore[arg-type]


def in_turn(*results: WindowResult | Exception) -> ScriptedEngine:
    """An engine that gives these answers in turn, and the last one for ever."""
    return scripted(lambda request, number: results[min(number, len(results) - 1)])

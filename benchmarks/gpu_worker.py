"""A worker's threads without Celery and Redis: files go in, transcripts of a model without weights come out."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import soundfile

from benchmarks.gpu_gauges import Steps
from benchmarks.gpu_runs import LANGUAGE, NO_WEIGHTS, TEXT_TOKENS, Request, Tell, log_mel_ms, measured
from workers.audio import AudioLimits, DecodePool
from workers.device import decode_processes
from workers.engine import VllmEngine
from workers.interface import Engine, EngineFacts, WindowRequest, WindowResult
from workers.messages import Failure, Item, Options, Record
from workers.settings import Settings
from workers.transcriber import Transcriber

#: Windows that a worker's thread has in the engine by default (twice its batch, half as many threads).
WINDOWS_PER_THREAD = 4
#: What the rules have every request say first: language and task.
FORCED_TOKENS = 2


def worker(request: Request, settings: Settings, tell: Tell) -> None:
    """The worker's path at each concurrency. Raises RuntimeError if a clip gives no transcript."""
    sampling = {"max_tokens": FORCED_TOKENS + TEXT_TOKENS, "ignore_eos": True, "repetition_detection": None}
    pool = DecodePool(decode_processes(settings), AudioLimits.from_settings(settings))
    engine = VllmEngine(settings, engine_args=NO_WEIGHTS, sampling=sampling)
    try:
        steps = Steps()
        steps.watch(engine._llm)
        clips = [WindowRequest(soundfile.read(path, dtype="float32")[0], "transcribe") for path in request.clips]
        tell({"log_mel_ms": log_mel_ms(lambda number: engine._inputs.of(clips[number % len(clips)], [0]))})
        most = max(request.concurrencies)
        transcribe_clips(engine, pool, settings, request, most, most)  # warm
        for concurrency in request.concurrencies:
            windows = request.windows_at(concurrency)
            with measured("worker", concurrency, windows, steps, tell):
                transcribe_clips(engine, pool, settings, request, concurrency, windows)
    finally:
        pool.close()
        engine.close()


class OnlySpeed:
    """An engine for measuring: it has room for so many windows at once, and hears every window to its end.

    Without weights the timestamps are anything, and a window would be decoded again from the last one on.
    """

    def __init__(self, engine: Engine, max_num_seqs: int) -> None:
        self._engine = engine
        self._max_num_seqs = max_num_seqs

    @property
    def facts(self) -> EngineFacts:
        """The engine's, with another room."""
        return replace(self._engine.facts, max_num_seqs=self._max_num_seqs)

    def submit(self, request: WindowRequest) -> Future[WindowResult]:
        """As the engine does, but no result has segments."""
        answer: Future[WindowResult] = Future()

        def done(future: Future[WindowResult]) -> None:
            if not answer.set_running_or_notify_cancel():
                return
            error = future.exception()
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(replace(future.result(), segments=(), whole=None))

        self._engine.submit(request).add_done_callback(done)
        return answer

    def __getattr__(self, name: str) -> Any:
        """Everything else is the engine's."""
        return getattr(self._engine, name)


def transcribe_clips(
    engine: Engine, pool: DecodePool, settings: Settings, request: Request, concurrency: int, windows: int
) -> None:
    """So many clips through the worker's path, by as many threads as keep ``concurrency`` windows in the engine."""
    threads = max(1, concurrency // WINDOWS_PER_THREAD)
    # Twice an engine's room is what all threads together keep there.
    transcriber = Transcriber(OnlySpeed(engine, -(-concurrency // 2)), pool, settings, threads)
    lock, numbers = threading.Lock(), iter(range(windows))
    answers: list[Item] = []
    errors: list[BaseException] = []

    def records() -> Iterator[Record]:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            yield Record(audio=request.clips[number % len(request.clips)], row=number)

    def work() -> None:
        try:
            transcriber.transcribe(
                records(), "transcribe", Options(language=LANGUAGE), lambda _, items: answers.extend(items)
            )
        except BaseException as error:  # noqa: BLE001 - raised below, in the caller's thread
            errors.append(error)

    workers = [threading.Thread(target=work, name=f"worker-{number}") for number in range(threads)]
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join()
    transcriber.close()
    failed = next((answer for answer in answers if isinstance(answer, Failure)), None)
    if errors or failed or len(answers) != windows:
        raise RuntimeError(f"{len(answers)} of {windows} clips were answered: {errors[:1] or failed}")

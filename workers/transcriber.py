"""One record from audio to transcripts: decode, find speech, cut windows, decode them in the engine, join.

Records overlap: while the engine works on one record's windows, the thread prepares the next record's.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from workers.audio import DecodePool
from workers.errors import EngineLostError, TranscriptionError
from workers.interface import SAMPLE_RATE_HZ, Engine, WindowRequest, WindowResult
from workers.languages import language_code
from workers.messages import Failure, Options, Record, Segment, Task, Transcript
from workers.settings import Settings
from workers.windows import WindowOptions, join_segments, join_texts, speech_windows

log = logging.getLogger(__name__)

Item = Transcript | Failure

#: How often a thread that waits for the engine looks whether the worker is ending.
CHECK_SECONDS = 0.5


@dataclass(slots=True)
class _Recording:
    """One audio file on its way: its windows in the engine, and what is known of the whole."""

    starts_s: list[float] = field(default_factory=list)
    ends_s: list[float] = field(default_factory=list)
    futures: list[Future[WindowResult]] = field(default_factory=list)
    duration_s: float = 0.0
    speech_s: float = 0.0
    flags: tuple[str, ...] = ()
    failure: Failure | None = None

    def done(self) -> bool:
        return all(future.done() for future in self.futures)


class Transcriber:
    """Turns records into transcripts with one engine and one pool of decode processes. Safe from any thread."""

    def __init__(
        self,
        engine: Engine,
        pool: DecodePool,
        settings: Settings,
        threads: int,
        stopping: threading.Event | None = None,
    ) -> None:
        self._engine = engine
        #: Set when the worker's grace is over: what is not delivered then goes back to the queue.
        self._stopping = stopping or threading.Event()
        self._pool = pool
        self._window_options = WindowOptions.from_settings(settings)
        # All threads together keep twice the engine's batch waiting or running, so that it never runs dry.
        self._windows_per_task = max(2, -(-2 * engine.facts.max_num_seqs // threads))

    def transcribe(
        self,
        records: Iterable[Record],
        task: Task,
        options: Options,
        deliver: Callable[[Record, list[Item]], None],
    ) -> None:
        """Transcribe records in order; ``deliver`` gets each one's items (one per audio file) as soon as it is done.

        A failure of a record is an item of it. Raises EngineLostError when the engine is gone: records that were
        not delivered were not done.
        """
        room = threading.Semaphore(self._windows_per_task)
        waiting: list[tuple[Record, list[_Recording]]] = []
        for record in records:
            recordings = [self._begin(record, source, task, options, room) for source in record.sources]
            waiting.append((record, recordings))
            while waiting and all(recording.done() for recording in waiting[0][1]):
                self._finish(*waiting.pop(0), options, deliver)
        for record, recordings in waiting:
            self._finish(record, recordings, options, deliver)

    def _begin(
        self, record: Record, source: str, task: Task, options: Options, room: threading.Semaphore
    ) -> _Recording:
        """Read one file and put all its windows into the engine, waiting for room there."""
        recording = _Recording()
        try:
            language = self._check(record, source, task, options)
            with self._pool.open(source, record.start_s, record.end_s) as stream:
                for window in speech_windows(stream, self._window_options):
                    if language is None and recording.futures:
                        # The first window's language holds for the whole recording.
                        language = self._wait(recording.futures[0]).language
                    request = WindowRequest(
                        window.samples, task, language, timestamps=options.timestamps, prompt=record.prompt
                    )
                    future = self._submit(request, room)
                    # Windows of a span record count from the span, its segments from the start of the recording.
                    start_s = window.start_s + (record.start_s or 0.0)
                    recording.starts_s.append(start_s)
                    recording.ends_s.append(start_s + len(window.samples) / SAMPLE_RATE_HZ)
                    recording.futures.append(future)
                    recording.speech_s += window.speech_s
                recording.duration_s = stream.duration_s
                recording.flags = stream.flags
        except TranscriptionError as error:
            recording.failure = Failure.of(error)
        except EngineLostError:
            raise
        except Exception as error:  # a fault of ours may cost a row its text, never its answer
            log.exception("row %s: unexpected failure", record.row)
            recording.failure = Failure(type="internal_error", message=f"{type(error).__name__}: {error}")
        return recording

    def _submit(self, request: WindowRequest, room: threading.Semaphore) -> Future[WindowResult]:
        while not room.acquire(timeout=CHECK_SECONDS):
            self._check_stopping()
        try:
            future = self._engine.submit(request)
        except BaseException:
            room.release()
            raise
        future.add_done_callback(lambda _: room.release())
        return future

    def _wait(self, future: Future[WindowResult]) -> WindowResult:
        while True:
            try:
                return future.result(timeout=CHECK_SECONDS)
            except TimeoutError:
                if future.done():  # the window's own, not ours
                    raise
                self._check_stopping()

    def _check_stopping(self) -> None:
        if self._stopping.is_set():
            raise EngineLostError("the worker is ending and its grace is over")

    def _check(self, record: Record, source: str, task: Task, options: Options) -> str | None:
        """The record's language code, None to detect it. Raises TranscriptionError for what the model cannot do."""
        if not source:
            raise TranscriptionError("no_audio", "the record names no audio file")
        facts = self._engine.facts
        if task not in facts.tasks:
            raise TranscriptionError(
                "unsupported_task", f"the model {facts.model} cannot {task}; it can {', '.join(facts.tasks)}"
            )
        language = language_code(record.language or options.language)
        if language is not None and language not in facts.languages:
            raise TranscriptionError(
                "unsupported_language", f"the model {facts.model} does not know the language {language!r}"
            )
        if len(facts.languages) == 1:
            return facts.languages[0]
        return language

    def _finish(
        self,
        record: Record,
        recordings: Sequence[_Recording],
        options: Options,
        deliver: Callable[[Record, list[Item]], None],
    ) -> None:
        deliver(record, [self._item(recording, record, options) for recording in recordings])

    def _item(self, recording: _Recording, record: Record, options: Options) -> Item:
        """Wait for a recording's windows and join them."""
        try:
            results = [self._wait(future) for future in recording.futures]
        except TranscriptionError as error:
            return Failure.of(error)
        except EngineLostError:
            raise
        except Exception as error:  # as in `_begin`
            log.exception("row %s: unexpected failure", record.row)
            return Failure(type="internal_error", message=f"{type(error).__name__}: {error}")
        if recording.failure is not None:
            return recording.failure
        blank = Transcript(
            text="",
            segments=[] if options.timestamps else None,
            duration=recording.duration_s,
            speech_seconds=recording.speech_s,
            model=self._engine.facts.model,
            flags=[*recording.flags, "no_speech"],
            attempts=record.attempt,
        )
        if not results:
            return blank
        language = Counter(result.language for result in results).most_common(1)[0][0]
        weights = [max(1e-3, end - start) for start, end in zip(recording.starts_s, recording.ends_s, strict=True)]
        flags = sorted({*recording.flags, *(flag for result in results for flag in result.flags)})
        return Transcript(
            duration=blank.duration,
            speech_seconds=blank.speech_seconds,
            model=blank.model,
            attempts=blank.attempts,
            text=join_texts([result.text for result in results], language),
            segments=self._segments(recording, results) if options.timestamps else None,
            language=language,
            language_probability=results[0].language_probability,
            avg_logprob=_mean([result.avg_logprob for result in results], weights),
            compression_ratio=max(result.compression_ratio for result in results),
            no_speech_prob=_mean([result.no_speech_prob for result in results], weights),
            temperature=max(result.temperature for result in results),
            flags=flags,
        )

    def _segments(self, recording: _Recording, results: Sequence[WindowResult]) -> list[Segment]:
        return join_segments(
            [
                (start, end, [(segment.start, segment.end, segment.text) for segment in result.segments])
                for start, end, result in zip(recording.starts_s, recording.ends_s, results, strict=True)
            ]
        )


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    """The mean of the windows' figures, by their lengths."""
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)

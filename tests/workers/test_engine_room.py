"""The engine's batch does not run dry while threads have rows, however few can read; and calls go before them."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest

from fleet import wait_for
from scripted_engine import FACTS, ScriptedEngine, heard
from workers.audio import AudioLimits, DecodePool
from workers.interface import WindowRequest, WindowResult
from workers.messages import Options, Record
from workers.settings import load_settings
from workers.transcriber import Transcriber

LANGUAGES = ("en", "de", "fr", "es")
ROWS = 10
SEATS = 8
#: No time of anything: how long a test that fails takes.
PATIENCE_SECONDS = 20.0


class Greedy(ScriptedEngine):
    """Answers a window only once it holds a batch of them (or all that are left), of the task that has the fewest."""

    def __init__(self) -> None:
        super().__init__(lambda request, _: heard(language=request.language), replace(FACTS, languages=LANGUAGES))
        self.ran_dry_at: list[int] = []
        self._held: list[tuple[str | None, Future[WindowResult], Future[WindowResult]]] = []
        self._changed = threading.Condition()

    def submit(self, request: WindowRequest) -> Future[WindowResult]:
        answer: Future[WindowResult] = Future()
        with self._changed:
            self._held.append((request.language, answer, super().submit(request)))
            self._changed.notify()
        return answer

    def work(self) -> None:
        for answered in range(len(LANGUAGES) * ROWS):
            left = len(LANGUAGES) * ROWS - answered
            with self._changed:
                if not self._changed.wait_for(lambda: len(self._held) >= min(SEATS, left), PATIENCE_SECONDS):  # noqa: B023
                    self.ran_dry_at.append(answered)
                counts = Counter(language for language, _, _ in self._held)
                one = min(self._held, key=lambda held: counts[held[0]])
                self._held.remove(one)
            one[1].set_result(one[2].result())


@pytest.mark.parametrize("processes", [1, 2])
def test_a_thread_that_waits_for_the_engine_keeps_no_other_from_reading(samples: Path, processes: int) -> None:
    # Given four threads with many rows each, and fewer decode processes
    engine = Greedy()
    pool = DecodePool(processes, AudioLimits.from_settings(load_settings()))
    transcriber = Transcriber(engine, pool, load_settings(), threads=len(LANGUAGES))
    records = [Record(audio=str(samples / "en_train.flac"), row=row) for row in range(ROWS)]
    answered = Counter[str]()

    def task(language: str) -> None:
        def deliver(_record: Record, _items: object) -> None:
            answered[language] += 1

        transcriber.transcribe(records, "transcribe", Options(language=language), deliver)

    threads = [threading.Thread(target=task, args=(language,), daemon=True) for language in LANGUAGES]
    working = threading.Thread(target=engine.work, daemon=True)
    try:
        # When the engine takes whose windows are fewest, which leaves those of the thread that waits for room
        for thread in (working, *threads):
            thread.start()
        for thread in (working, *threads):
            thread.join(4 * PATIENCE_SECONDS)
        # Then it always had a batch, to the last rows
        assert engine.ran_dry_at == []
        assert answered == dict.fromkeys(LANGUAGES, ROWS)
    finally:
        transcriber.close()
        pool.close()


class Busy(ScriptedEngine):
    """Answers what is urgent; the other windows only once it is less busy."""

    def __init__(self) -> None:
        super().__init__(lambda request, _: heard(language=request.language), replace(FACTS, languages=LANGUAGES))
        self.answers: list[Future[WindowResult]] = []

    def submit(self, request: WindowRequest) -> Future[WindowResult]:
        done = super().submit(request)
        if request.urgent:
            return done
        self.answers.append(Future())
        return self.answers[-1]

    def less_busy(self) -> None:
        while self.answers:
            self.answers.pop().set_result(heard(language="en"))


def test_a_call_waits_for_none_of_a_bulk_job(samples: Path) -> None:
    # Given threads with rows of jobs, which hold all windows that the engine takes, and the decode process
    engine = Busy()
    pool = DecodePool(1, AudioLimits.from_settings(load_settings()))
    transcriber = Transcriber(engine, pool, load_settings(), threads=len(LANGUAGES))
    records = [Record(audio=str(samples / "en_train.flac"), row=row) for row in range(ROWS)]
    answered: list[Record] = []

    def task() -> None:
        transcriber.transcribe(records, "transcribe", Options(language="en"), lambda record, _: answered.append(record))

    threads = [threading.Thread(target=task, daemon=True) for _ in LANGUAGES]
    try:
        for thread in threads:
            thread.start()
        wait_for(lambda: len(engine.answers) == 2 * FACTS.max_num_seqs)

        # When somebody calls, with more than one record
        calls = [record.model_copy(update={"row": None}) for record in records[:3]]
        call = threading.Thread(
            target=lambda: transcriber.transcribe(
                calls, "transcribe", Options(language="en"), lambda record, _: answered.append(record), urgent=True
            ),
            daemon=True,
        )
        call.start()
        call.join(PATIENCE_SECONDS)

        # Then that is answered, and nothing else
        assert answered == calls
        assert [request.urgent for request in engine.requests] == [False] * 2 * FACTS.max_num_seqs + [True] * 3
        # And the jobs go on afterwards
        wait_for(lambda: engine.less_busy() or not any(thread.is_alive() for thread in threads))
        assert len(answered) == len(calls) + len(threads) * ROWS
    finally:
        transcriber.close()
        pool.close()

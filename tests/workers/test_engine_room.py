"""The engine's batch does not run dry while threads have rows, however few of them can read at once."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest

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

"""A recording streams: its length costs text, not audio. Real decoding and voice activity in a process of its own."""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from queue import Empty, SimpleQueue

import pytest

from benchmarks.memory import BAR_MB, measure
from benchmarks.recordings import write_recording
from fleet import clean_environment
from scripted_engine import FACTS, ScriptedEngine, heard, said, scripted, transcribed
from workers.interface import WindowRequest, WindowResult
from workers.messages import Record, Transcript
from workers.recording import VOTERS
from workers.runtime import Runtime
from workers.settings import load_settings
from workers.transcriber import MOST_WINDOWS

#: Five minutes are some ten windows. Twenty fill every buffer there is, and are cut into spans (`workers.cuts`), which
#: takes some memory of its own. Forty minutes more are 80 windows: 150 MB if anything kept their audio.
SHORT_SECONDS, CUT_SECONDS, LONG_SECONDS = 300, 1200, 3600
#: The text of so many windows, and what the allocator does not give back: 12 to 21 MB were seen.
MOST_GROWTH_MB = 50.0
TEMPERATURES = load_settings().temperatures


def test_peak_memory_does_not_grow_with_the_recording(tmp_path: Path) -> None:
    # Given two recordings that are both cut into spans, one three times as long as the other
    short, long = tmp_path / "short.flac", tmp_path / "long.flac"
    write_recording(short, CUT_SECONDS)
    write_recording(long, LONG_SECONDS)
    # When a worker each transcribes one, with an engine that is slower than the decoding
    with ThreadPoolExecutor(2) as pool:
        few, many = pool.map(lambda path: measure(path, clean_environment()), (short, long))
    # Then the longer one was heard to its end and took no more memory
    assert many.audio_seconds == pytest.approx(LONG_SECONDS, abs=0.1)
    assert many.speech_seconds > 2.5 * few.speech_seconds > 0
    assert many.sum_mb - few.sum_mb < MOST_GROWTH_MB
    assert many.sum_mb < BAR_MB


@pytest.mark.parametrize("tries", [1, 3])
def test_audio_of_a_window_is_let_go_with_its_answer(standin_runtime: Runtime, tmp_path: Path, tries: int) -> None:
    # Given a recording of twenty windows, and an engine that hears each of them only at its last try
    path = tmp_path / "long.flac"
    write_recording(path, 2 * SHORT_SECONDS)
    asked: list[weakref.ref[object]] = []
    most_alive = 0

    def answer(request: WindowRequest, _: int) -> WindowResult:
        nonlocal most_alive
        engine.requests.clear()  # what the engine itself remembers
        alive = {id(samples): samples for samples in (known() for known in asked) if samples is not None}
        if id(request.samples) not in alive:
            asked.append(weakref.ref(request.samples))
        most_alive = max(most_alive, len(alive))
        last = request.temperature >= TEMPERATURES[tries - 1]
        return heard(f"at {request.temperature}", avg_logprob=-0.1 if last else -2.0, temperature=request.temperature)

    engine = scripted(answer, max_num_seqs=1)
    # When it is transcribed
    ((item,),) = transcribed(standin_runtime, [Record(audio=str(path))], engine, language="auto")
    # Then no more windows were held than the engine may have, those that vote, and the one being made
    assert isinstance(item, Transcript)
    assert item.text.count(f"at {TEMPERATURES[tries - 1]}") >= 20
    assert most_alive <= 2 * engine.facts.max_num_seqs + VOTERS + 2


class SlowToAnswer(ScriptedEngine):
    """Holds the windows until a second after there are as many as one record may have here; then it answers."""

    def __init__(self) -> None:
        super().__init__(said, replace(FACTS, max_num_seqs=128))
        self.most_held = 0
        self._held: SimpleQueue[tuple[Future[WindowResult], Future[WindowResult]]] = SimpleQueue()
        self.over = threading.Event()

    def submit(self, request: WindowRequest) -> Future[WindowResult]:
        answer: Future[WindowResult] = Future()
        self._held.put((answer, super().submit(request)))
        return answer

    def work(self) -> None:
        deadline = time.monotonic() + 60.0
        while self._held.qsize() < MOST_WINDOWS and time.monotonic() < deadline and not self.over.wait(0.05):
            pass
        self.over.wait(1.0)  # for one more, which must not come
        self.most_held = self._held.qsize()
        while not self.over.is_set():
            with contextlib.suppress(Empty):
                answer, done = self._held.get(timeout=0.05)
                answer.set_result(done.result())


def test_a_record_holds_a_limited_number_of_windows_however_large_the_batch(
    standin_runtime: Runtime, tmp_path: Path
) -> None:
    # Given a recording of forty windows, and an engine for 128 with one thread to feed it
    path = tmp_path / "long.flac"
    write_recording(path, 4 * SHORT_SECONDS)
    engine = SlowToAnswer()
    working = threading.Thread(target=engine.work)
    working.start()
    try:
        # When it is transcribed
        ((item,),) = transcribed(standin_runtime, [Record(audio=str(path))], engine, language="en")
    finally:
        engine.over.set()
        working.join()
    # Then it never had more than its share in the engine
    assert isinstance(item, Transcript)
    assert len(engine.requests) > MOST_WINDOWS
    assert engine.most_held == MOST_WINDOWS

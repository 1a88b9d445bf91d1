"""The windows of the bare engine are those that a worker asks for: as cut, and what is heard on of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from benchmarks.heard_windows import Cut, heard_parts, requests
from scripted_engine import FACTS, ScriptedEngine, heard
from workers.errors import TranscriptionError
from workers.fallback import FallbackDecoder
from workers.gates import Gates
from workers.interface import WindowRequest, WindowResult, WindowSegment
from workers.seek import SeekingDecoder

RATE = 16_000


def cut(first: int) -> Cut:
    """30 s of speech whose samples tell which window it is, and how far one is in it."""
    samples = np.arange(first, first + 30 * RATE, dtype=np.float32)
    return Cut(WindowRequest(samples, "transcribe", "en", timestamps=True), ((0.5, 29.5),))


def answer(request: WindowRequest) -> WindowResult:
    """The model: stops after 10 s of the first window, loops at first in the second, hears the third to its end."""
    window, position = divmod(int(request.samples[0]), 1000 * RATE)
    seconds = len(request.samples) / RATE
    if window == 1 and request.temperature < 0.4:
        return heard("loop", flags=("repetition",), segments=(WindowSegment(0.0, seconds, "loop"),))
    end = 10.0 if window == 0 and position == 0 else seconds
    text = "It is raining again, and nobody knows for how long it will go on."
    return heard(text, segments=(WindowSegment(0.0, end, text),), temperature=request.temperature)


RECORDINGS = [[cut(0), cut(2000 * RATE)], [], [cut(1000 * RATE)]]


def test_what_is_heard_on_counts_and_what_is_tried_again_does_not() -> None:
    decoded: list[int] = []

    def decode(windows: Sequence[WindowRequest]) -> list[WindowResult]:
        decoded.append(len(windows))
        return [answer(one) for one in windows]

    parts = heard_parts(RECORDINGS, decode, Gates())

    assert parts == [[(0, 0), (0, 10 * RATE), (1, 0)], [], [(0, 0)]]
    assert decoded[0] == 3, "all windows as they are cut are decoded at once"


def test_the_windows_are_those_that_a_worker_s_decoder_asks_its_engine_for() -> None:
    # Given the same model behind a worker's decoder
    engine = ScriptedEngine(lambda request, _: answer(request), FACTS)
    decoder = SeekingDecoder(FallbackDecoder(engine, Gates()))
    for number, one in enumerate(RECORDINGS[0]):
        decoder.submit(one.request, one.speech, f"row/{number}").result(10)
    decoder.close()

    parts = heard_parts(RECORDINGS, lambda windows: [answer(one) for one in windows], Gates())
    ours = requests(RECORDINGS[0], parts[0])

    assert [(len(one.samples), one.samples[0], one.language, one.timestamps) for one in ours] == [
        (len(one.samples), one.samples[0], one.language, one.timestamps) for one in engine.requests
    ]


def test_an_engine_s_error_is_not_taken_for_an_answer() -> None:
    def decode(windows: Sequence[WindowRequest]) -> list[WindowResult]:
        raise TranscriptionError("engine_error", "it fails")

    with pytest.raises(TranscriptionError, match="it fails"):
        heard_parts(RECORDINGS, decode, Gates())

"""Speeds to ratios: of pairs, the median of their own ratios."""

from __future__ import annotations

from pathlib import Path

from benchmarks.corpus import Clip
from benchmarks.efficiency import shuffled, summary, word_error_rate
from benchmarks.systems import Answer, EngineChoice
from workers.settings import Settings


def test_ratio_is_the_median_of_the_pairs_and_not_of_all_runs() -> None:
    # Given a machine that is half as fast in its second and third pair
    fleet, bare = [10.0, 6.0, 5.0], [8.0, 5.0, 5.0]
    runs = [
        {"system": system, "speed": speed}
        for pair in zip(fleet, bare, strict=True)
        for system, speed in zip(("fleet", "bare"), pair, strict=True)
    ]

    found = summary([*runs, {"system": "faster-whisper", "speed": 4.0}])

    assert found["pairs"] == [1.25, 1.2, 1.0]
    assert found["ratios"] == {"bare": 1.2, "faster-whisper": 1.5}
    assert found["speeds"] == {"fleet": 6.0, "bare": 5.0, "faster-whisper": 4.0}


def test_wrong_words_are_counted_over_all_clips_that_have_a_reference_in_words() -> None:
    clips = [
        Clip("a", Path("a"), "speech", "en", 1.0, "the cat sat"),
        Clip("b", Path("b"), "speech", "es", 1.0, "uno"),
        Clip("c", Path("c"), "speech", "zh", 1.0, "\u4f60\u597d"),
        Clip("d", Path("d"), "speech", "en", 1.0),
    ]
    answers = {"a": Answer("The cat set."), "b": Answer("uno"), "c": Answer("x"), "d": Answer("y")}

    assert word_error_rate(clips, answers) == 0.25
    assert word_error_rate(clips[2:], answers) is None


def test_fleet_and_bare_engine_get_the_same_settings(monkeypatch) -> None:
    for name, value in EngineChoice(16, "int8").environment.items():
        monkeypatch.setenv(name, value)

    settings = Settings()

    assert (settings.model, settings.dtype, settings.max_num_seqs) == ("whisper-base", "float32", 16)
    assert settings.quantization == "int8"


def test_each_pair_has_an_order_of_its_own_that_is_the_same_each_time() -> None:
    assert shuffled(300, 1) == shuffled(300, 1) != shuffled(300, 0)
    assert sorted(shuffled(300, 1)) == list(range(300))

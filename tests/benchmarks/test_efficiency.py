"""Speeds to ratios: of pairs, the median of their own ratios."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import efficiency
from benchmarks.corpus import Clip
from benchmarks.efficiency import Bare, Systems, judged, pairs, shuffled, summary, word_error_rate
from benchmarks.systems import Answer, EngineChoice, GroupRun
from workers.settings import Settings


def in_turn(*speeds: float, bare: str = "bare") -> list[dict[str, Any]]:
    """Runs of one start: bare, fleet, bare, fleet, bare."""
    return [{"system": (bare, "fleet")[number % 2], "speed": speed} for number, speed in enumerate(speeds)]


def test_a_run_of_the_fleet_is_held_against_the_bare_runs_beside_it() -> None:
    # Given a machine that becomes slower all the time, and half as fast in its second start
    runs = [*in_turn(12.0, 10.0, 6.0, 5.0, 4.0), *in_turn(4.0, 5.0, 4.0)]

    found = summary([*runs, {"system": "faster-whisper", "speed": 2.5}])

    # Then each pair has the mean of the times before and after: 1/12 and 1/6 second for a second of audio are 1/8
    assert found["pairs"] == {"bare": [1.25, 1.042, 1.25]}
    assert found["ratios"] == {"bare": 1.25, "faster-whisper": 2.0}
    assert found["speeds"] == {"fleet": 5.0, "bare": 4.0, "faster-whisper": 2.5}


def test_bare_engines_apart_have_a_ratio_of_their_own() -> None:
    turn = [("bare", 10.0), ("bare apart", 12.0), ("fleet", 9.0), ("bare", 10.0), ("bare apart", 12.0)]

    found = summary([{"system": system, "speed": speed} for system, speed in [*turn, ("faster-whisper", 3.0)]])

    assert found["ratios"] == {"bare": 0.9, "bare apart": 0.75, "faster-whisper": 3.0}


def test_every_system_with_a_bar_is_judged_where_it_ran() -> None:
    by_default = judged({"bare": 0.97, "faster-whisper": 2.5})
    untuned = judged({"bare": 0.97, "bare cut": 0.9, "bare untuned": 1.02, "faster-whisper": 1.7})

    assert [(bar.name.split(" of ")[-1], bar.met) for bar in by_default] == [("bare", False), ("faster-whisper", True)]
    assert [(bar.name.split(" of ")[-1], bar.met) for bar in untuned] == [
        ("bare", False),
        ("bare untuned", True),
        ("faster-whisper", False),
    ]


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
    for name, value in EngineChoice(16, "int8", "bfloat16").environment.items():
        monkeypatch.setenv(name, value)

    settings = Settings()

    assert (settings.model, settings.dtype, settings.max_num_seqs) == ("whisper-base", "bfloat16", 16)
    assert settings.quantization == "int8"


def test_each_pair_has_an_order_of_its_own_that_is_the_same_each_time() -> None:
    assert shuffled(300, 1) == shuffled(300, 1) != shuffled(300, 0)
    assert sorted(shuffled(300, 1)) == list(range(300))


def test_the_fleet_hears_other_clips_before_each_of_its_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or its engine would have the encodings of its last turn."""
    heard: list[list[str]] = []

    class Fleet:
        def run(self, clips: list[Clip]) -> GroupRun:
            heard.append([clip.key for clip in clips])
            return GroupRun({}, 1.0, 1.0)

    def generate(engines: object, order: Sequence[int], *, only_cut: bool) -> float:
        orders.append(list(order))
        return 2.5 if only_cut else 2.0

    orders: list[list[int]] = []
    monkeypatch.setattr(efficiency, "generate", generate)
    clips = [Clip(str(number), Path(), "speech", "en", 1.0) for number in range(4)]
    others = [Clip("other", Path(), "speech", "en", 1.0)]

    bare = {"bare": Bare([]), "bare cut": Bare([], only_cut=True)}
    took = list(pairs(Systems(Fleet(), bare), clips, others, range(2)))  # type: ignore[arg-type]

    assert [(system, seconds) for system, seconds, _ in took] == [
        *(("bare", 2), ("bare cut", 2.5), ("fleet", 1)),
        *(("bare", 2), ("bare cut", 2.5), ("fleet", 1), ("bare", 2), ("bare cut", 2.5)),
    ]
    assert [sorted(keys) for keys in heard] == [["other"], ["0", "1", "2", "3"]] * 2
    # and the bare engine, which has them behind the clips
    assert [sorted(order) for order in orders] == [[4], [0, 1, 2, 3]] * 6


def test_other_clips_are_not_among_those_that_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Clip(str(number), Path(), "speech", "en", 1.0) for number in range(10)]
    monkeypatch.setattr(efficiency, "LANGUAGES", ())
    monkeypatch.setattr(efficiency.corpus, "folder_clips", lambda folder: found)

    for count in (4, 7, 300):
        clips, others = efficiency._clips(Path(), count, 3)
        assert (len(clips), len(others)) == (min(count, 7), 3)
        assert not {clip.key for clip in clips} & {clip.key for clip in others}
    with pytest.raises(ValueError, match="too few"):
        efficiency._clips(Path(), 4, 9)

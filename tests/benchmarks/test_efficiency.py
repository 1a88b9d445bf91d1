"""Speeds to ratios: of pairs, the median of their own ratios."""

from __future__ import annotations

from benchmarks.efficiency import summary


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

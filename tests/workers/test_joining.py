"""Windows' answers put back together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.joining import join_segments, join_texts
from workers.messages import Segment


@pytest.mark.parametrize(
    ("texts", "language", "joined"),
    [
        ([" Hello  there.", "", " General\nKenobi. "], "en", "Hello there. General Kenobi."),
        (["你好。", " 世界。"], "zh", "你好。世界。"),
        (["สวัสดี", "ครับ"], "th", "สวัสดีครับ"),
        (["안녕", "하세요"], "ko", "안녕 하세요"),
        (["a", "b"], None, "a b"),
        # Latin words and figures keep their borders; beside a letter or full stop of the language there is none.
        (["我们今天学 Python", "Java 也可以"], "zh", "我们今天学 Python Java 也可以"),
        (["一共是 12", "30 个人"], "zh", "一共是 12 30 个人"),
        (["12", "个人。", "Python"], "zh", "12个人。Python"),
        ([" ", "你好"], "zh", "你好"),
        ([""], "zh", ""),
        ([], "en", ""),
    ],
)
def test_join_texts(texts: list[str], language: str | None, joined: str) -> None:
    assert join_texts(texts, language) == joined


def test_join_segments_moves_clamps_and_rounds() -> None:
    parts = [
        (10.0, 20.0, [(0.0, 4.004, " one "), (3.5, 12.0, "two"), (11.0, 11.5, "three")]),
        (19.996, 30.0, [(-1.0, 1.0, "four"), (1.0, 2.0, "  ")]),
    ]
    assert join_segments(parts) == [
        Segment(start=10.0, end=14.0, text="one"),
        Segment(start=14.0, end=20.0, text="two"),
        Segment(start=20.0, end=20.0, text="three"),
        Segment(start=20.0, end=21.0, text="four"),
    ]


@given(samples=st.integers(1, 30 * 16_000), start=st.integers(0, 16_000 * 3600))
def test_no_segment_ends_after_the_recording(samples: int, start: int) -> None:
    begin_s, end_s = start / 16_000, (start + samples) / 16_000
    for one in join_segments([(begin_s, end_s, [(0.0, 30.0, "one"), (29.9, 30.0, "two")])]):
        assert one.start <= one.end <= end_s


times = st.floats(-5, 40, allow_nan=False)


@given(
    st.lists(
        st.tuples(st.floats(0, 30), st.floats(0.1, 30), st.lists(st.tuples(times, times, st.just("x")))), max_size=5
    )
)
def test_joined_segments_never_go_back(raw: list[tuple[float, float, list[tuple[float, float, str]]]]) -> None:
    parts, now = [], 0.0
    for gap, length, segments in raw:
        parts.append((now + gap, now + gap + length, segments))
        now += gap + length
    joined = join_segments(parts)
    marks = [mark for segment in joined for mark in (segment.start, segment.end)]
    assert marks == sorted(marks)
    assert all(0 <= mark <= now + 1e-6 for mark in marks)
    assert len(joined) == sum(len(segments) for _, _, segments in parts)

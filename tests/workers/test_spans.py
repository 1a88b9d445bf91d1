"""The spans of a recording as one transcript."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.messages import Failure, Segment, Transcript
from workers.spans import join_spans, joined


def span(text: str = "some words", **figures: object) -> Transcript:
    given = {"language": "en", "duration": 600.0, "speech_seconds": 100.0, "model": "m", **figures}
    return Transcript(text=text, **given)  # type: ignore[arg-type]


SILENT = Transcript(text="", duration=600.0, model="m", flags=["no_speech"])


def test_texts_segments_and_lengths_add_up() -> None:
    one = span("One two.", segments=[Segment(start=0.0, end=9.5, text="One two.")])
    two = span("Three.", segments=[Segment(start=600.3, end=601.0, text="Three.")], duration=400.5, speech_seconds=50.0)
    whole = join_spans([one, two])
    assert whole.text == "One two. Three."
    assert whole.segments == [*(one.segments or ()), *(two.segments or ())]
    assert (whole.duration, whole.speech_seconds) == (1000.5, 150.0)


def test_without_segments_there_are_none() -> None:
    assert join_spans([span(), span()]).segments is None
    assert join_spans([SILENT.model_copy(update={"segments": []}), span(segments=[])]).segments == []


def test_segments_of_a_span_with_more_sound_than_its_times_have_room_for_do_not_reach_back() -> None:
    # Given a span that has sound beyond its end, where the next one begins
    one = span(segments=[Segment(start=590.0, end=598.0, text="one"), Segment(start=598.0, end=604.0, text="two")])
    two = span(segments=[Segment(start=600.0, end=603.0, text="three"), Segment(start=603.0, end=608.0, text="four")])
    three = span(segments=[Segment(start=610.0, end=612.0, text="five")])
    # Then no segment starts before the one ahead of it ends, and none is lost
    joined_segments = join_spans([one, two, three]).segments or ()
    assert [(segment.start, segment.end, segment.text) for segment in joined_segments] == [
        (590.0, 598.0, "one"),
        (598.0, 604.0, "two"),
        (604.0, 604.0, "three"),
        (604.0, 608.0, "four"),
        (610.0, 612.0, "five"),
    ]


def test_scripts_without_spaces_are_joined_without_and_translations_with() -> None:
    assert join_spans([span("你好。", language="zh"), span("再见。", language="zh")]).text == "你好。再见。"
    assert join_spans([span("Hello.", language="zh"), span("Goodbye.", language="zh")]).text == "Hello. Goodbye."


def test_figures_are_those_of_the_windows() -> None:
    one = span(avg_logprob=-0.2, no_speech_prob=0.1, compression_ratio=1.2, temperature=0.0, attempts=1)
    two = span(
        avg_logprob=-0.8, no_speech_prob=0.4, compression_ratio=2.0, temperature=0.4, attempts=3, speech_seconds=50.0
    )
    whole = join_spans([one, SILENT, two])
    assert whole.avg_logprob == pytest.approx(-0.4)
    assert whole.no_speech_prob == pytest.approx(0.2)
    assert (whole.compression_ratio, whole.temperature, whole.attempts) == (2.0, 0.4, 3)


def test_language_is_the_one_with_the_most_speech_and_its_vote() -> None:
    spans = [
        span(language="de", language_probability=0.6, speech_seconds=80.0),
        span(language="en", language_probability=0.9, speech_seconds=100.0),
        span(language="de", language_probability=1.0, speech_seconds=90.0),
    ]
    whole = join_spans(spans)
    assert (whole.language, whole.language_probability) == ("de", 0.6)
    assert join_spans([SILENT, SILENT]).language is None


def test_silence_is_flagged_only_if_nobody_speaks_at_all() -> None:
    assert join_spans([SILENT, SILENT]).flags == ["no_speech"]
    assert join_spans([SILENT, span(flags=["truncated"])]).flags == ["truncated"]
    assert join_spans([SILENT, span("", flags=["empty"])]).flags == ["empty"]
    assert join_spans([SILENT, span("", flags=["empty", "no_speech"])]).flags == ["empty", "no_speech"]
    assert join_spans([span(), span("", flags=["empty", "no_speech"])]).flags == ["empty"]


def test_one_span_is_the_recording() -> None:
    assert join_spans([SILENT]) is SILENT


def test_the_first_failure_is_that_of_the_recording() -> None:
    first, second = Failure(type="quarantined", message="a"), Failure(type="file_not_found", message="b")
    assert joined([span(), first, span(), second]) == first
    assert joined([span("a"), span("b")]) == join_spans([span("a"), span("b")])


texts = st.lists(st.text(st.characters(codec="utf-8", categories=["L", "P", "Zs"]), max_size=8), min_size=2, max_size=6)


@given(texts, st.sampled_from(["en", "zh", "ja"]))
def test_no_letter_is_lost(parts: list[str], language: str) -> None:
    whole = join_spans([span(part, language=language) for part in parts])
    assert "".join(whole.text.split()) == "".join("".join(parts).split())

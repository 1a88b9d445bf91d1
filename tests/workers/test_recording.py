"""A recording's windows as one transcript: the vote on the language, texts, segments, flags and figures."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripted_engine import heard
from workers.interface import WindowRequest, WindowResult, WindowSegment
from workers.languages import LANGUAGES_WITHOUT_SPACES
from workers.messages import Segment, Transcript
from workers.recording import CERTAIN, VOTERS, Recording, Sent, Vote, join, silence, vote

REQUEST = WindowRequest(np.zeros(16_000, np.float32), "transcribe")


def sent(speech_s: float = 10.0, start_s: float = 0.0, end_s: float = 30.0) -> Sent:
    return Sent(start_s, end_s, speech_s, Future())


def joined(*results: WindowResult, votes: bool = True, timestamps: bool = False, **recording: object) -> Transcript:
    """Windows of 30 s with 10 s of speech each, one after another, joined in the language that they vote for."""
    windows = [sent(10.0, 30.0 * at, 30.0 * (at + 1)) for at in range(len(results))]
    whole = Recording(votes=votes, windows=windows, **recording)  # type: ignore[arg-type]
    return join(whole, results, vote(windows, results), timestamps=timestamps, model="m", attempts=2)


# The vote.


def elected(*votes: tuple[str, float, float, str]) -> Vote:
    """The vote of windows given as (language, probability, seconds of speech, text)."""
    return vote(
        [sent(speech_s) for _, _, speech_s, _ in votes],
        [heard(text, language=language, language_probability=share) for language, share, _, text in votes],
    )


def test_vote_is_by_probability_times_seconds_of_speech() -> None:
    assert elected(("en", 0.9, 2.0, "a"), ("de", 0.6, 10.0, "b")) == Vote("de", pytest.approx(6 / 12))
    assert elected(("en", 0.9, 8.0, "a"), ("de", 0.6, 10.0, "b")) == Vote("en", pytest.approx(7.2 / 18))


def test_windows_of_one_language_vote_together() -> None:
    assert elected(("en", 0.9, 10.0, "a"), ("de", 0.5, 10.0, "b"), ("de", 0.5, 10.0, "c")).language == "de"


def test_windows_without_words_do_not_decide() -> None:
    """Whisper names a language for silence too, often with confidence."""
    assert elected(("nn", 1.0, 30.0, ""), ("nn", 1.0, 30.0, ""), ("de", 0.2, 0.1, "Ja.")) == Vote(
        "de", pytest.approx(0.2)
    )


def test_without_any_words_there_still_is_a_language() -> None:
    assert elected(("nn", 0.9, 5.0, ""), ("de", 0.5, 1.0, "")).language == "nn"
    assert elected(("nn", 0.9, 0.0, "")) == Vote("nn", pytest.approx(0.9))


ballots = st.tuples(
    st.sampled_from(["en", "de", "zh"]), st.floats(0.01, 1.0), st.floats(0.0, 30.0), st.sampled_from(["", "word"])
)


@given(st.lists(ballots, min_size=1, max_size=6))
def test_elected_language_was_heard_and_its_probability_is_one(votes: list[tuple[str, float, float, str]]) -> None:
    result = elected(*votes)

    spoken = [one for one in votes if one[3]] or votes
    backers = [one for one in spoken if one[0] == result.language]
    assert backers
    assert 0 < result.probability <= max(share for _, share, _, _ in backers) + 1e-9
    if len(backers) == len(spoken):
        assert result.probability >= min(share for _, share, _, _ in backers) - 1e-9


def test_first_windows_of_a_recording_are_its_voters() -> None:
    windows = [sent() for _ in range(VOTERS + 2)]

    assert Recording(votes=True, windows=windows).voters() == windows[:VOTERS]
    assert Recording(votes=True, windows=windows[:1]).voters() == windows[:1]
    assert Recording(votes=False, windows=windows).voters() == []


def test_recording_is_done_when_its_last_window_is() -> None:
    windows = [sent(), sent()]
    recording = Recording(windows=windows)
    assert Recording().done()

    windows[1].future.set_result(heard())
    assert not recording.done()

    windows[0].future.set_exception(ValueError())
    assert recording.done()


# Flags.


def test_flags_of_recording_and_windows_are_told_once_in_order() -> None:
    result = joined(
        heard(flags=("standin", "low_confidence")), heard(flags=("low_confidence",)), flags=("truncated", "damaged")
    )

    assert result.flags == ["damaged", "low_confidence", "standin", "truncated"]


def test_silent_window_among_others_is_no_silent_recording() -> None:
    assert joined(heard(), heard("", flags=("no_speech",))).flags == []


def test_recording_of_silent_windows_only_is_flagged() -> None:
    assert joined(heard("", flags=("no_speech",)), heard("", flags=("no_speech",))).flags == ["no_speech"]
    assert joined(heard("", flags=("no_speech", "prompt_echo"))).flags == ["no_speech", "prompt_echo"]


def test_speech_that_was_taken_for_silence_leaves_a_trace() -> None:
    taken = heard("", flags=("no_speech", "empty"))

    assert joined(heard(), taken, heard()).flags == ["empty"]
    assert joined(heard("", flags=("no_speech",)), taken).flags == ["empty", "no_speech"]


@pytest.mark.parametrize("flag", ["empty", "repetition"])
def test_text_that_is_missing_is_not_called_silence(flag: str) -> None:
    assert joined(heard("", flags=(flag,)), heard("", flags=("no_speech",))).flags == [flag]


def test_close_vote_is_flagged_where_there_was_one() -> None:
    close = [heard(language="en", language_probability=0.9), heard(language="de", language_probability=0.8)]

    assert joined(*close).flags == ["uncertain_language"]
    assert joined(*close, votes=False).flags == []
    assert joined(heard(language_probability=CERTAIN)).flags == []
    assert joined(heard(language_probability=CERTAIN - 0.01)).flags == ["uncertain_language"]


@pytest.mark.parametrize(
    ("doubted", "known", "flags"),
    [(2, 5, []), (3, 6, ["uncertain_language"]), (3, 7, []), (1, 0, ["uncertain_language"])],
)
@pytest.mark.parametrize("of", ["votes", "elected"])
def test_speech_in_another_language_than_the_voters_is_flagged(
    doubted: int, known: int, flags: list[str], of: str
) -> None:
    """Windows after the first ones are decoded in the language that was voted for, whatever is spoken there."""
    right = [heard(language_probability=0.99)] * known
    wrong = [heard(language_probability=0.01)] * doubted
    silent = [heard("", language_probability=0.01)] * 20
    windows = [sent(10.0, 30.0 * at, 30.0 * (at + 1)) for at in range(known + doubted + 20)]

    def transcript(**kind: bool) -> Transcript:
        recording = Recording(windows=windows, **kind)  # type: ignore[arg-type]
        return join(recording, [*right, *wrong, *silent], Vote("en", 0.99), timestamps=False, model="m", attempts=1)

    assert transcript(**{of: True}).flags == flags
    assert transcript().flags == []


# Figures and segments.


def test_figures_of_the_whole() -> None:
    windows = [sent(9.0, 0.0, 30.0), sent(4.0, 30.0, 40.0)]
    results = [
        heard(avg_logprob=-0.1, no_speech_prob=0.0, compression_ratio=1.1, temperature=0.4, attempts=3),
        heard(avg_logprob=-0.5, no_speech_prob=0.8, compression_ratio=2.1, temperature=0.0),
    ]

    result = join(
        Recording(windows=windows, duration_s=44.0), results, Vote("de", 0.7), timestamps=False, model="m", attempts=2
    )

    assert (result.language, result.language_probability) == ("de", 0.7)
    assert (result.duration, result.speech_seconds, result.model, result.attempts) == (44.0, 13.0, "m", 2)
    # Means by the windows' lengths, and the worst of what a mean would hide.
    assert result.avg_logprob == pytest.approx((-0.1 * 30 - 0.5 * 10) / 40)
    assert result.no_speech_prob == pytest.approx(0.8 * 10 / 40)
    assert (result.compression_ratio, result.temperature) == (2.1, 0.4)
    assert result.segments is None


def test_silence_that_is_left_out_has_no_weight() -> None:
    # Given a window in whose middle an hour of silence is left out
    windows = [replace(sent(9.0, 0.0, 3630.0), cuts=((10.0, 3600.0),)), sent(9.0, 3630.0, 3660.0)]
    results = [heard(avg_logprob=-0.9, no_speech_prob=0.5), heard(avg_logprob=-0.1, no_speech_prob=0.0)]

    result = join(Recording(windows=windows), results, Vote("de", 0.7), timestamps=False, model="m", attempts=1)

    assert result.avg_logprob == pytest.approx(-0.5)
    assert result.no_speech_prob == pytest.approx(0.25)


def test_segments_are_in_seconds_of_the_recording() -> None:
    results = [
        heard("one two", segments=(WindowSegment(0.0, 1.0, "one"), WindowSegment(1.5, 40.0, "two"))),
        heard("three", segments=(WindowSegment(0.25, 2.0, "three"),)),
    ]

    assert joined(*results, timestamps=True).segments == [
        Segment(start=0.0, end=1.0, text="one"),
        Segment(start=1.5, end=30.0, text="two"),
        Segment(start=30.25, end=32.0, text="three"),
    ]
    # A retry has timestamps whether they were asked for or not.
    assert joined(*results, timestamps=False).segments is None


@pytest.mark.parametrize(("timestamps", "segments"), [(True, []), (False, None)])
def test_transcript_of_silence(timestamps: bool, segments: list[Segment] | None) -> None:
    result = silence(Recording(duration_s=3.0, flags=("truncated",)), timestamps=timestamps, model="m", attempts=2)

    assert result == Transcript(
        text="", segments=segments, duration=3.0, model="m", flags=["no_speech", "truncated"], attempts=2
    )


# Texts.


@given(
    st.sampled_from(["en", "ko", *sorted(LANGUAGES_WITHOUT_SPACES)]),
    st.lists(st.text("abc \n\t äж,.", max_size=12), min_size=1, max_size=5),
)
def test_words_keep_their_borders(language: str, texts: list[str]) -> None:
    """Also in a translation from a language without spaces, whose text is English."""
    result = joined(*(heard(text, language=language) for text in texts))

    assert result.text.split() == [word for text in texts for word in text.split()]
    assert result.text == " ".join(result.text.split())


@given(
    st.sampled_from(sorted(LANGUAGES_WITHOUT_SPACES)),
    st.lists(st.text("天气很好はいขอບດမြ。", max_size=12), min_size=1, max_size=5),
)
def test_scripts_without_spaces_are_joined_without(language: str, texts: list[str]) -> None:
    texts = [text if text.strip("。") else "" for text in texts]

    assert joined(*(heard(text, language=language) for text in texts)).text == "".join(texts)


def test_korean_has_spaces() -> None:
    texts = ["안녕하세요", "감사합니다"]

    assert joined(*(heard(text, language="ko") for text in texts)).text == " ".join(texts)


def test_each_window_is_joined_as_its_own_language_is_written() -> None:
    texts = [("zh", "天气"), ("zh", "很好"), ("en", "It is"), ("en", "warm."), ("en", ""), ("zh", "好"), ("zh", "吗")]

    result = joined(*(heard(text, language=language) for language, text in texts), votes=False)

    assert result.text == "天气很好 It is warm. 好吗"
    assert result.language == "zh"

"""A window is heard to its end, whatever its first decoding left out."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest

from scripted_engine import FACTS, ScriptedEngine, heard
from workers.errors import EngineLostError
from workers.fallback import FallbackDecoder
from workers.gates import MISSED_SECONDS, Gates
from workers.interface import WindowRequest, WindowResult, WindowSegment
from workers.seek import USUAL_BYTES_PER_SECOND, SeekingDecoder, joined, speech_after

RATE = 16_000


def window(seconds: float, *, timestamps: bool = True, language: str | None = None) -> WindowRequest:
    samples = np.arange(int(seconds * RATE), dtype=np.float32)
    return WindowRequest(samples, "transcribe", language, timestamps=timestamps)


def said(text: str, *times: tuple[float, float], language: str = "en") -> WindowResult:
    segments = tuple(WindowSegment(start, end, text) for start, end in times)
    return heard(text, language=language, segments=segments, avg_logprob=-0.2)


class Script:
    """Answers windows from a list, and remembers where each part of the window began."""

    def __init__(self, *answers: WindowResult | Exception) -> None:
        self.answers = answers
        self.engine = ScriptedEngine(self.answer, FACTS)

    def answer(self, request: WindowRequest, number: int) -> WindowResult | Exception:
        return self.answers[number]

    @property
    def starts_s(self) -> list[float]:
        return [float(request.samples[0]) / RATE for request in self.engine.requests]


@pytest.fixture
def decoders() -> Iterator[list[SeekingDecoder]]:
    made: list[SeekingDecoder] = []
    yield made
    for decoder in made:
        decoder.close()


def decode(
    decoders: list[SeekingDecoder], script: Script, request: WindowRequest, *speech: tuple[float, float]
) -> Future[WindowResult]:
    decoders.append(SeekingDecoder(FallbackDecoder(script.engine, Gates())))
    return decoders[-1].submit(request, speech, "row/window")


def test_the_rest_is_decoded_from_the_last_timestamp_on(decoders: list[SeekingDecoder]) -> None:
    # Given a model that stops after 10 s of 30 s of speech, and then after 8 s of the rest
    script = Script(said("one", (0.5, 10.0), language="de"), said("two", (0.0, 8.0)), said("three", (1.0, 12.0)))
    # When the window is decoded
    result = decode(decoders, script, window(30), (0.5, 30.0)).result(10)
    # Then everything is there, in order, with times of the window, in the language that was heard first
    assert script.starts_s == [0.0, 10.0, 18.0]
    assert [request.language for request in script.engine.requests] == [None, "de", "de"]
    assert [request.urgent for request in script.engine.requests] == [False, True, True]
    assert result.text == "one two three"
    assert [(one.start, one.end) for one in result.segments] == [(0.5, 10.0), (10.0, 18.0), (19.0, 30.0)]
    assert result.attempts == 3


def test_silence_after_the_last_word_is_no_reason_to_go_on(decoders: list[SeekingDecoder]) -> None:
    script = Script(said("all", (0.0, 10.0)))
    assert decode(decoders, script, window(30), (0.5, 10.9)).result(10).text == "all"
    assert script.starts_s == [0.0]


def test_without_timestamps_nobody_knows_how_far_the_model_has_heard(decoders: list[SeekingDecoder]) -> None:
    script = Script(said("all"))
    assert decode(decoders, script, window(30, timestamps=False), (0.5, 30.0)).result(10).text == "all"
    assert script.starts_s == [0.0]


def test_a_retry_is_heard_to_its_end_too(decoders: list[SeekingDecoder]) -> None:
    # Given a first try that loops, and a retry that stops early
    loop = said("no no no no no no no no")
    script = Script(loop, said("one", (0.0, 10.0)), said("two"))
    result = decode(decoders, script, window(30), (0.5, 30.0)).result(10)
    # Then the rest is decoded as well
    assert script.starts_s == [0.0, 0.0, 10.0]
    assert result.text == "one two"


def test_the_decoder_is_told_of_later_pauses_and_segments_are_moved_to_them(decoders: list[SeekingDecoder]) -> None:
    script = Script(said("one", (0.0, 10.2)), said("two", (0.8, 8.8)))
    told = replace(window(30), pauses=((9.7, 12.2),))
    result = decode(decoders, script, told, (1.0, 10.0), (12.0, 20.0)).result(10)

    assert [request.pauses for request in script.engine.requests] == [
        ((9.7, 12.2),),
        (pytest.approx((0.0, 1.2)),),
    ]
    assert script.starts_s == [0.0, 11.0]
    assert [(one.start, one.end) for one in result.segments] == [(1.0, 10.0), (12.0, 20.0)]


def test_the_decoder_is_told_of_no_pauses_later_if_it_was_not_at_first(decoders: list[SeekingDecoder]) -> None:
    script = Script(said("one", (0.0, 10.2)), said("two", (0.8, 8.8)))
    decode(decoders, script, window(30), (1.0, 10.0), (12.0, 20.0)).result(10)
    assert [request.pauses for request in script.engine.requests] == [(), ()]


def test_an_utterance_after_a_pause_is_heard_however_short_it_is(decoders: list[SeekingDecoder]) -> None:
    # Given a model that stops at a pause, after which somebody says one more word
    script = Script(said("one", (0.5, 10.0)), said("two", (0.8, 1.6)))
    result = decode(decoders, script, window(30), (0.5, 10.0), (13.0, 13.8)).result(10)
    assert script.starts_s == [0.0, 12.0]
    assert result.text == "one two"
    assert [(one.start, one.end) for one in result.segments] == [(0.5, 10.0), (13.0, 13.8)]


def test_a_noise_after_a_pause_is_not(decoders: list[SeekingDecoder]) -> None:
    script = Script(said("one", (0.5, 10.0)))
    assert decode(decoders, script, window(30), (0.5, 10.0), (13.0, 13.4)).result(10).text == "one"
    assert script.starts_s == [0.0]


@pytest.mark.parametrize(("until_s", "from_s"), [(9.9, 12.0), (13.2, 12.7)])
def test_no_word_beside_a_pause_is_heard_in_two(decoders: list[SeekingDecoder], until_s: float, from_s: float) -> None:
    """A timestamp shortly before a pause or after it means the pause."""
    script = Script(said("one", (0.0, until_s)), said("two", (0.5, 15.9)))
    decode(decoders, script, window(30), (0.0, 10.2), (13.0, 28.0)).result(10)
    assert script.starts_s == [0.0, pytest.approx(from_s, abs=1e-4)]


def test_a_word_between_two_pauses_is_not_heard_again_and_again(decoders: list[SeekingDecoder]) -> None:
    # Given a model that stops after a word of a moment, each time
    word = said("yes", (0.3, 0.38))
    script = Script(said("one", (0.0, 10.08)), word, word, said("two", (0.0, 14.0)), *[word] * 4)
    decode(decoders, script, window(30), (0.0, 8.0), (10.0, 10.2), (11.0, 25.0)).result(10)
    # Then each part begins later than the one before
    assert script.starts_s == sorted(set(script.starts_s))


def test_a_model_that_does_not_get_on_is_not_asked_for_ever(decoders: list[SeekingDecoder]) -> None:
    script = Script(*(said(str(number), (0.0, 1.0)) for number in range(20)))
    result = decode(decoders, script, window(30), (0.0, 30.0)).result(10)
    assert script.starts_s == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert (result.text, result.flags) == ("0 1 2 3 4 5", ("cut_off",))


def test_a_text_that_ran_out_of_tokens_is_taken_up_where_it_was_whole(decoders: list[SeekingDecoder]) -> None:
    # Given a model whose tokens end in the middle of its second segment, and then in the middle of its last
    one, two = WindowSegment(0.0, 5.0, "one"), WindowSegment(5.0, 30.0, "tw")
    first = heard("one tw", segments=(one, two), whole=("one", (one,)), finished=False)
    three, four = WindowSegment(0.0, 9.0, "two"), WindowSegment(9.0, 25.0, "thr")
    second = heard("two thr", segments=(three, four), whole=("two", (three,)), finished=False)
    script = Script(first, second, said("three", (0.0, 15.5)))
    # When
    result = decode(decoders, script, window(30), (0.0, 30.0)).result(10)
    # Then
    assert script.starts_s == [0.0, 5.0, 14.0]
    assert (result.text, result.flags, result.whole) == ("one two three", (), None)
    assert [(one.start, one.end) for one in result.segments] == [(0.0, 5.0), (5.0, 14.0), (14.0, 30.0)]


def test_a_piece_of_text_that_ran_out_of_tokens_is_left_out_where_nothing_is_heard_in_its_place(
    decoders: list[SeekingDecoder],
) -> None:
    one = WindowSegment(0.0, 5.0, "one")
    first = heard("one tw", segments=(one, WindowSegment(5.0, 30.0, "tw")), whole=("one", (one,)), finished=False)
    script = Script(first, heard("", no_speech_prob=0.9))
    result = decode(decoders, script, window(30), (0.0, 30.0)).result(10)
    assert script.starts_s == [0.0, 5.0]
    assert (result.text, result.flags) == ("one", ("empty",))


NO = "no, " * 8


def looped(text: str, start: float, end: float, *before: WindowSegment) -> list[WindowResult]:
    """Six tries, each of them stopped in a loop: ``text`` from ``start`` on, behind segments that have an end."""
    whole = (" ".join(one.text for one in before), before)
    one = heard(
        " ".join([*(one.text for one in before), text]),
        segments=(*before, WindowSegment(start, end, text)),
        whole=whole,
        finished=False,
        flags=("repetition",),
    )
    return [one] * 6


def test_what_follows_a_loop_is_heard_from_where_it_began(decoders: list[SeekingDecoder]) -> None:
    # Given a model that loops two seconds into a window, whatever the temperature, but not from there on
    script = Script(*looped(NO, 2.0, 30.0, WindowSegment(0.0, 2.0, "one")), said("no, no, two", (0.0, 27.0)))
    # When
    result = decode(decoders, script, window(30), (0.0, 29.0)).result(10)
    # Then all is heard, and no loop is left
    assert script.starts_s == [*[0.0] * 6, 2.0]
    assert (result.text, result.flags) == ("one no, no, two", ())
    assert [(one.start, one.end) for one in result.segments] == [(0.0, 2.0), (2.0, 29.0)]


def test_a_loop_that_comes_again_is_kept_and_the_rest_is_heard_after_the_next_pause(
    decoders: list[SeekingDecoder],
) -> None:
    # Given a model that loops again when it is asked to hear on from where the loop began
    one, two = WindowSegment(0.0, 2.0, "one"), said("two", (0.2, 20.3))
    script = Script(*looped(NO, 2.0, 30.0, one), *looped(NO, 0.2, 28.0), two)
    # When somebody pauses later
    result = decode(decoders, script, window(30), (0.0, 8.0), (9.0, 29.0)).result(10)
    # Then what follows is heard, and the loop has a plausible length
    assert script.starts_s == [*[0.0] * 6, *[2.0] * 6, pytest.approx(8.7, abs=1e-4)]
    assert (result.text, result.flags) == (f"one {NO} two".replace("  ", " "), ("repetition",))
    (_, loop, last) = result.segments
    assert (loop.start, last.start, last.end) == (2.2, 9.0, 29.0)
    assert loop.end == pytest.approx(2.2 + len(NO) / USUAL_BYTES_PER_SECOND, abs=0.01)


def test_a_loop_with_an_end_is_flagged_though_what_follows_is_heard(decoders: list[SeekingDecoder]) -> None:
    script = Script(*looped("and so on", 5.0, 30.0, WindowSegment(0.0, 5.0, NO)), said("two", (0.0, 24.0)))
    result = decode(decoders, script, window(30), (0.0, 29.0)).result(10)
    assert script.starts_s == [*[0.0] * 6, 5.0]
    assert (result.text, result.flags) == (f"{NO}two", ("repetition",))


def test_speech_behind_a_loop_that_nobody_can_hear_is_said_to_be_cut_off(decoders: list[SeekingDecoder]) -> None:
    script = Script(*looped(NO, 0.5, 30.0))
    result = decode(decoders, script, window(30), (0.5, 29.0)).result(10)
    assert (result.text, result.flags) == (NO, ("repetition", "cut_off"))
    assert result.segments[-1].end < 5.0, "nothing is known of where it ends, but it is not the window's end"


def test_a_loop_to_the_end_of_speech_is_all_there_is(decoders: list[SeekingDecoder]) -> None:
    script = Script(*looped(NO, 0.0, 3.0))
    result = decode(decoders, script, window(3), (0.5, 2.6)).result(10)
    assert (result.flags, [(one.start, one.end) for one in result.segments]) == (("repetition",), [(0.5, 2.6)])
    assert set(script.starts_s) == {0.0}


def test_a_loop_behind_the_last_speech_is_invented(decoders: list[SeekingDecoder]) -> None:
    # Given a model that says what is said, and goes on where nobody speaks any more
    script = Script(*looped(NO, 10.0, 13.0, WindowSegment(0.0, 10.0, "one")))
    result = decode(decoders, script, window(13), (0.0, 10.0)).result(10)
    assert set(script.starts_s) == {0.0}
    assert (result.text, result.flags) == ("one", ())
    assert [(one.start, one.end) for one in result.segments] == [(0.0, 10.0)]


def test_what_is_right_before_a_loop_is_kept_though_another_try_is_nonsense(decoders: list[SeekingDecoder]) -> None:
    loop, *loops = looped(NO, 20.0, 30.0, WindowSegment(0.0, 20.0, "one"))
    nonsense = heard("mumble", avg_logprob=-1.6, segments=(WindowSegment(0.0, 30.0, "mumble"),))
    script = Script(*[replace(one, avg_logprob=-0.2) for one in (loop, *loops[:4])], nonsense, said("two", (0.0, 9.0)))
    result = decode(decoders, script, window(30), (0.0, 29.0)).result(10)
    assert script.starts_s == [*[0.0] * 6, 20.0]
    assert (result.text, result.flags) == ("one two", ())


def short_tail(text: str) -> WindowResult:
    """A window that the model ended two seconds after its start, in a segment without an end."""
    one, two = WindowSegment(0.2, 2.0, "one"), WindowSegment(2.0, 29.5, text)
    return heard(f"one {text}", segments=(one, two), whole=("one", (one,)), avg_logprob=-0.2)


def test_a_tail_that_is_too_short_for_its_speech_is_heard_again(decoders: list[SeekingDecoder]) -> None:
    script = Script(short_tail("two"), said("two and all that follows", (0.0, 27.0)))
    result = decode(decoders, script, window(29.5), (0.2, 29.0)).result(10)
    assert script.starts_s == [0.0, 2.0]
    assert (result.text, result.flags) == ("one two and all that follows", ())


def test_a_tail_that_the_model_does_not_get_beyond_is_kept_and_flagged(decoders: list[SeekingDecoder]) -> None:
    script = Script(*[short_tail("two")] * 6)
    result = decode(decoders, script, window(30), (0.0, 30.0)).result(10)
    assert script.starts_s == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    assert (result.text, result.flags) == ("one " * 6 + "two", ("cut_off",))
    assert result.segments[-1].end < 15.0


def alone(text: str, seconds: float = 30.0) -> WindowResult:
    """A window that the model ended without a single end of a segment."""
    return heard(text, segments=(WindowSegment(0.0, seconds, text),), whole=("", ()), avg_logprob=-0.2)


def test_a_text_without_any_end_that_is_too_short_for_its_speech_is_heard_on_behind_the_next_pause(
    decoders: list[SeekingDecoder],
) -> None:
    script = Script(alone("hello"), said("all that follows", (0.3, 24.0)))
    result = decode(decoders, script, window(30), (0.2, 3.0), (5.0, 29.0)).result(10)
    assert script.starts_s == [0.0, pytest.approx(4.7, abs=0.1)]
    assert (result.text, result.flags) == ("hello all that follows", ())
    assert result.segments[0].end <= 3.0


@pytest.mark.parametrize(
    ("rest", "ends_s", "text"),
    [([said("all that follows", (0.3, 13.3))], 29.0, "hello all that follows"), ([heard("")] * 6, 17.0, "hello")],
)
def test_speech_before_that_pause_that_nobody_hears_is_said_to_be_missing(
    decoders: list[SeekingDecoder], rest: list[WindowResult], ends_s: float, text: str
) -> None:
    script = Script(alone("hello"), *rest)
    result = decode(decoders, script, window(30), (0.2, 14.0), (16.0, ends_s)).result(10)
    assert script.starts_s[:2] == [0.0, pytest.approx(15.7, abs=0.1)]
    assert (result.text, result.flags) == (text, ("cut_off",))


def test_a_rest_with_hardly_any_speech_may_have_no_words(decoders: list[SeekingDecoder]) -> None:
    """However much is said before it: it is not tried again and again."""
    script = Script(alone("what there is to say in eight seconds"), *[heard("")] * 6)
    result = decode(decoders, script, window(30), (0.0, 7.8), (10.0, 10.4)).result(10)
    assert script.starts_s == [0.0, pytest.approx(9.7, abs=0.01)]
    assert (result.text, result.flags) == ("what there is to say in eight seconds", ())


def test_what_is_heard_again_and_has_no_end_either_is_said_to_be_cut_off(decoders: list[SeekingDecoder]) -> None:
    script = Script(short_tail("two"), alone("two", 27.5))
    result = decode(decoders, script, window(29.5), (0.2, 29.0)).result(10)
    assert script.starts_s == [0.0, 2.0]
    assert (result.text, result.flags) == ("one two", ("cut_off",))
    assert result.segments[-1].end < 5.0


def test_a_text_without_any_end_that_fills_its_window_is_taken_as_it_is(decoders: list[SeekingDecoder]) -> None:
    """As of a model that was trained without timestamps."""
    script = Script(alone(LONG * 2))
    result = decode(decoders, script, window(30), (0.2, 29.0)).result(10)
    assert script.starts_s == [0.0]
    assert (result.text, result.flags) == (LONG * 2, ())
    assert [(one.start, one.end) for one in result.segments] == [(0.2, 29.0)]


def test_a_tail_stays_where_nothing_is_heard_in_its_place(decoders: list[SeekingDecoder]) -> None:
    """Applause that voice activity takes for speech."""
    script = Script(short_tail("thank you"), heard("", no_speech_prob=0.9, avg_logprob=-0.2))
    result = decode(decoders, script, window(29.5), (0.2, 29.0)).result(10)
    assert script.starts_s == [0.0, 2.0]
    assert (result.text, result.flags) == ("one thank you", ("empty",))
    assert result.segments[-1].end < 5.0


def test_slow_speech_before_a_loop_is_not_heard_twice(decoders: list[SeekingDecoder]) -> None:
    slow = "what I have to say to you takes its time, and I have a lot of it to say, you know that, and " + NO
    script = Script(*looped(slow, 0.0, 30.0), said("two", (0.3, 4.0)))
    result = decode(decoders, script, window(30), (0.0, 9.5), (10.0, 24.5), (25.0, 29.0)).result(10)
    assert script.starts_s[6:] == [pytest.approx(24.7, abs=0.1)]
    assert result.text == f"{slow.strip()} two"


#: As much as one says in half a minute, slowly.
LONG = (
    "the train to London leaves at ten in the morning, and whoever wants to be there has to take the bus at nine,"
    " which stops behind the church"
)


@pytest.mark.parametrize(("tail", "speech_end_s"), [(LONG, 29.0), ("two", 4.9)])
def test_an_ordinary_tail_is_not_heard_twice(decoders: list[SeekingDecoder], tail: str, speech_end_s: float) -> None:
    script = Script(short_tail(tail))
    result = decode(decoders, script, window(29.5), (0.2, speech_end_s)).result(10)
    assert script.starts_s == [0.0]
    assert (result.text, result.flags, result.segments[-1].end) == (f"one {tail}", (), speech_end_s)


def test_a_text_that_ran_out_where_nobody_speaks_any_more_is_kept(decoders: list[SeekingDecoder]) -> None:
    one = WindowSegment(0.0, 5.0, "one")
    answer = heard("one tw", segments=(one, WindowSegment(5.0, 30.0, "tw")), whole=("one", (one,)), finished=False)
    result = decode(decoders, Script(answer), window(30), (0.0, 5.5)).result(10)
    assert (result.text, result.whole) == ("one tw", None)


@pytest.mark.parametrize("no_speech_prob", [0.1, 0.97])
@pytest.mark.parametrize(
    ("speech_end_s", "flags"), [(30.0, ("empty",)), (5.0 + MISSED_SECONDS, ("empty",)), (7.99, ())]
)
def test_speech_for_which_no_try_had_words_is_said_to_be_missing(
    decoders: list[SeekingDecoder], speech_end_s: float, flags: tuple[str, ...], no_speech_prob: float
) -> None:
    nothing = heard("", avg_logprob=-0.2, no_speech_prob=no_speech_prob)
    script = Script(said("one", (0.0, 5.0)), *[nothing] * 6)
    result = decode(decoders, script, window(30), (0.0, speech_end_s)).result(10)
    assert (result.text, result.flags) == ("one", flags)


def test_nothing_is_left_of_a_text_that_is_taken_for_silence(decoders: list[SeekingDecoder]) -> None:
    """No more is heard of it either, though its last segment had no end."""
    thank, you = WindowSegment(0.0, 2.0, "thank"), WindowSegment(2.0, 3.0, "you")
    unlikely = {"avg_logprob": -2.0, "no_speech_prob": 0.9}
    script = Script(heard("thank you", segments=(thank, you), whole=("thank", (thank,)), finished=True, **unlikely))
    result = decode(decoders, script, window(30), (0.0, 2.0)).result(10)
    assert (result.text, result.segments, result.flags) == ("", (), ("no_speech",))
    assert script.starts_s == [0.0]


def test_a_lost_engine_reaches_the_one_who_waits(decoders: list[SeekingDecoder]) -> None:
    script = Script(said("one", (0.5, 10.0)), EngineLostError("gone"))
    with pytest.raises(EngineLostError, match="gone"):
        decode(decoders, script, window(30), (0.5, 30.0)).result(10)


def test_parts_without_words_add_no_flags() -> None:
    empty = heard("", flags=("empty",), avg_logprob=-3.0)
    result = joined([(0.0, said("one", (0.0, 5.0))), (5.0, empty)])
    assert (result.text, result.flags) == ("one", ())


def test_figures_of_parts_are_weighed_by_the_length_of_their_text() -> None:
    long, short = heard("a" * 30, avg_logprob=-0.2), heard("b" * 10, avg_logprob=-1.0)
    assert joined([(0.0, long), (5.0, short)]).avg_logprob == pytest.approx(-0.4)


def test_speech_after_a_time() -> None:
    assert speech_after([(0.0, 2.0), (3.0, 5.0)], 1.0) == pytest.approx(3.0)
    assert speech_after([(0.0, 2.0)], 2.5) == 0.0

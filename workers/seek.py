"""One window heard to its end: where the model stops before the speech does, the rest is decoded from there on.

Whisper ends many windows early, most of all after a pause or before half a sentence, and in some scripts a window has
more text than the model has tokens, and a loop is stopped in the middle; openai/whisper (`transcribe.py`, `seek`) and
faster-whisper go on from the last timestamp, and so does this. Only decoding with timestamps tells how far the model
has heard: results without segments are taken as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from workers.decoding import CUT_OFF, compression_ratio
from workers.fallback import FallbackDecoder
from workers.gates import CLEAR_SPEECH_SECONDS, MISSED_SECONDS, SPARSE_BYTES_PER_SECOND, sparse
from workers.interface import SAMPLE_RATE_HZ, WindowRequest, WindowResult, WindowSegment
from workers.joining import joined_text
from workers.later import Later
from workers.pauses import Speech, next_utterance, pauses_after, snapped, taken_up

#: Less speech than this after the last timestamp is taken for the end of its last word, unless a pause lies before it.
REST_SECONDS = 1.0
#: A window is cut into no more parts than this.
MOST_PARTS = 6
#: Bytes of text (UTF-8) to a second of speech as it usually is, in English and in Chinese: so long is said to take what
#: has no end.
USUAL_BYTES_PER_SECOND = 15.0


@dataclass(slots=True)
class _Window:
    request: WindowRequest
    speech: Speech
    identity: str
    answer: Future[WindowResult] = field(default_factory=Future)
    #: Where each part starts in the window, in seconds, and what was heard from there.
    parts: list[tuple[float, WindowResult]] = field(default_factory=list)
    #: The last of these with a tail that is heard again, as it seems too short for the speech there.
    with_tail: WindowResult | None = None


class SeekingDecoder:
    """Decodes windows and what their first decoding left out. Safe from any thread."""

    def __init__(self, decoder: FallbackDecoder) -> None:
        self._decoder = decoder
        self._later = Later("seek")

    def submit(self, request: WindowRequest, speech: Speech, identity: str) -> Future[WindowResult]:
        """Start one window. ``speech``: where somebody speaks in it."""
        window = _Window(request, speech, identity)
        self._hear(window, 0.0)
        return window.answer

    def close(self) -> None:
        """Start nothing more."""
        self._later.close()
        self._decoder.close()

    def _hear(self, window: _Window, start_s: float) -> None:
        request = window.request
        if start_s:
            rest = request.samples[int(start_s * SAMPLE_RATE_HZ) :]
            pauses = pauses_after(window.speech, start_s) if request.pauses else ()
            language = window.parts[0][1].language
            request = replace(request, samples=rest, language=language, pauses=pauses, urgent=True)
        speech_s = speech_after(window.speech, start_s)
        future = self._decoder.submit(request, speech_s, f"{window.identity}/{start_s:.2f}")
        future.add_done_callback(lambda done: self._heard(window, start_s, done))

    def _ended(self, window: _Window, unheard_s: float) -> WindowResult:
        result = joined(window.parts)
        flags = result.flags
        if unheard_s >= MISSED_SECONDS:
            flags = tuple(dict.fromkeys((*flags, CUT_OFF if window.parts[-1][1].text else "empty")))
        return replace(result, segments=snapped(result.segments, window.speech), flags=flags, whole=None)

    def _heard(self, window: _Window, start_s: float, done: Future[WindowResult]) -> None:
        try:
            result = done.result()
            if window.with_tail is not None and not result.text:  # there is no more than that
                began_s, kept = window.parts[-1]
                whole = _with_end(window.with_tail)
                window.parts[-1] = (began_s, _cut_off(whole) if CUT_OFF in kept.flags else whole)
            part, until_s, again_s = self._part(result, window.speech, start_s)
            more = _says_more(window.speech, until_s)
            window.with_tail = result if part is not result and result.finished else None
            if more and again_s is not None and len(window.parts) + 1 < MOST_PARTS:
                window.parts.append((start_s, part))
                self._later.run(window.answer, lambda: self._hear(window, again_s))
            else:
                told = part is not result or bool(window.parts)
                window.parts.append((start_s, _last_part(result, part, more=more)))
                window.answer.set_result(self._ended(window, speech_after(window.speech, until_s) if told else 0.0))
        except BaseException as error:  # noqa: BLE001 - whatever it is, the one who waits for the window gets it
            window.answer.set_exception(error)

    def _part(self, result: WindowResult, speech: Speech, start_s: float) -> tuple[WindowResult, float, float | None]:
        """What is kept of a result if its rest is heard, where that begins, and where to hear on: None for nowhere.

        Never from where this part began, as it would be heard as it was.
        """
        heard = self._whole(result) if _is_open(result, speech, start_s) else result
        part = heard or _with_end(result)
        until_s = start_s + (part.segments[-1].end if part.segments else 0.0)
        if heard is None:  # nothing with an end: behind the next pause, when all of it is said however slowly
            slowest_s = len(result.text.encode("utf-8")) / SPARSE_BYTES_PER_SECOND
            said_s = max(until_s, start_s + slowest_s)
            utterance_s = next_utterance(speech, said_s)
            again_s = start_s if utterance_s is None else taken_up(speech, utterance_s)
            if again_s <= start_s:
                return part, until_s, None
            if speech_after(speech, said_s) - speech_after(speech, again_s) >= MISSED_SECONDS:
                part = _cut_off(part)
            return part, until_s, again_s
        if until_s <= start_s:
            return part, until_s, None
        again_s = taken_up(speech, until_s)
        return part, until_s, again_s if again_s > start_s else until_s

    def _whole(self, result: WindowResult) -> WindowResult | None:
        """What is said up to a result's last end of a segment, None without one."""
        text, segments = result.whole or ("", ())
        if not segments:
            return None
        ratio = compression_ratio(text)
        loops = self._decoder.gates.repeats(text, ratio)
        flags = tuple(flag for flag in result.flags if loops or flag != "repetition")
        return replace(result, text=text, segments=segments, compression_ratio=ratio, flags=flags, whole=None)


def _last_part(result: WindowResult, part: WindowResult, *, more: bool) -> WindowResult:
    """What is kept of a result behind which nothing is heard; ``part``: what would be, if something were.

    ``more``: there is speech that it does not reach. Where there is none a loop was invented, and not what is before.
    """
    if part is result:
        return result
    if more:
        return _with_end(result)
    invented = not result.finished and "repetition" in result.flags and bool(part.segments)
    return part if invented else result


def _cut_off(result: WindowResult) -> WindowResult:
    """The result, said to lack some of what was said."""
    return replace(result, flags=tuple(dict.fromkeys((*result.flags, CUT_OFF))))


def _is_open(result: WindowResult, speech: Speech, start_s: float) -> bool:
    """Whether it is not known where the last segment ends.

    A tail that the model itself ended goes to the end of its window, unless it is too short for the speech there.
    """
    if result.whole is None or not result.finished:
        return result.whole is not None
    tail = result.segments[-1]
    behind_s = speech_after(speech, start_s + tail.start)
    return behind_s >= MISSED_SECONDS and sparse(tail.text, behind_s)


def _with_end(result: WindowResult) -> WindowResult:
    """The result with a last segment that lasts no longer than its text usually does."""
    if not result.segments:
        return replace(result, whole=None)
    *others, tail = result.segments
    usual_s = len(tail.text.encode("utf-8")) / USUAL_BYTES_PER_SECOND
    return replace(result, segments=(*others, replace(tail, end=min(tail.end, tail.start + usual_s))), whole=None)


def _says_more(speech: Speech, until_s: float) -> bool:
    """Whether there is speech after a timestamp that is more than the end of the last word."""
    again_s = next_utterance(speech, until_s)
    return speech_after(speech, until_s) >= REST_SECONDS or (
        again_s is not None and speech_after(speech, again_s) >= CLEAR_SPEECH_SECONDS
    )


def speech_after(speech: Speech, time_s: float) -> float:
    """Seconds of speech from ``time_s`` on."""
    return sum(max(0.0, end - max(start, time_s)) for start, end in speech)


def joined(parts: Sequence[tuple[float, WindowResult]]) -> WindowResult:
    """One result of a window's parts: texts and segments in order, figures by the length of the text."""
    first = parts[0][1]
    if len(parts) == 1:
        return first
    results = [result for _, result in parts]
    heard = [result for result in results if result.text]
    weights = [max(1, len(result.text)) for result in results]
    flags = dict.fromkeys(flag for result in heard or results for flag in result.flags)
    return replace(
        first,
        text=joined_text(results),
        segments=tuple(
            WindowSegment(round(start_s + one.start, 2), round(start_s + one.end, 2), one.text)
            for start_s, result in parts
            for one in result.segments
        ),
        avg_logprob=sum(r.avg_logprob * w for r, w in zip(results, weights, strict=True)) / sum(weights),
        compression_ratio=max(result.compression_ratio for result in results),
        temperature=max(result.temperature for result in results),
        flags=tuple(flags),
        attempts=sum(result.attempts for result in results),
    )

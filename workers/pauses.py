"""What voice activity knows of a window's pauses: it tells the decoder where segments may end, and mends their times.

Whisper-base alone joins sentences across pauses of half a second, and its times are off by half a second now and then.
Measured on a reading of 32 sentences with 0.6 s between them: 23 segments start within 0.5 s of a sentence without
either of the two, 26 with mended times, 31 with both. Shorter segments change the style of a text now and then (numbers
as words), so the decoder is told of pauses only where somebody asks for segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from workers.interface import WindowSegment

#: Stretches of speech in a window, in seconds from its start.
Speech = Sequence[tuple[float, float]]

#: A shorter pause ends no segment.
PAUSE_SECONDS = 0.3
#: By how much the model's timestamps may come before or after a pause and still mean it.
EARLY_SECONDS, LATE_SECONDS = 0.3, 0.2
#: A segment that starts or ends so near to where speech does, starts or ends there.
SNAP_SECONDS = 0.7
#: The model's first timestamp is no later (openai/whisper `decoding.py`: max_initial_timestamp).
FIRST_SECONDS = 1.0
#: Heard before speech that is taken up again.
RUN_UP_SECONDS = 0.3


def pauses_after(speech: Speech, time_s: float) -> tuple[tuple[float, float], ...]:
    """The stretches in which a timestamp may mean a pause, after ``time_s`` and counted from it."""
    return tuple(
        (max(0.0, end - time_s - EARLY_SECONDS), start - time_s + LATE_SECONDS)
        for end, start in _pauses(speech)
        if start > time_s
    )


def snapped(segments: Sequence[WindowSegment], speech: Speech) -> tuple[WindowSegment, ...]:
    """The segments with their starts and ends moved to those of speech; they keep their order and a length.

    Over speech nothing moves farther than to what is nearby. Over silence it does: a segment that starts in a pause, or
    means to, and has speech after it starts with that (after a long silence the model cannot say so), and one that ends
    in a pause ends with the speech before it. Nothing moves over half of a neighbour: two short utterances in one
    stretch of speech stay two.
    """
    if not speech:
        return tuple(segments)
    moved: list[WindowSegment] = []
    for number, segment in enumerate(segments):
        end = _end(segment, speech)
        start = _start(segment, max(segment.end, end), speech)
        if number + 1 < len(segments) and end > max(segment.end, _middle(segments[number + 1])):
            end = segment.end
        now = 0.0
        if moved:
            before = moved[-1]
            if max(before.start, _middle(segments[number - 1])) < start < before.end:
                moved[-1] = before = replace(before, end=start)
            now = before.end
        if start < now:
            start = max(segment.start, now)
        if end <= start:
            start = max(segment.start, now)
            end = max(segment.end, start)
        moved.append(replace(segment, start=start, end=end))
    return tuple(moved)


def taken_up(speech: Speech, until_s: float) -> float:
    """Where to hear on after a timestamp: what means a pause leaves no end of a word, and no start of the next out.

    Of the pause as much stays as the model's next timestamp can pass.
    """
    meant = [one for one in _pauses(speech) if one[0] - EARLY_SECONDS <= until_s <= one[1] + LATE_SECONDS]
    if not meant:
        return until_s
    end, start = min(meant, key=lambda one: max(one[0] - until_s, until_s - one[1]))
    if until_s < start:
        return max(until_s, end, start - FIRST_SECONDS)
    return max(end, start - RUN_UP_SECONDS)


def next_utterance(speech: Speech, time_s: float) -> float | None:
    """Where somebody speaks again after a pause, at a time or later."""
    return next((start for _, start in _pauses(speech) if start + LATE_SECONDS >= time_s), None)


def _start(segment: WindowSegment, end_s: float, speech: Speech) -> float:
    pauses = _pauses(speech)
    near = _nearest([speech[0][0], *(after for _, after in pauses)], segment.start)
    if near is not None:
        return near
    for silent_from, silent_to in ((0.0, speech[0][0]), *pauses):
        if silent_from - EARLY_SECONDS <= segment.start < silent_to and silent_to + EARLY_SECONDS <= end_s:
            return silent_to
    return segment.start


def _end(segment: WindowSegment, speech: Speech) -> float:
    pauses = _pauses(speech)
    near = _nearest([*(before for before, _ in pauses), speech[-1][1]], segment.end)
    if near is not None:
        return near
    for silent_from, silent_to in (*pauses, (speech[-1][1], float("inf"))):
        if silent_from < segment.end <= silent_to + LATE_SECONDS and segment.start + EARLY_SECONDS <= silent_from:
            return silent_from
    return segment.end


def _middle(segment: WindowSegment) -> float:
    return (segment.start + segment.end) / 2


def _pauses(speech: Speech) -> list[tuple[float, float]]:
    """Where each pause starts and ends."""
    return [(end, start) for (_, end), (start, _) in pairwise(speech) if start - end >= PAUSE_SECONDS]


def _nearest(times: Sequence[float], time_s: float) -> float | None:
    """The nearest of ``times`` to one, None where none is near."""
    found = min(times, key=lambda other: abs(other - time_s))
    return found if abs(found - time_s) <= SNAP_SECONDS else None

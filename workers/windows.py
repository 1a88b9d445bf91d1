"""From speech probabilities to windows of at most 30 s. Pure logic, no I/O.

Three steps, each a stream in bounded memory: `workers.silence` shortens long silences, `workers.speech_spans` finds
spans of speech, `WindowCutter` packs spans into windows and drops the silence between them. What comes out does not
depend on how the recording was cut into blocks. `workers.joining` puts the answers together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from workers.audio import FRAME_SAMPLES, SAMPLE_RATE_HZ, Block
from workers.silence import Timeline, shortened
from workers.speech_spans import Span, SpanFinder, WindowOptions

Floats = npt.NDArray[np.float32]

#: Kept around the speech of a recording that fits into one window.
EDGE_SECONDS = 3.0
#: A window that has to be closed is closed at its longest pause after this share of it.
LEAST_FILL = 0.6


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of the recording for one request: float32[n] samples, n <= 480,000, from ``start_s`` on.

    ``speech``: where somebody speaks in it, seconds from its start. ``cuts``: where silence is left out, seconds from
    its start, and how many seconds of it.
    """

    index: int
    start_s: float
    samples: Floats
    speech: tuple[tuple[float, float], ...]
    cuts: tuple[tuple[float, float], ...] = ()

    @property
    def speech_s(self) -> float:
        """Seconds of speech in it; the sum over the windows is that of the recording."""
        return sum(end - start for start, end in self.speech)

    @property
    def end_s(self) -> float:
        """Seconds from the start of the recording."""
        left_out = sum(seconds for _, seconds in self.cuts)
        return self.start_s + self.samples.size / SAMPLE_RATE_HZ + left_out


class WindowCutter:
    """Blocks in, windows out. Holds two windows of samples and a block at most: silence is dropped as it passes."""

    def __init__(self, options: WindowOptions) -> None:
        self._options = options
        self._finder = SpanFinder(options)
        self._held: Floats = np.zeros(0, dtype=np.float32)
        self._held_from = 0  # the recording's sample number of the first held one
        self._index = 0
        self._spans: list[tuple[int, int]] = []  # of the open window, in samples, without padding
        self._window_start = 0
        # End of the last span before the open window, in samples; at first so far away that it shares no pause.
        self._last_end = -options.window_samples

    @property
    def held_samples(self) -> int:
        """How much audio is in memory."""
        return self._held.size

    def feed(self, block: Block) -> Iterator[Window]:
        """The windows that are certain after this block."""
        self._held = np.concatenate((self._held, block.samples))
        for span in self._finder.feed(block.speech.tolist()):
            yield from self._add(span)
        next_start = self._finder.earliest_next * FRAME_SAMPLES
        if self._spans and self._is_closed(next_start):
            yield self._emit(next_start)
        # The next window starts at most one padding before the next span.
        keep = self._window_start if self._spans else next_start - self._options.pad_samples
        drop = min(max(0, keep - self._held_from), self._held.size)
        self._held, self._held_from = self._held[drop:].copy(), self._held_from + drop

    def finish(self) -> Iterator[Window]:
        """What was open at the end of the recording."""
        for span in self._finder.finish():
            yield from self._add(span)
        if self._spans:
            yield self._emit(None)

    def _add(self, span: Span) -> Iterator[Window]:
        # The last frame of a recording may be a partial one.
        start, end = span.start * FRAME_SAMPLES, min(span.end * FRAME_SAMPLES, self._held_from + self._held.size)
        while self._spans and end - self._window_start > self._options.window_samples:
            yield self._emit(start, self._best_break(start))
        if not self._spans:
            self._window_start = self._start_of(start)
        self._spans.append((start, end))

    def _is_closed(self, next_start: int) -> bool:
        """Whether no later span fits in, and none takes a part of this window's padding."""
        out_of_reach = next_start - self._window_start >= self._options.window_samples
        return out_of_reach and next_start - self._spans[-1][1] >= 2 * self._options.pad_samples

    def _best_break(self, next_start: int) -> int:
        """How many spans to close a full window with: those before its longest pause in its last part.

        A model that hears half a sentence at the end of a window often leaves it out. Of pauses as long as the
        padding around them, or equal ones, the last.
        """
        starts = [*(start for start, _ in self._spans[1:]), next_start]
        fill = self._options.window_samples * LEAST_FILL
        best, longest = len(self._spans), -1
        for count, ((_, end), following) in enumerate(zip(self._spans, starts, strict=True), start=1):
            pause = min(following - end, 2 * self._options.pad_samples)
            if pause >= longest and (end - self._window_start >= fill or count == len(self._spans)):
                best, longest = count, pause
        return best

    def _emit(self, next_start: int | None, count: int | None = None) -> Window:
        """The open window, or its first ``count`` spans; the others open the next one.

        ``next_start``: where the next span starts (or a sample before which it does not).
        """
        rest = [] if count is None else self._spans[count:]
        spans = self._spans if count is None else self._spans[:count]
        next_start = rest[0][0] if rest else next_start
        start, self._last_end = self._window_start, spans[-1][1]
        end = min(self._last_end + self._options.pad_samples, start + self._options.window_samples)
        if next_start is not None:  # a short pause is shared: half of it each
            end = min(end, (self._last_end + next_start) // 2)
        samples = self._held[start - self._held_from : end - self._held_from].copy()
        speech = tuple(((begin - start) / SAMPLE_RATE_HZ, (stop - start) / SAMPLE_RATE_HZ) for begin, stop in spans)
        window = Window(self._index, start / SAMPLE_RATE_HZ, samples, speech)
        self._index, self._spans = self._index + 1, rest
        if rest:
            self._window_start = self._start_of(rest[0][0])
        return window

    def _start_of(self, first_span: int) -> int:
        """Where a window starts whose speech does at ``first_span``: a short pause before it is shared."""
        return max(first_span - self._options.pad_samples, (self._last_end + first_span) // 2, 0)


def speech_windows(blocks: Iterable[Block], options: WindowOptions) -> Iterator[Window]:
    """The speech of a recording as windows in order, not overlapping, each of at most 30 s; none without speech.

    All speech (stretches longer than ``min_speech_seconds``) is in exactly one window; pauses inside a window stay in
    it, the long ones shortened. A recording that fits into one window keeps more of its edges: voice activity cuts off
    soft beginnings and ends, most of all on telephone speech.
    """
    timeline = Timeline()
    for window in _windows(shortened(blocks, options.neg_threshold, timeline), options):
        yield _placed(window, timeline)


def _windows(blocks: Iterable[Block], options: WindowOptions) -> Iterator[Window]:
    cutter = WindowCutter(options)
    found: list[Window] = []
    short: list[Floats] | None = []  # the recording so far, while it fits into one window
    for block in blocks:
        if short is not None:
            short.append(block.samples)
            short = short if sum(part.size for part in short) <= options.window_samples else None
        found.extend(cutter.feed(block))
        if short is None:
            yield from found
            found.clear()
    found.extend(cutter.finish())
    if short and found:
        yield _whole(np.concatenate(short), found)
    else:
        yield from found


def _placed(window: Window, timeline: Timeline) -> Window:
    """A window of the shortened recording in the real one."""
    start = round(window.start_s * SAMPLE_RATE_HZ)
    cuts = tuple(
        ((position - start) / SAMPLE_RATE_HZ, missing / SAMPLE_RATE_HZ)
        for position, missing in timeline.between(start, start + window.samples.size)
    )
    return replace(window, start_s=(start + timeline.missing_before(start)) / SAMPLE_RATE_HZ, cuts=cuts)


def _whole(samples: Floats, windows: Sequence[Window]) -> Window:
    """One window of a short recording's speech and up to EDGE_SECONDS on both sides of it."""
    speech = [(one.start_s + start, one.start_s + end) for one in windows for start, end in one.speech]
    start = max(0, int((speech[0][0] - EDGE_SECONDS) * SAMPLE_RATE_HZ))
    end = int((speech[-1][1] + EDGE_SECONDS) * SAMPLE_RATE_HZ)
    start_s = start / SAMPLE_RATE_HZ
    return Window(0, start_s, samples[start:end], tuple((begin - start_s, stop - start_s) for begin, stop in speech))

"""Where somebody speaks: speech probabilities in, spans of speech out (Silero's hysteresis). Pure logic, no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from workers.audio import FRAME_SAMPLES, SAMPLE_RATE_HZ
from workers.settings import Settings

#: Whisper's window (Radford et al. 2022, section 2.2): longer audio is cut off without a word.
WINDOW_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class WindowOptions:
    """How speech is told from silence and packed; the settings of the same names explain them."""

    vad_threshold: float = 0.5
    min_silence_seconds: float = 0.16
    min_speech_seconds: float = 0.1
    speech_pad_seconds: float = 0.3
    window_seconds: float = WINDOW_SECONDS

    def __post_init__(self) -> None:
        if not 1.0 <= self.window_seconds <= WINDOW_SECONDS:
            raise ValueError(f"window_seconds={self.window_seconds} must be between 1 and {WINDOW_SECONDS:g}")

    @classmethod
    def from_settings(cls, settings: Settings) -> WindowOptions:
        """The options that the settings of the same names set."""
        return cls(
            vad_threshold=settings.vad_threshold,
            min_silence_seconds=settings.min_silence_seconds,
            min_speech_seconds=settings.min_speech_seconds,
            speech_pad_seconds=settings.speech_pad_seconds,
        )

    @property
    def neg_threshold(self) -> float:
        """Below this a frame ends speech; between the two it goes on (Silero: 0.15 lower, at least 0.01)."""
        return max(self.vad_threshold - 0.15, 0.01)

    @property
    def window_samples(self) -> int:
        """Most samples of a window."""
        return int(self.window_seconds * SAMPLE_RATE_HZ)

    @property
    def pad_samples(self) -> int:
        """Samples kept before and after speech; more than a tenth of a window would leave too little for speech."""
        return int(min(self.speech_pad_seconds, self.window_seconds / 10) * SAMPLE_RATE_HZ)


class Span(NamedTuple):
    """Speech from frame ``start`` to before frame ``end`` (512 samples, 32 ms each)."""

    start: int
    end: int


class SpanFinder:
    """Speech probabilities in, spans of speech out, each no longer than ``max_frames`` (a longer one is cut)."""

    def __init__(self, options: WindowOptions) -> None:
        self._options = options
        self.max_frames = (options.window_samples - options.pad_samples) // FRAME_SAMPLES
        self.position = 0  #: frames seen
        self._start: int | None = None  # first frame of the span that is open
        self._pause: int | None = None  # first frame of the pause that may end it
        self._continued = False  # the open span is the rest of one that was cut
        self._probabilities: list[float] = []  # of the open span

    @property
    def earliest_next(self) -> int:
        """No span that is still to come starts before this frame."""
        return self.position if self._start is None else self._start

    def feed(self, probabilities: Iterable[float]) -> Iterator[Span]:
        """The spans that ended with these frames."""
        for probability in probabilities:
            yield from self._step(float(probability))

    def finish(self) -> Iterator[Span]:
        """The span that was open at the end of the recording, if any."""
        if self._start is not None:
            yield from self._close(self.position if self._pause is None else self._pause)

    def _step(self, probability: float) -> Iterator[Span]:
        frame = self.position
        self.position += 1
        if probability >= self._options.vad_threshold:
            self._pause = None
            if self._start is None:
                self._start = frame
        if self._start is None:
            return
        self._probabilities.append(probability)
        if probability < self._options.neg_threshold:
            self._pause = frame if self._pause is None else self._pause
            silence_seconds = (frame - self._pause) * FRAME_SAMPLES / SAMPLE_RATE_HZ
            if silence_seconds >= self._options.min_silence_seconds:
                yield from self._close(self._pause)
                return
        if len(self._probabilities) >= self.max_frames:
            yield self._cut(self._start)

    def _close(self, end: int) -> Iterator[Span]:
        start, continued = self._start, self._continued
        self._start, self._pause, self._continued, self._probabilities = None, None, False, []
        assert start is not None
        # The rest of a cut span is speech however short; it is nothing if the cut lay in its last pause.
        shortest = 0.0 if continued else self._options.min_speech_seconds
        if (end - start) * FRAME_SAMPLES / SAMPLE_RATE_HZ > shortest:
            yield Span(start, end)

    def _cut(self, start: int) -> Span:
        cut = start + best_cut(self._probabilities, self._options.neg_threshold)
        self._probabilities = self._probabilities[cut - start :]
        self._start, self._continued = cut, True
        return Span(start, cut)


def best_cut(probabilities: Sequence[float], neg_threshold: float) -> int:
    """Where to cut speech that goes on for too long: an index in the last third of two or more ``probabilities``.

    The middle of the longest pause (frames below ``neg_threshold``; of equal ones the deepest, then the last), or else
    the last of the frames with the lowest probability.
    """
    size = len(probabilities)
    first = max(1, min(size - size // 3, size - 1))
    pauses: list[tuple[int, float, int]] = []  # length, minus the mean probability, start
    start = first
    while start < size:
        end = start
        while end < size and probabilities[end] < neg_threshold:
            end += 1
        if end > start:
            pauses.append((end - start, -sum(probabilities[start:end]) / (end - start), start))
        start = end + 1
    if pauses:
        length, _, start = max(pauses)
        return start + length // 2
    return max(range(first, size), key=lambda index: (-probabilities[index], index))

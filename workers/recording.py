"""One recording's windows become one transcript: a vote on the language, joined text and segments, joined figures."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from workers.interface import WindowRequest, WindowResult
from workers.joining import join_segments, joined_text
from workers.messages import Failure, Item, Record, Transcript
from workers.pauses import Speech
from workers.silence import Cuts, real_end, real_start
from workers.spans import REASONS

#: So many windows with speech decide on the language of a recording.
VOTERS = 3
#: A vote that is less sure than this is flagged.
CERTAIN = 0.5
#: So is a language that is less likely than that in such a share of the speech: the voters may be of another one.
DOUBTFUL_SHARE = 1 / 3


@dataclass(frozen=True, slots=True)
class Sent:
    """A window in the engine. Times in seconds of the whole recording; ``request`` is kept for voters only."""

    start_s: float
    end_s: float
    speech_s: float
    future: Future[WindowResult]
    request: WindowRequest | None = None
    #: Where somebody speaks, in seconds from the window's start.
    speech: Speech = ()
    #: Names the window in the seeds of its tries.
    identity: str = ""
    #: Where silence is left out.
    cuts: Cuts = ()

    @property
    def heard_s(self) -> float:
        """Its length, without the silence that is left out."""
        return self.end_s - self.start_s - sum(missing for _, missing in self.cuts)

    def segments(self, result: WindowResult) -> list[tuple[float, float, str]]:
        """The segments of its result: start and end in seconds from its start in the recording, and text."""
        return [
            (real_start(one.start, self.cuts), real_end(one.start, one.end, self.cuts, self.speech), one.text)
            for one in result.segments
        ]


@dataclass(slots=True)
class Recording:
    """One audio file, or one channel of it, on its way. ``votes``: whether its windows decide on one language for all.

    ``elected``: whether those of an earlier span did. ``channels``: how many the file has, known when it is read.
    """

    votes: bool = False
    elected: bool = False
    windows: list[Sent] = field(default_factory=list)
    duration_s: float = 0.0
    flags: tuple[str, ...] = ()
    channels: int = 1
    failure: Failure | None = None
    #: The spans after the first cut before which the language is known (`workers.cuts`); length and flags are here.
    rest: list[Recording] = field(default_factory=list)

    def all_windows(self) -> list[Sent]:
        """Its windows, those of the rest too."""
        return [window for span in (self, *self.rest) for window in span.windows]

    def done(self) -> bool:
        """Whether nothing of it is in the engine any more."""
        return all(window.future.done() for window in self.all_windows())

    def voters(self) -> list[Sent]:
        """The windows that decide on the language."""
        return self.windows[:VOTERS] if self.votes else []


@dataclass(slots=True)
class Files:
    """A record's files on their way: the items of the first ones, and those that were begun after them."""

    record: Record
    items: list[Item] = field(default_factory=list)
    #: Of each its channels, or the file as a whole.
    begun: deque[list[Recording]] = field(default_factory=deque)

    def first_is_done(self) -> bool:
        """Whether the engine has answered all of the first of those."""
        return bool(self.begun) and all(recording.done() for recording in self.begun[0])

    def done(self) -> bool:
        """Whether it has answered all of all."""
        return all(recording.done() for channels in self.begun for recording in channels)


@dataclass(frozen=True, slots=True)
class Vote:
    """The language that the voters heard, and how sure they are, 0 to 1."""

    language: str
    probability: float


def vote(windows: Sequence[Sent], results: Sequence[WindowResult]) -> Vote:
    """The language with the most probability times seconds of speech; windows without words count only if all are."""
    heard = list(zip(windows, results, strict=True))
    weights: dict[str, float] = defaultdict(float)
    total = 0.0
    for window, result in [pair for pair in heard if pair[1].text] or heard:
        weight = max(window.speech_s, 0.1)
        weights[result.language] += weight * result.language_probability
        total += weight
    language = max(weights, key=weights.__getitem__)
    return Vote(language, weights[language] / total)


def join(
    recording: Recording, results: Sequence[WindowResult], heard: Vote, *, timestamps: bool, model: str, attempts: int
) -> Transcript:
    """The transcript of a recording whose windows have ``results``."""
    flags = {*recording.flags, *(flag for result in results for flag in result.flags if flag != "no_speech")}
    silent = all("no_speech" in result.flags for result in results)
    if silent or not (REASONS & flags or any(result.text for result in results)):
        flags.add("no_speech")
    doubtful = recording.votes and heard.probability < CERTAIN
    if doubtful or ((recording.votes or recording.elected) and _is_doubtful(recording.windows, results)):
        flags.add("uncertain_language")
    weights = [max(1e-3, window.heard_s) for window in recording.windows]
    parts = [
        (window.start_s, window.end_s, window.segments(result))
        for window, result in zip(recording.windows, results, strict=True)
    ]
    return Transcript(
        text=joined_text(results),
        segments=join_segments(parts) if timestamps else None,
        language=heard.language,
        language_probability=heard.probability,
        duration=recording.duration_s,
        speech_seconds=sum(window.speech_s for window in recording.windows),
        model=model,
        avg_logprob=_mean([result.avg_logprob for result in results], weights),
        compression_ratio=max(result.compression_ratio for result in results),
        no_speech_prob=_mean([result.no_speech_prob for result in results], weights),
        temperature=max(result.temperature for result in results),
        flags=sorted(flags),
        attempts=attempts,
    )


def _is_doubtful(windows: Sequence[Sent], results: Sequence[WindowResult]) -> bool:
    """Whether much of the speech is rather in another language than the one that the windows were decoded in."""
    heard = [(window.speech_s, result) for window, result in zip(windows, results, strict=True) if result.text]
    doubtful_s = sum(speech_s for speech_s, result in heard if result.language_probability < CERTAIN)
    return doubtful_s > 0 and doubtful_s >= DOUBTFUL_SHARE * sum(speech_s for speech_s, _ in heard)


def silence(recording: Recording, *, timestamps: bool, model: str, attempts: int) -> Transcript:
    """The transcript of a recording in which nobody speaks: the model was not asked."""
    return Transcript(
        text="",
        segments=[] if timestamps else None,
        duration=recording.duration_s,
        model=model,
        flags=sorted({*recording.flags, "no_speech"}),
        attempts=attempts,
    )


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    """The mean of the windows' figures, by their lengths."""
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)

"""One transcript of a recording's spans. Light: workers join what they did alone, the collector what several did.

A long recording is cut into spans (`workers.cuts`), and windows never reach over a cut: each span gives the same
transcript whoever does it, and the spans give the same recording whoever joins them.
"""

from __future__ import annotations

from collections.abc import Sequence

from workers.joining import joined_text
from workers.messages import Item, Segment, Transcript

#: No text without a word about why: a recording that has one of these flags needs no ``no_speech``, unless all of it
#: was taken for silence.
REASONS = frozenset(("empty", "repetition"))


def joined(items: Sequence[Item]) -> Item:
    """What becomes of a recording whose spans, in order, became ``items``: the first failure, if any."""
    spans = [item for item in items if isinstance(item, Transcript)]
    if len(spans) < len(items):
        return next(item for item in items if not isinstance(item, Transcript))
    return join_spans(spans)


def join_spans(spans: Sequence[Transcript]) -> Transcript:
    """One transcript of the spans of a recording, in order: figures are weighted by seconds of speech.

    The language is the one with the most speech, its probability that of the first span in it: where the first windows
    voted, that is the vote.
    """
    if len(spans) == 1:
        return spans[0]
    text = joined_text(spans)
    flags = {flag for span in spans for flag in span.flags if flag != "no_speech"}
    if all("no_speech" in span.flags for span in spans) or not (text or REASONS & flags):
        flags.add("no_speech")
    language = _language(spans)
    return Transcript(
        text=text,
        segments=None if spans[0].segments is None else _segments(spans),
        language=language,
        language_probability=next((span.language_probability for span in spans if span.language == language), None),
        duration=sum(span.duration for span in spans),
        speech_seconds=sum(span.speech_seconds for span in spans),
        model=spans[0].model,
        avg_logprob=_mean([(span.avg_logprob, span.speech_seconds) for span in spans]),
        compression_ratio=_most([span.compression_ratio for span in spans]),
        no_speech_prob=_mean([(span.no_speech_prob, span.speech_seconds) for span in spans]),
        temperature=_most([span.temperature for span in spans]),
        flags=sorted(flags),
        attempts=max(span.attempts for span in spans),
    )


def _segments(spans: Sequence[Transcript]) -> list[Segment]:
    """Those of the spans in order; none goes back, as that of a span with more sound than its times have room for."""
    ordered: list[Segment] = []
    now = 0.0
    for one in (segment for span in spans for segment in span.segments or ()):
        start = max(now, one.start)
        now = max(start, one.end)
        ordered.append(one.model_copy(update={"start": start, "end": now}))
    return ordered


def _language(spans: Sequence[Transcript]) -> str | None:
    seconds: dict[str | None, float] = {}
    for span in spans:
        if span.language is not None:
            seconds[span.language] = seconds.get(span.language, 0.0) + span.speech_seconds
    return max(seconds, key=seconds.__getitem__, default=None)


def _mean(figures: Sequence[tuple[float | None, float]]) -> float | None:
    known = [(value, max(weight, 1e-3)) for value, weight in figures if value is not None]
    return sum(value * weight for value, weight in known) / sum(weight for _, weight in known) if known else None


def _most(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)

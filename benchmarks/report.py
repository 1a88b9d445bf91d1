"""From answers to figures: per language, long recordings, no speech, loops, retries, segment starts, and the bars."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.bars import Bar
from benchmarks.corpus import JOINED_AUDIO, Clip
from benchmarks.scores import Score, invented_loop, score, starts_found, total, unit
from benchmarks.systems import Answer, GroupRun, Runs

FLEET, BARE, FASTER_WHISPER = "fleet", "bare", "faster-whisper"

#: The bars. Languages below so many reference words (characters) are reported, not judged.
LEAST_REFERENCE_UNITS = 1000
LANGUAGE_MARGIN, STRICT_LANGUAGES = 0.005, frozenset({"en"})
LEAST_STARTS_FOUND = 0.9
LEAST_SPEED_OF_BARE, LEAST_SPEED_WITH_PAUSES = 0.85, 1.0


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the error table: a language's clips or a part of them, and each system's score."""

    language: str
    part: str
    clips: int
    seconds: float
    unit: str
    scores: dict[str, Score]
    raw: dict[str, Score]

    @property
    def units(self) -> int:
        """Words or characters of the reference."""
        return max((one.units for one in self.scores.values()), default=0)

    def as_dict(self) -> dict[str, Any]:
        """The row as JSON; rates are shares, not percentages."""
        return {
            "language": self.language,
            "part": self.part,
            "clips": self.clips,
            "seconds": round(self.seconds, 1),
            "unit": self.unit,
            "reference_units": self.units,
            "error_rate": {system: _rounded(one.rate) for system, one in self.scores.items()},
            "raw_error_rate": {system: _rounded(one.rate) for system, one in self.raw.items()},
        }


@dataclass(frozen=True, slots=True)
class Results:
    """Everything that was measured: clips, runs by system and group, and what the fleet said with timestamps."""

    clips: Sequence[Clip]
    runs: Mapping[str, Runs]
    joined: Answer | None = None
    joined_starts: Sequence[float] = ()

    def answer(self, system: str, clip: Clip) -> Answer:
        """What ``system`` said about ``clip``."""
        return self.runs[system][clip.group].answers[clip.key]

    def group(self, name: str) -> list[Clip]:
        """The clips of a group."""
        return [clip for clip in self.clips if clip.group == name]


def error_rows(results: Results) -> list[Row]:
    """The error table: each language whole and in parts, then all long recordings that are scored in words."""
    speech = results.group("speech")
    scored = {clip.key: _scores(results, clip) for clip in [*speech, *results.group("pauses")]}

    def row(language: str, part: str, clips: Sequence[Clip]) -> Row:
        pairs = [scored[clip.key] for clip in clips]
        return Row(
            language=language,
            part=part,
            clips=len(clips),
            seconds=sum(clip.seconds for clip in clips),
            unit=unit(language),
            scores={system: total([pair[system][0] for pair in pairs]) for system in results.runs},
            raw={system: total([pair[system][1] for pair in pairs]) for system in results.runs},
        )

    rows = []
    for language in sorted({clip.language for clip in speech}):
        own = [clip for clip in speech if clip.language == language]
        rows.append(row(language, "all", own))
        parts = {
            "audio": [clip for clip in own if clip.source == "audio"],
            "asterisk": [clip for clip in own if clip.source == "asterisk"],
            "over 30 s": [clip for clip in own if clip.is_long],
        }
        rows += [row(language, part, clips) for part, clips in parts.items() if clips and len(clips) < len(own)]
    long = [clip for clip in speech if clip.is_long and unit(clip.language) == "WER"]
    rows += [row("all", "over 30 s", long)] if long else []
    paused = results.group("pauses")
    rows += [row("en", "long pauses", paused)] if paused else []
    return rows


def characters_written(results: Results) -> dict[str, int]:
    """By system: characters (spaces apart) written over recordings without speech."""
    clips = results.group("non_speech")
    return {
        system: sum(len("".join(results.answer(system, clip).text.split())) for clip in clips)
        for system in results.runs
    }


def loops(results: Results) -> dict[str, Any]:
    """Texts that loop, by system; of the fleet's, those without the flag ``repetition`` were not caught."""
    found = {
        system: {
            clip.key: phrase
            for clip in results.clips
            if (phrase := invented_loop(results.answer(system, clip).text, clip.text, clip.language))
        }
        for system in results.runs
    }
    if FLEET not in results.runs:
        return {"texts": found}
    flagged = [clip.key for clip in results.clips if "repetition" in results.answer(FLEET, clip).flags]
    return {"texts": found, "flagged": flagged, "missed": sorted(set(found[FLEET]) - set(flagged))}


def retries(results: Results) -> dict[str, Any]:
    """The fleet's rows that were decoded more than once, and their share of all rows and of the audio."""
    if FLEET not in results.runs:
        return {}
    rows = [clip for clip in results.clips if results.answer(FLEET, clip).retried]
    seconds = sum(clip.seconds for clip in results.clips)
    return {
        "rows": len(rows),
        "share_of_rows": _rounded(len(rows) / len(results.clips)) if results.clips else None,
        "share_of_audio": _rounded(sum(clip.seconds for clip in rows) / seconds) if seconds else None,
        "clips": [clip.key for clip in rows],
    }


def segment_starts(results: Results) -> float | None:
    """The share of the joined recording's sentences that a segment of the fleet begins with."""
    if results.joined is None or not results.joined_starts:
        return None
    found = [float(segment["start"]) for segment in results.joined.segments or ()]
    return starts_found(results.joined_starts, found) / len(results.joined_starts)


def speed_of_bare(results: Results, group: str) -> float | None:
    """The fleet's speed on a group as a share of the bare engine's; None where either did not run it."""
    fleet, bare = (results.runs.get(system, {}).get(group) for system in (FLEET, BARE))
    return fleet.speed / bare.speed if fleet and bare and bare.speed else None


def bars(results: Results, rows: Iterable[Row]) -> list[Bar]:
    """What must show, with what did."""
    found = []
    for row in rows:
        judged = row.part == "all" and row.units >= LEAST_REFERENCE_UNITS
        if not judged and (row.language, row.part) != ("all", "over 30 s"):
            continue
        fleet, other = (row.scores.get(system, Score()).rate for system in (FLEET, FASTER_WHISPER))
        above = fleet - other if fleet is not None and other is not None else None
        strict = row.language in STRICT_LANGUAGES or row.part != "all"
        name = f"{row.unit} above faster-whisper: {row.language if row.part == 'all' else 'recordings over 30 s'}"
        found.append(Bar(name, above, 0.0 if strict else LANGUAGE_MARGIN))
    silent = results.group("non_speech") and FLEET in results.runs
    missed = loops(results).get("missed")
    return [
        *found,
        Bar("characters written over no speech", characters_written(results)[FLEET] if silent else None, 0),
        Bar("loops not caught", None if missed is None else len(missed), 0),
        Bar("segment starts within 0.5 s", segment_starts(results), LEAST_STARTS_FOUND, at_least=True),
        Bar("speed of bare, no retries", speed_of_bare(results, "no_retry"), LEAST_SPEED_OF_BARE, at_least=True),
        Bar("speed of bare, long pauses", speed_of_bare(results, "pauses"), LEAST_SPEED_WITH_PAUSES, at_least=True),
    ]


def as_json(results: Results, rows: Sequence[Row], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The whole report. ``facts``: the machine, versions, options; no path of the machine is in any of it."""
    return {
        **facts,
        "counts": {
            "clips": len(results.clips),
            "seconds": round(sum(clip.seconds for clip in results.clips), 1),
            "groups": {group: len(results.group(group)) for group in sorted({clip.group for clip in results.clips})},
        },
        "bars": [bar.as_dict() for bar in bars(results, rows)],
        "languages": [row.as_dict() for row in rows],
        "speed": {
            system: {name: _speed(run) for name, run in groups.items()} for system, groups in results.runs.items()
        },
        "non_speech_characters": characters_written(results),
        "loops": loops(results),
        "retries": retries(results),
        "joined_segments": results.joined.segments if results.joined else None,
        "clips": [_clip(results, clip) for clip in results.clips],
    }


def _scores(results: Results, clip: Clip) -> dict[str, tuple[Score, Score]]:
    """By system: the normalised and the raw score of a clip."""
    reference = clip.text or ""
    return {
        system: (score(reference, text, clip.language), score(reference, text, clip.language, raw=True))
        for system in results.runs
        for text in [results.answer(system, clip).text]
    }


def _clip(results: Results, clip: Clip) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "clip": clip.key,
        "group": clip.group,
        "language": clip.language,
        "seconds": clip.seconds,
        "reference": clip.text,
    }
    for system in results.runs:
        answer = results.answer(system, clip)
        entry[system] = {"text": answer.text}
        if answer.error:
            entry[system]["error"] = answer.error
        if clip.text is not None:
            entry[system]["edits"] = score(clip.text, answer.text, clip.language).edits
        if system == FLEET and answer.details:
            entry[system]["details"] = {name: value for name, value in answer.details.items() if name != "model"}
    if JOINED_AUDIO in clip.key and results.joined is not None:
        entry["fleet_with_timestamps"] = results.joined.text
    return entry


def _speed(run: GroupRun) -> dict[str, float]:
    return {
        "clips": len(run.answers),
        "audio_seconds": round(run.audio_seconds, 1),
        "wall_seconds": round(run.wall_seconds, 2),
        "audio_seconds_per_second": round(run.speed, 2),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)

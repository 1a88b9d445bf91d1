"""The recordings of the quality benchmark: real speech from a folder, telephone prompts, and what is no speech at all.

A corpus folder has ``manifest.jsonl`` (``audio``, ``text``, ``language``, ``seconds`` a line), ``odd_manifest.jsonl``
(``audio``, ``kind``, ``expect``, ``language``, ``seconds``) and ``derived/LJ001_joined_segments.json``. Nothing of it
is copied. The Asterisk prompts come from Debian (see `tests.asterisk`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile

from tests import asterisk
from workers.audio import SAMPLE_RATE_HZ, AudioLimits
from workers.audio_decode import open_audio

REPOSITORY = Path(__file__).resolve().parent.parent
CORPUS_VARIABLE = "WHISPER_BENCH_AUDIO"
DEFAULT_CORPUS = REPOSITORY.parent / "shared" / "audio"

#: A recording over one window of Whisper's.
LONG_SECONDS = 30.0
#: Shorter prompts ("two", "extension") are words without context: they measure luck.
PROMPT_LEAST_WORDS = 4
#: The recording with long pauses is made of so many prompts at most, with so much faint noise between them.
PAUSED_CLIPS, PAUSE_SECONDS, NOISE_AMPLITUDE = 20, 15.0, 1e-3

JOINED_AUDIO = "derived/LJ001_0001-0032_joined.mp3"
JOINED_SEGMENTS = "derived/LJ001_joined_segments.json"

#: ``speech`` has a reference text, ``unreferenced`` is speech or laughter without one, ``pauses`` is made here.
Group = Literal["speech", "non_speech", "unreferenced", "pauses"]
#: Listed as music by their folder, but people talk in all three (Silero hears speech from end to end, faster-whisper
#: writes nearly the same words at beam sizes 1 and 5): loops are looked for in them, characters are not counted.
SPOKEN = frozenset({"odd/pydub/wrong_extension.aac", "odd/pydub/format_test.m4a", "odd/pydub/test5.webm"})
#: Of ``expect``, not of ``kind``: some files that are called music speak the names of their channels.
_NOTHING_EXPECTED = re.compile(r"\b(empty|no speech)\b")


@dataclass(frozen=True, slots=True)
class Clip:
    """One recording. ``key`` names it in results: source, then the path in the corpus or the prompt's name."""

    key: str
    path: Path
    group: Group
    language: str
    seconds: float
    text: str | None = None

    @property
    def source(self) -> str:
        """``audio`` (the corpus folder), ``asterisk`` or ``made``."""
        return self.key.partition("/")[0]

    @property
    def is_long(self) -> bool:
        """Whether it needs more than one window."""
        return self.seconds > LONG_SECONDS


def find_corpus(given: Path | None) -> Path | None:
    """The corpus folder: the one given, or $WHISPER_BENCH_AUDIO, or the default if it exists. Raises ValueError."""
    named = given or (Path(os.environ[CORPUS_VARIABLE]) if os.environ.get(CORPUS_VARIABLE) else None)
    if named is None:
        return DEFAULT_CORPUS if (DEFAULT_CORPUS / "manifest.jsonl").is_file() else None
    if not (named / "manifest.jsonl").is_file():
        raise ValueError(f"{named} is no corpus folder: it has no manifest.jsonl")
    return named.resolve()


def folder_clips(folder: Path) -> list[Clip]:
    """The clips of a corpus folder. Those whose language nobody named are given to every system as English."""
    clips = []
    for row in _rows(folder / "manifest.jsonl"):
        clips.append(_clip(folder, row, "speech", row["text"]))
    odd = folder / "odd_manifest.jsonl"
    for row in _rows(odd) if odd.is_file() else ():
        group = odd_group(row)
        if group is not None:
            clips.append(_clip(folder, row, group))
    return clips


def odd_group(row: dict[str, Any]) -> Group | None:
    """What an entry of the odd manifest is good for here; None for files that only test decoders."""
    if row["audio"] in SPOKEN:
        return "unreferenced"
    if _NOTHING_EXPECTED.search(row["expect"]):
        return "non_speech"
    return "unreferenced" if row["language"] or row["kind"] == "laughter" else None


def reference_starts(folder: Path) -> list[float]:
    """Where the sentences of the joined recording begin, in seconds; empty where the folder does not say."""
    path = folder / JOINED_SEGMENTS
    return [float(segment["start"]) for segment in json.loads(path.read_text())] if path.is_file() else []


def asterisk_clips(language: str, least_words: int, taken: Iterable[str] = ()) -> list[Clip]:
    """Evenly spaced prompts of a language, as few as hold ``least_words`` words; ``taken``: names to leave out.

    Raises tests.asterisk.FetchError where the recordings cannot be had.
    """
    if not least_words:
        return []
    names = set(taken)
    prompts = [
        prompt
        for prompt in asterisk.prompts(language)
        if len(prompt.text.split()) >= PROMPT_LEAST_WORDS and prompt.name.rpartition("/")[2] not in names
    ]
    chosen = evenly_spaced([len(prompt.text.split()) for prompt in prompts], least_words)
    return [
        Clip(
            key=f"asterisk/{language}/{prompt.name}",
            path=prompt.path,
            group="speech",
            language=language,
            seconds=round(soundfile.info(prompt.path).duration, 3),
            text=prompt.text,
        )
        for prompt in (prompts[index] for index in chosen)
    ]


def evenly_spaced(weights: Sequence[int], least: int) -> list[int]:
    """The fewest evenly spaced indexes whose weights sum up to ``least``; all of them if that is not enough."""
    for count in range(1, len(weights)):
        chosen = spread(len(weights), count)
        if sum(weights[index] for index in chosen) >= least:
            return chosen
    return list(range(len(weights)))


def spread(length: int, count: int) -> list[int]:
    """``count`` evenly spaced indexes of ``length`` items (all of them if there are no more)."""
    count = min(length, count)
    return [index * length // count for index in range(count)]


def first_of_each(clips: Iterable[Clip], limit: int | None) -> list[Clip]:
    """At most ``limit`` clips of each group, source, language and length class: for quick runs."""
    if limit is None:
        return list(clips)
    kept, counts = [], dict[tuple[str, str, str, bool], int]()
    for clip in clips:
        kind = (clip.group, clip.source, clip.language, clip.is_long)
        counts[kind] = counts.get(kind, 0) + 1
        if counts[kind] <= limit or clip.key == f"audio/{JOINED_AUDIO}":
            kept.append(clip)
    return kept


def paused_clip(clips: Sequence[Clip], path: Path) -> Clip | None:
    """Write short English clips with long pauses between them to ``path``, as one recording; None without any."""
    pool = [clip for clip in clips if (clip.group, clip.language, clip.is_long) == ("speech", "en", False)]
    prompts = [clip for clip in pool if clip.source == "asterisk"] or pool
    parts = [prompts[index] for index in spread(len(prompts), PAUSED_CLIPS)] if prompts else []
    parts = [part for part in parts if part.path.is_file()]  # a file that is gone fails as a clip of its own
    if not parts:
        return None
    noise = np.random.default_rng(0)
    sound: list[np.ndarray[Any, np.dtype[np.float32]]] = []
    for number, part in enumerate(parts):
        if number:
            pause = noise.normal(0, NOISE_AMPLITUDE, int(PAUSE_SECONDS * SAMPLE_RATE_HZ))
            sound.append(pause.astype(np.float32))
        sound.extend(open_audio(str(part.path), AudioLimits()))
    samples = np.concatenate(sound)
    soundfile.write(path, samples, SAMPLE_RATE_HZ)
    seconds = round(len(samples) / SAMPLE_RATE_HZ, 3)
    return Clip(f"made/{path.name}", path, "pauses", "en", seconds, " ".join(part.text or "" for part in parts))


def _clip(folder: Path, row: dict[str, Any], group: Group, text: str | None = None) -> Clip:
    return Clip(
        key=f"audio/{row['audio']}",
        path=folder / row["audio"],
        group=group,
        language=row["language"] or "en",
        seconds=float(row["seconds"] or 0.0),
        text=text,
    )


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        yield from (json.loads(line) for line in lines if line.strip())

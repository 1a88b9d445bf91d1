"""The rows of the jobs: one recording whose every part is another, or telephone prompts for a real engine."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import soundfile

from benchmarks.corpus import PROMPT_LEAST_WORDS, REPOSITORY, spread
from tests import asterisk

SPEECH = REPOSITORY / "tests" / "samples" / "audio" / "en_weather.wav"
#: Loudest sample of every recording but the poisonous one, which reaches 1.0 (`in_worker.POISON_PEAK`).
PEAK = 0.5
#: Of the recording each row takes so much, from a start of its own within the first second.
PART_SECONDS, STARTS_SECONDS = 2.5, 1.0


def speech_rows(folder: Path, rows: int, poison: int | None = None) -> Path:
    """Write an input whose rows sound all different, so that an answer tells its row; ``poison`` kills its worker.

    Both kinds of input differ in that row only.
    """
    samples, rate = soundfile.read(SPEECH)
    quiet = samples * (PEAK / abs(samples).max())
    folder.mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / "speech.wav", quiet, rate)
    soundfile.write(folder / "poison.wav", (quiet * 8).clip(-1.0, 1.0), rate)
    starts = (round(row * STARTS_SECONDS / rows, 6) for row in range(rows))
    return _write(
        folder / "data.jsonl",
        (
            {
                "audio": "poison.wav" if row == poison else "speech.wav",
                "id": row,
                "start_s": start,
                "end_s": start + PART_SECONDS,
            }
            for row, start in enumerate(starts)
        ),
    )


def prompt_rows(folder: Path, rows: int) -> Path:
    """Write an input of English telephone prompts, evenly chosen. Raises tests.asterisk.FetchError."""
    prompts = [one for one in asterisk.prompts("en") if len(one.text.split()) >= PROMPT_LEAST_WORDS]
    folder.mkdir(parents=True, exist_ok=True)
    chosen = (prompts[index] for index in spread(len(prompts), rows))
    return _write(folder / "data.jsonl", ({"audio": str(one.path), "id": row} for row, one in enumerate(chosen)))


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path

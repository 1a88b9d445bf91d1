"""Real speech through the shared real fleet: scores, not looks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile

from asterisk import Prompt, require_asterisk, translations
from cpu_build import only_on_a_cpu
from fleet import Fleet
from rows import SAMPLES, convert, read_rows
from scoring import mean_overlap, word_error_rate

Write = Callable[..., Path]
AUDIO = SAMPLES / "audio"


def run(fleet: Fleet, path: Path, *arguments: str) -> list[dict]:
    done = fleet.cli("run", str(path), "--cache-path", str(path.parent / "cache"), *arguments)
    assert done.returncode == 0, done.stderr
    return read_rows(done.stdout.splitlines()[-1])


def test_english_prompts_are_transcribed(real_fleet: Fleet, jsonl: Write) -> None:
    prompts = [prompt for prompt in require_asterisk("en") if 8 <= len(prompt.text.split()) <= 25][:16]
    rows = run(real_fleet, jsonl([{"audio": str(prompt.path)} for prompt in prompts]), "--language", "English")
    assert word_error_rate([prompt.text for prompt in prompts], [row["transcription"] for row in rows]) < 0.1


@pytest.mark.parametrize(("code", "name"), [("es", "castilian"), ("fr", "French")])
def test_translation_says_what_the_english_prompt_says(real_fleet: Fleet, jsonl: Write, code: str, name: str) -> None:
    require_asterisk(code)
    pairs = [pair for pair in translations(code) if _scorable(*pair)][:16]
    assert len(pairs) == 16
    rows = run(real_fleet, jsonl([{"audio": str(p.path)} for p, _ in pairs]), "--task", "translate", "--language", name)
    english, said = [text for _, text in pairs], [row["transcription"] for row in rows]
    matched = mean_overlap(english, said)
    # The same words against other prompts' texts: what a translator would get who had not listened.
    mismatched = mean_overlap([*english[5:], *english[:5]], said)
    untranslated = mean_overlap(english, [prompt.text for prompt, _ in pairs])
    assert matched > 0.35
    assert matched > 2 * mismatched
    assert matched > 3 * untranslated


def test_every_format_is_heard_alike(real_fleet: Fleet, jsonl: Write, tmp_path: Path) -> None:
    source = AUDIO / "en_weather.wav"
    suffixes = [".wav", ".flac", ".ogg", ".mp3", ".m4a", ".mp4", ".webm", ".wma", ".opus"]
    files = [convert(source, tmp_path / f"clip{suffix}") for suffix in suffixes]
    rows = run(real_fleet, jsonl([{"audio": [file.name]} for file in files]), "--details")
    spoken = "Good morning. The sun is warm, and we will walk in the park today."
    scores = {row["audio"][0]: word_error_rate([spoken], [row["transcription"]]) for row in rows}
    assert max(scores.values()) < 0.2, scores
    seconds = soundfile.info(source).duration
    assert all(abs(row["transcription_details"]["duration"] - seconds) < 0.2 for row in rows)


@only_on_a_cpu
def test_the_same_window_is_encoded_once(real_fleet: Fleet, jsonl: Write, tmp_path: Path) -> None:
    # Given two recordings that this engine has never heard, each of one window that needs no second try
    samples, rate = soundfile.read(AUDIO / "en_weather.wav")
    quiet, quieter = tmp_path / "quiet.wav", tmp_path / "quieter.wav"
    soundfile.write(quiet, samples * 0.7, rate)
    soundfile.write(quieter, samples * 0.6, rate)
    encoded = Path(real_fleet.environment()["ENCODED"])
    before = encoded.stat().st_size

    # When one of them comes three times
    rows = run(real_fleet, jsonl([{"audio": str(path)} for path in (quiet, quieter, quiet, quiet)]))

    # Then its window is encoded once
    assert encoded.stat().st_size - before == 2
    assert rows[0]["transcription"] == rows[2]["transcription"] == rows[3]["transcription"]
    assert "sun" in rows[0]["transcription"]


def test_bad_files_among_good_ones_cost_only_their_own_rows(real_fleet: Fleet, jsonl: Write, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("this is no audio")
    (tmp_path / "empty.wav").write_bytes(b"")
    soundfile.write(tmp_path / "nothing.wav", [], 16_000)
    good = str(AUDIO / "en_kitchen.mp3")
    sources = [good, "missing.wav", "notes.txt", "empty.wav", "nothing.wav", str(AUDIO / "silence.flac"), good]
    rows = run(real_fleet, jsonl([{"audio": source, "id": number} for number, source in enumerate(sources)]))
    assert [row["id"] for row in rows] == list(range(len(sources)))
    assert "kitchen" in rows[0]["transcription"]
    assert rows[6]["transcription"] == rows[0]["transcription"]
    assert [row.get("transcription_error", {}).get("type") for row in rows] == [
        *(None, "file_not_found", "not_audio", "not_audio"),
        *(None, None, None),
    ]
    assert [row["transcription"] for row in rows[1:6]] == [None, None, None, "", ""]


def test_segments_are_ordered_and_lie_in_the_recording(real_fleet: Fleet, jsonl: Write) -> None:
    (row,) = run(
        real_fleet, jsonl([{"audio": str(AUDIO / "en_news_long.ogg")}]), "--timestamps", "--details", "--language", "en"
    )
    segments, duration = row["transcription_segments"], row["transcription_details"]["duration"]
    assert duration > 60
    assert len(segments) >= 6
    times = [time for segment in segments for time in (segment["start"], segment["end"])]
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] <= duration
    assert times[-1] > duration - 10
    joined = " ".join(segment["text"] for segment in segments)
    assert word_error_rate([row["transcription"]], [joined]) < 0.05


def test_two_steps_on_one_dataset(real_fleet: Fleet, jsonl: Write) -> None:
    # Given a dataset with relative paths
    names = ["es_family.ogg", "en_train.flac", "de_berlin.flac"]
    path = jsonl([{"audio": [f"audio/{name}"], "n": 10**30 + n} for n, name in enumerate(names)])
    (path.parent / "audio").symlink_to(AUDIO)
    # When step 0 is transcribed, and step 1 translated under another key
    first = run(real_fleet, path, "--prefix", "two")
    second = run(real_fleet, path, "--prefix", "two", "--step", "1", "--task", "translate", "--output-key", "english")
    # Then step 2 has both columns and everything of step 1 as it was
    assert [{key: row[key] for key in first[0]} for row in second] == first
    assert [row["n"] for row in second] == [10**30 + n for n in range(3)]
    assert "familia" in second[0]["transcription"].lower()
    assert "family" in second[0]["english"].lower()
    assert "morning" in second[2]["english"].lower()
    assert (path.parent / "cache" / "two_step2.jsonl").exists()


def test_an_unknown_language_is_refused_with_near_matches(real_fleet: Fleet, jsonl: Write) -> None:
    path = jsonl([{"audio": str(AUDIO / "en_train.flac")}])
    done = real_fleet.cli("run", str(path), "--cache-path", str(path.parent / "cache"), "--language", "englisch")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "english" in line
    assert not (path.parent / "cache").exists()


def _scorable(prompt: Prompt, english: str) -> bool:
    """Long enough for a score to mean something."""
    return 8 <= len(english.split()) <= 22 and len(prompt.text.split()) >= 7

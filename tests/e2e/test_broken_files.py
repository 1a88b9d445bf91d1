"""Broken files through the real engine: a text or an error each, and a good one after them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fleet import Fleet
from mutations import good_files, mutations
from rows import SAMPLES, read_rows

Write = Callable[..., Path]


def test_every_broken_file_is_answered(real_fleet: Fleet, jsonl: Write, tmp_path: Path) -> None:
    # Given thirty broken files, and a good one
    (tmp_path / "good").mkdir()
    names = []
    for name, content in mutations(good_files(tmp_path / "good"), 30, seed=30):
        (tmp_path / name).write_bytes(content)
        names.append(name)
    path = jsonl([{"audio": name} for name in [*names, str(SAMPLES / "audio" / "en_kitchen.mp3")]])
    worker = real_fleet.workers[0]
    # When a job reads them
    done = real_fleet.cli("run", str(path), "--cache-path", str(tmp_path / "cache"), "--language", "en")
    # Then every row has its text or its error, and the worker goes on
    assert done.returncode == 0, done.stderr
    rows = read_rows(done.stdout.splitlines()[-1])
    assert [row["audio"] for row in rows[:-1]] == names
    for row in rows[:-1]:
        error = row.get("transcription_error")
        assert (row["transcription"] is None) == (error is not None), row
    types = {row["transcription_error"]["type"] for row in rows if "transcription_error" in row}
    assert types <= {"not_audio", "no_audio_track", "too_long"}
    assert "kitchen" in rows[-1]["transcription"]
    assert worker.poll() is None

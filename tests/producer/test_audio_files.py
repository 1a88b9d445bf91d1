"""What a row's audio was: seen to change, and never an error."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from producer.audio_files import read_stamps, stamped, write_stamps
from producer.errors import FleetError
from workers.messages import Failure, Record


def record(*audio: str) -> Record:
    return Record(audio=audio[0] if len(audio) == 1 else list(audio))


def test_files_have_size_and_time_and_everything_else_is_unknown(tmp_path: Path) -> None:
    file = tmp_path / "ä.wav"
    file.write_bytes(b"12345")
    os.utime(file, ns=(1, 1_700_000_000_123_456_789))
    known = (5, 1_700_000_000_123_456_789)
    unknown = [str(tmp_path), str(tmp_path / "missing"), f"https://example.org{file}", f"file://{file}", "a\0b", ""]
    records = [record(str(file)), record(str(file), *unknown), Failure(type="no_audio", message="")]
    assert [stamps for _, stamps in stamped(records)] == [[known], [known, *[None] * len(unknown)], []]
    assert [one for one, _ in stamped(records)] == records


def test_they_are_read_as_they_were_written_whatever_their_number(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.wav" for number in range(3000)]
    for number, file in enumerate(files):
        file.write_bytes(b"x" * (number % 7))
    stamps = [found for _, found in stamped(record(str(file)) for file in files)]
    assert [found[0] and found[0][0] for found in stamps] == [number % 7 for number in range(3000)]
    path = tmp_path / "audio.jsonl"
    write_stamps(path, [*stamps, [], [None]])
    assert list(read_stamps(path)) == [*stamps, [], [None]]
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("line", [b"", b"{", b"[1]", b"[[1]]", b"3"])
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "audio.jsonl"
    path.write_bytes(b"[]\n" + line + b"\n")
    with pytest.raises(FleetError, match=r"audio\.jsonl:2: damaged"):
        list(read_stamps(path))

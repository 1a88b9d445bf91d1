"""`--channels split` and `--prompt` from the command line to the step file, and in the messages on the way."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from job_files import read_rows, write_rows

from fleet import Fleet

RATE_HZ = 16_000


@pytest.fixture
def calls(tmp_path: Path, samples: Path) -> Path:
    """A folder with a call of two speakers, each side of it alone, and a recording of nine channels."""
    sides = [soundfile.read(samples / name, dtype="int16")[0] for name in ("en_weather.wav", "de_berlin.flac")]
    both = np.zeros((max(map(len, sides)), 2), dtype=np.int16)
    for channel, side in enumerate(sides):
        both[: len(side), channel] = side
    for name, values in {"call": both, "left": both[:, 0], "right": both[:, 1], "nine": np.zeros((800, 9))}.items():
        soundfile.write(tmp_path / f"{name}.wav", values, RATE_HZ)
    return tmp_path


def rows_of(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return read_rows(Path(done.stdout.splitlines()[-1]))


def test_split_gives_each_channel_what_it_would_get_alone(standin_fleet: Fleet, calls: Path) -> None:
    rows = [
        {"audio": "left.wav"},
        {"audio": "right.wav"},
        {"audio": "call.wav"},
        {"audio": ["call.wav"]},
        {"audio": ["right.wav", "call.wav", "missing.wav"]},
        {"audio": "nine.wav"},
    ]
    source = write_rows(calls / "data.jsonl", rows)
    command = ("run", str(source), "--cache-path", str(calls / "cache"), "--details", "--timestamps", "--table")

    done = standin_fleet.cli(*command, "--channels", "split")

    left, right, call, listed, several, nine = rows_of(done)
    one, two = left["transcription"], right["transcription"]
    assert one != two
    assert call["transcription"] == listed["transcription"] == [one, two]
    assert call["transcription_segments"] == [left["transcription_segments"], right["transcription_segments"]]
    assert call["transcription_details"] == [left["transcription_details"], right["transcription_details"]]
    assert "transcription_error" not in call
    assert several["transcription"] == [two, [one, two], None]
    assert [error and error["type"] for error in several["transcription_error"][2:]] == ["file_not_found"]
    assert several["transcription_error"][:2] == [None, [None, None]]
    assert nine["transcription"] is None
    assert nine["transcription_error"]["type"] == "too_many_channels"
    assert "9 channels" in nine["transcription_error"]["message"]
    assert "6 rows, 1 failed" in done.stderr
    assert one in done.stdout, "the table"

    # The same command finds it done; without the option it is another job.
    assert rows_of(standin_fleet.cli(*command, "--channels", "split")) == [left, right, call, listed, several, nine]
    mixed = standin_fleet.cli(*command)
    assert mixed.returncode == 2
    assert "channels was 'split', now 'mix'" in mixed.stderr


def test_by_default_channels_are_mixed(standin_fleet: Fleet, calls: Path) -> None:
    source = write_rows(calls / "data.jsonl", [{"audio": "call.wav"}, {"audio": "left.wav"}, {"audio": "nine.wav"}])

    call, left, nine = rows_of(standin_fleet.cli("run", str(source), "--cache-path", str(calls / "cache")))

    assert isinstance(call["transcription"], str)
    assert call["transcription"] != left["transcription"]
    assert nine["transcription"] == ""


def test_another_word_for_channels_is_refused(standin_fleet: Fleet, calls: Path) -> None:
    source = write_rows(calls / "data.jsonl", [{"audio": "call.wav"}])

    done = standin_fleet.cli("run", str(source), "--cache-path", str(calls / "cache"), "--channels", "left")

    assert done.returncode == 2
    assert "'mix', 'split'" in done.stderr
    assert not (calls / "cache").exists()


def test_prompt_and_channels_travel_in_the_messages(fleet: Fleet, calls: Path) -> None:
    """No worker takes them here: what lies in the queue is what a worker would get."""
    source = write_rows(calls / "data.jsonl", [{"audio": "call.wav"}, {"audio": "left.wav", "prompt": "Grace"}])

    done = fleet.cli(
        *("enqueue", str(source), "--cache-path", str(calls / "cache")), "--prompt", "Ada, Zoë", "--channels", "split"
    )

    assert done.returncode == 0, done.stderr
    messages = [json.loads(raw) for raw in fleet.redis.lrange("transcribe:5", 0, -1)]
    bodies = [json.loads(base64.b64decode(message["body"])) for message in messages]
    assert [kwargs["options"] for _, kwargs, _ in bodies] == [{"prompt": "Ada, Zoë", "channels": "split"}] * len(bodies)
    records = [record for (chunk,), _, _ in bodies for record in chunk]
    assert sorted(record.get("prompt", "") for record in records) == ["", "Grace"]
    for message in messages:
        assert "Ada" not in message["headers"]["argsrepr"] + message["headers"]["kwargsrepr"]

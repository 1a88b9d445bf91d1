"""The odd recordings of a corpus folder as one job: a transcript or an error each. Skipped without the folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from fleet import Fleet
from rows import read_rows

CORPUS = Path(os.environ.get("WHISPER_BENCH_AUDIO") or Path(__file__).parents[2] / "shared" / "audio")
MANIFEST = CORPUS / "odd_manifest.jsonl"

#: What no decoder makes anything of, and what the row's error says about it.
NOT_AUDIO = {
    "odd/hound/crash-cbd757427cea12bd8a21f86cd8cf74d98ce56bee.wav": "Malformed 'fmt ' chunk",
    "odd/hound/oom-48ae4cd061ff8578ad3f23dc87624bd365cf5216.wav": "No 'data' chunk marker",
    "odd/flac-test-files/faulty_08_-_blocksize_65536.flac": "flac decoder lost sync",
    "odd/flac-test-files/faulty_11_-_incorrect_metadata_block_length.flac": "nothing can be decoded",
    "odd/mutagen/106-invalid-streaminfo.flac": "unimplemented format",
    "odd/mutagen/truncated-64bit.mp4": "Invalid data found",
    "odd/mutagen/adif.aac": "End of file",
    "odd/mutagen/too-short.mp3": "no whole frame",
    "odd/aeneas/mono.empty.wav": "the file is empty (0 bytes)",
    "odd/aeneas/mono.invalid.wav": "No 'data' chunk marker",
    "odd/scipy/test-44100Hz-le-1ch-4bytes-incomplete-chunk.wav": "No 'data' chunk marker",
    "odd/scipy/test-8000Hz-le-3ch-5S-36bit.wav": "a codec that it does not know",
}
#: Seconds where the manifest's library read less than there is, or nothing.
SECONDS = {
    "odd/flac-test-files/faulty_05_-_wrong_total_number_of_samples.flac": 4.56,
    "odd/flac-test-files/uncommon_04_-_changing_bitdepth.flac": 11.23,
    "odd/mutagen/variable-block.flac": 0.91,
    "odd/scipy/test-8000Hz-le-3ch-5S-36bit.wav": None,
}
#: Its header tells of four minutes, the file holds its first second.
TRUNCATED = {"odd/mutagen/variable-block.flac"}
#: Of those where no speech is expected, what Silero takes for some: people talk in the first three, one laughs.
HEARD = {
    "odd/pydub/wrong_extension.aac",
    "odd/pydub/format_test.m4a",
    "odd/pydub/test5.webm",
    "odd/whisper-timestamped/laugh1.mp3",
}

pytestmark = pytest.mark.skipif(not MANIFEST.is_file(), reason="no corpus folder: set WHISPER_BENCH_AUDIO")


@pytest.fixture(scope="module")
def answered(
    standin_fleet: Fleet, tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each entry of the manifest, and its row of the step file."""
    folder = tmp_path_factory.mktemp("odd")
    entries = [json.loads(line) for line in MANIFEST.read_text(encoding="utf-8").splitlines()]
    source = folder / "odd.jsonl"
    source.write_text("".join(json.dumps({"audio": entry["audio"]}) + "\n" for entry in entries))
    done = standin_fleet.cli(
        "run", str(source), "--audio-root", str(CORPUS), "--cache-path", str(folder / "cache"), "--details"
    )
    assert done.returncode == 0, done.stderr
    assert standin_fleet.workers[0].poll() is None
    return list(zip(entries, read_rows(done.stdout.splitlines()[-1]), strict=True))


def test_every_file_has_its_transcript_or_the_right_error(
    answered: list[tuple[dict[str, Any], dict[str, Any]]],
) -> None:
    assert len(answered) == len(MANIFEST.read_text(encoding="utf-8").splitlines())
    wrong = {}
    for entry, row in answered:
        assert row["audio"] == entry["audio"]
        told = NOT_AUDIO.get(row["audio"])
        error = row.get("transcription_error")
        if told is None:
            right = error is None and isinstance(row["transcription"], str)
        else:
            right = row["transcription"] is None and error["type"] == "not_audio" and told in error["message"]
            right = right and error["message"].startswith(str(CORPUS / row["audio"]))
        if not right:
            wrong[row["audio"]] = (row["transcription"], error)
    assert wrong == {}


def test_all_of_a_recording_is_heard_and_silence_has_no_text(
    answered: list[tuple[dict[str, Any], dict[str, Any]]],
) -> None:
    wrong = {}
    for entry, row in answered:
        if row["transcription"] is None:
            continue
        audio, details = row["audio"], row["transcription_details"]
        seconds = SECONDS.get(audio, entry["seconds"])
        flags = set(details["flags"]) - {"standin", "no_speech"}
        quiet = any(word in entry["expect"] for word in ("empty", "no speech", "no words")) and audio not in HEARD
        if (
            abs(details["duration"] - seconds) > 0.02
            or flags != ({"truncated"} if audio in TRUNCATED else set())
            or (row["transcription"] == "") != ("no_speech" in details["flags"])
            or (quiet and row["transcription"])
        ):
            wrong[audio] = (seconds, quiet, row["transcription"], details)
    assert wrong == {}

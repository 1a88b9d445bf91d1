"""The whole benchmark with the stand-in engine: its figures mean nothing, its report must be whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from fleet import clean_environment
from rows import SAMPLES, read_rows

ROOT = Path(__file__).parent.parent.parent


def bench(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.quality", *arguments],
        cwd=ROOT,
        env=clean_environment(WHISPER_ENGINE="standin", **changes),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_a_run_reports_every_clip_and_leaves_nothing_behind(tmp_path: Path) -> None:
    # Given a corpus folder made of the samples, one of them silent, one file that is not there, and speech over which
    # the stand-in will write something that is not expected
    corpus, temporary = tmp_path / "corpus", tmp_path / "tmp"
    corpus.mkdir()
    temporary.mkdir()
    (corpus / "clips").symlink_to(SAMPLES / "audio")
    speech, odd = [], []
    for row in read_rows(SAMPLES / "samples.jsonl"):
        (name,) = row["audio"] if isinstance(row["audio"], list) else [row["audio"]]
        entry = {"audio": f"clips/{Path(name).name}", "language": row["spoken_language"] or None, "seconds": 5.0}
        if row["spoken_text"]:
            speech.append({**entry, "text": row["spoken_text"]})
        else:
            odd.append({**entry, "kind": "silence", "expect": "empty text"})
    spoken = Path(speech[0]["audio"]).name
    (corpus / f"noise{Path(spoken).suffix}").symlink_to(SAMPLES / "audio" / spoken)
    noise = f"noise{Path(spoken).suffix}"
    odd.append({"audio": noise, "language": None, "seconds": 5.0, "kind": "noise", "expect": "empty text"})
    speech.append({"audio": "gone.wav", "language": "en", "seconds": 1.0, "text": "never said"})
    for name, rows in (("manifest.jsonl", speech), ("odd_manifest.jsonl", odd)):
        (corpus / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    # When the fleet alone is measured on it
    done = bench(
        *("--corpus", str(corpus), "--asterisk-words", "0", "--systems", "fleet", "--results", str(tmp_path / "out")),
        TMPDIR=str(temporary),
        SPT_NOENV="1",  # processes with titles of their own show their environment still
    )
    # Then it says that it missed a bar, and its report names every clip, what failed, and the engine that was no engine
    assert done.returncode == 1, done.stderr
    (path,) = (tmp_path / "out").iterdir()
    assert done.stdout.splitlines()[-1] == str(path)
    assert path.name.startswith("quality-")
    assert path.name.endswith("-partial.json")
    report = json.loads(path.read_text())
    assert report["options"]["engine"] == "standin"
    assert report["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert {"python", "commit", "torch", "whisper-fleet"} <= set(report["versions"])
    clips = {clip["clip"]: clip for clip in report["clips"]}
    expected = {f"audio/{row['audio']}" for row in [*speech, *odd]}
    assert set(clips) == expected | {"made/long-pauses.wav"}
    assert clips["audio/gone.wav"]["fleet"] == {"text": "", "error": "file_not_found", "edits": 2}
    assert all(clip["fleet"]["details"]["attempts"] == 1 for key, clip in clips.items() if key != "audio/gone.wav")
    assert set(report["speed"]["fleet"]) == {"speech", "non_speech", "pauses", "no_retry"}
    assert all(run["wall_seconds"] > 0 for run in report["speed"]["fleet"].values())
    assert report["non_speech_characters"]["fleet"] > 0
    # And no path of this machine
    text = path.read_text()
    assert not [place for place in (tmp_path, SAMPLES, ROOT, Path.home()) if f"{place}/" in text]
    # And nothing is left of the run
    # (onnxruntime keeps a file of its own there)
    assert [entry.name for entry in temporary.iterdir() if entry.name != ".ses"] == []
    assert not [process for process in psutil.process_iter() if str(temporary) in _environment(process)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--systems", "fleet,whale"], "whale"),
        (["--corpus", "/nowhere"], "no manifest.jsonl"),
    ],
)
def test_wrong_arguments_end_before_anything_starts(arguments: list[str], words: str, tmp_path: Path) -> None:
    done = bench(*arguments, "--results", str(tmp_path / "out"))
    assert done.returncode == 2
    assert words in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()


def _environment(process: psutil.Process) -> str:
    try:
        return " ".join(process.environ().values())
    except psutil.Error:
        return ""

"""What a job leaves on the disk is its user's alone, whatever the umask."""

from __future__ import annotations

import contextlib
import stat
import subprocess
from pathlib import Path

import pytest
from job_files import speech_rows

from fleet import CLI, ended, wait_for

WANTED = {"job.json", "journal.jsonl", "worker-1.log", "valkey.log", "valkey.sock", "valkey.conf"}


@pytest.mark.parametrize("umask", [0o000, 0o022], ids="{:03o}".format)
def test_a_running_job_shows_nothing_to_others(alone: dict[str, str], tmp_path: Path, umask: int) -> None:
    source, temporary = speech_rows(tmp_path / "in", 60), Path(alone["TMPDIR"])
    # A row takes half a second: there is time to look.
    environment = {**alone, "WHISPER_STANDIN_STEP_MS": "100"}
    cache = tmp_path / "cache"
    seen: dict[Path, int] = {}

    def look() -> bool:
        for parent in (*cache.glob("*.job"), *temporary.glob("whisper-fleet-*")):
            with contextlib.suppress(FileNotFoundError):  # a folder or file that is gone by now
                for path in (parent, *parent.rglob("*")):
                    seen[path] = stat.S_IMODE(path.lstat().st_mode)
        assert process.poll() is None, process.communicate()
        return {path.name for path in seen} >= WANTED and any(".aof" in path.name for path in seen)

    process = subprocess.Popen(
        [*CLI, "run", str(source), "--cache-path", str(cache)],
        env=environment,
        umask=umask,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with ended(process):
        wait_for(look, 120.0)
        process.terminate()
        process.communicate(timeout=60)

    assert {path: oct(mode) for path, mode in seen.items() if mode & 0o077} == {}

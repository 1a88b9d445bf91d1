"""`failed`, `retry` and `--reuse` as a user runs them: with a fleet of their own, and on a shared one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from job_files import SPEECH, processes_at, read_rows, wait_for_none, write_rows

from fleet import CLI, Fleet, ended, run_cli, wait_for
from producer.cache import Step
from producer.job import load_job
from producer.journal import Journal


def gappy_set(folder: Path) -> Path:
    """An input of which one file is there and another is not."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(SPEECH, folder / "here.wav")
    rows = [{"audio": "here.wav"}, {"audio": "late.wav"}, {"audio": ["here.wav", "late.wav"]}, {"audio": None}]
    return write_rows(folder / "data.jsonl", rows)


def test_what_failed_is_listed_and_done_again(alone: dict[str, str], tmp_path: Path) -> None:
    source = gappy_set(tmp_path)
    command = ("run", str(source), "--cache-path", str(tmp_path / "cache"))
    # Given: a step in which a row and a half failed because a file was late, and one has no audio.
    assert run_cli(*command, environment=alone).returncode == 0
    path = tmp_path / "cache" / "data_step1.jsonl"
    listed = run_cli("failed", str(path), environment=alone)
    assert listed.returncode == 0, listed.stderr
    late = tmp_path / "late.wav"
    assert listed.stdout.splitlines() == [
        f"{path}: 2 of 4 rows failed, 1 in part",
        "2 x file_not_found",
        f"    row 1: late.wav: {late}: no such file on this worker",
        f"    row 2: late.wav: {late}: no such file on this worker",
        "1 x no_audio",
        "    row 3: column 'audio' names no audio",
    ]
    as_json = json.loads(run_cli("failed", str(path), "--json", environment=alone).stdout)
    assert as_json["step"] == str(path)
    assert as_json["reasons"]["file_not_found"]["rows"] == 2

    # When: the file has come, and its rows are done again.
    before = read_rows(path)
    shutil.copy(SPEECH, late)
    done = run_cli("retry", str(path), "--reason", "file_not_found", environment=alone)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{path}\n"
    assert "rows done again: 2, still without text: 0" in done.stderr
    text = before[0]["transcription"]
    rows = read_rows(path)
    assert [row["transcription"] for row in rows] == [text, text, [text, text], None]
    assert ["transcription_error" in row for row in rows] == [False, False, False, True]
    # Then: nothing is left for this reason, the job is the one that it was, and no process is left over.
    again = run_cli("retry", str(path), "--reason", "file_not_found", environment=alone)
    assert (again.returncode, again.stdout) == (0, f"{path}\n")
    assert "no row failed for file_not_found" in again.stderr
    assert "starting" not in again.stderr
    assert run_cli(*command, environment=alone).stdout == f"{path}\n"
    assert processes_at(tmp_path) == []

    # And: a grown set whose new rows are known needs no fleet.
    grown = write_rows(tmp_path / "grown.jsonl", [{"audio": "late.wav"}, *({"audio": "here.wav", "n": 1},) * 2])
    reused = run_cli("run", str(grown), *command[2:], "--reuse", str(path), environment=alone)
    assert reused.returncode == 0, reused.stderr
    assert "starting" not in reused.stderr
    assert "3 rows, 0 failed, 3 reused, " in reused.stderr
    assert [row["transcription"] for row in read_rows(tmp_path / "cache" / "grown_step1.jsonl")] == [text] * 3


def test_a_killed_retry_is_resumed(alone: dict[str, str], tmp_path: Path) -> None:
    rows, window = 12, 4
    source = write_rows(tmp_path / "data.jsonl", ({"audio": "late.wav", "start_s": row / 100} for row in range(rows)))
    cache = str(tmp_path / "cache")
    step = Step(tmp_path / "cache", "data", 1)
    # Given: a step in which everything failed, and a retry that is killed in the middle.
    assert run_cli("run", str(source), "--cache-path", cache, environment=alone).returncode == 1
    failed = step.path.read_bytes()
    shutil.copy(SPEECH, tmp_path / "late.wav")
    # A window of a few rows keeps the worker from running ahead of what this test sees.
    # A row a message: the worker's log names the first one of each.
    single = {**alone, "WHISPER_CHUNK_ROWS": "1"}
    slow = {**single, "WHISPER_STANDIN_STEP_MS": "400", "WHISPER_WINDOW_ROWS": str(window)}

    def answered() -> set[int]:
        found = Journal.read_answered(step.journal_path, rows)
        return {row for row in range(rows) if row in found}

    with ended(subprocess.Popen([*CLI, "retry", str(step.path)], env=slow, text=True, stdout=-1, stderr=-1)) as process:
        wait_for(lambda: len(answered()) >= 2)
        process.kill()
    wait_for_none(lambda: processes_at(tmp_path))
    before, log = answered(), step.job_path / "worker-1.log"
    assert 2 <= len(before) < rows
    assert step.path.read_bytes() == failed
    assert "a retry of 12 rows is not finished" in run_cli("failed", str(step.path), environment=alone).stdout
    size = log.stat().st_size
    # When: the same command is given again.
    done = run_cli("retry", str(step.path), environment=single)
    assert done.returncode == 0, done.stderr
    # Then: what was answered is not sent again. Nor need be what was on its way into the journal, at most a window.
    found = re.findall(r"Task whisper\.transcribe\[[^.\]]*\.(\d+)\.\w+\] received", log.read_text()[size:])
    received, left = {int(row) for row in found}, set(range(rows)) - before
    assert received <= left
    assert len(left - received) <= window
    assert len({row["transcription"] for row in read_rows(step.path)}) == rows
    assert f"{step.path}: 0 of 12 rows failed\n" == run_cli("failed", str(step.path), environment=alone).stdout


def test_on_a_shared_fleet_a_job_has_a_name(standin_fleet: Fleet, tmp_path: Path) -> None:
    source = gappy_set(tmp_path)
    assert standin_fleet.cli("run", str(source), "--cache-path", str(tmp_path / "cache")).returncode == 0
    path = tmp_path / "cache" / "data_step1.jsonl"
    job = load_job(path)
    assert job
    assert "2 x file_not_found\n" in standin_fleet.cli("failed", job.id).stdout
    shutil.copy(SPEECH, tmp_path / "late.wav")
    done = standin_fleet.cli("retry", job.id)
    assert done.returncode == 0, done.stderr
    assert "rows done again: 3, still without text: 1" in done.stderr
    # Then: the one that fails each time is still there, and the first name still leads to it.
    last = standin_fleet.cli("retry", job.id)
    assert last.returncode == 1
    assert last.stdout == f"{path}\n"
    assert last.stderr.endswith("whisper-fleet: no row that was done again has a text\n")
    assert [row["transcription"] is None for row in read_rows(path)] == [False, False, False, True]
    # And: a job that is enqueued takes answers as well, and a collector ends it.
    new = write_rows(tmp_path / "new.jsonl", [{"audio": "late.wav"}, {"audio": "here.wav", "start_s": 0.5}])
    sent = standin_fleet.cli("enqueue", str(new), "--cache-path", str(tmp_path / "cache"), "--reuse", str(path))
    assert sent.returncode == 0, sent.stderr
    name = sent.stdout.splitlines()[-1]
    assert standin_fleet.cli("collect", name).stdout == f"{tmp_path / 'cache' / 'new_step1.jsonl'}\n"
    made = load_job(tmp_path / "cache" / "new_step1.jsonl")
    assert made
    assert made.progress().reused == 1


def test_names_of_nothing_are_refused(alone: dict[str, str], fleet: Fleet, tmp_path: Path) -> None:
    for command in ("failed", "retry"):
        done = run_cli(command, "data_step1-12ab", environment=alone, cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert "data_step1-12ab: no step file of a job" in done.stderr
        assert "set REDIS_URL" in done.stderr
        done = fleet.cli(command, "data_step1-12ab")
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert "whisper-fleet jobs" in done.stderr


@pytest.mark.parametrize("trouble", ["no broker", "no model"])
def test_a_retry_that_nobody_can_do_leaves_the_step_as_it_is(
    standin_fleet: Fleet, tmp_path: Path, trouble: str
) -> None:
    """It could be given up with --force alone, which does all rows anew."""
    options = ["--model", "standin"] if trouble == "no model" else []
    source = gappy_set(tmp_path)
    made = standin_fleet.cli("run", str(source), "--cache-path", str(tmp_path / "cache"), *options)
    assert made.returncode == 0, made.stderr
    path = tmp_path / "cache" / "data_step1.jsonl"
    header = Step(tmp_path / "cache", "data", 1).header_path
    if trouble == "no model":
        header.write_text(header.read_text().replace('"model": "standin"', '"model": "large"'))
    before = header.read_bytes()
    elsewhere = {"REDIS_URL": "redis://127.0.0.1:1/0"} if trouble == "no broker" else {}

    done = standin_fleet.cli("retry", str(path), **elsewhere)

    assert done.returncode == (1 if elsewhere else 2), done.stderr
    assert ("does not answer" if elsewhere else "no live worker has it") in done.stderr
    assert header.read_bytes() == before


def test_a_reason_that_no_row_has_is_named_with_those_there_are(standin_fleet: Fleet, tmp_path: Path) -> None:
    source = gappy_set(tmp_path)
    assert standin_fleet.cli("run", str(source), "--cache-path", str(tmp_path / "cache")).returncode == 0
    shutil.copy(SPEECH, tmp_path / "late.wav")
    path = str(tmp_path / "cache" / "data_step1.jsonl")
    done = standin_fleet.cli("retry", path, "--reason", "timeout", "--reason", "file_not_found")
    assert "no row failed for timeout: there are file_not_found" in done.stderr
    assert "rows done again: 2," in done.stderr
    nothing = standin_fleet.cli("retry", path, "--reason", "timeout")
    assert (nothing.returncode, nothing.stdout) == (0, f"{path}\n")
    assert "no row failed for timeout: there are " in nothing.stderr
    assert "there is nothing to do" in nothing.stderr

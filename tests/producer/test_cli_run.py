"""`whisper-fleet run` as a user runs it: with a fleet of its own, and on a shared one."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard
from job_files import SPEECH, processes_at, read_rows, speech_rows, wait_for_none, write_rows

from fleet import CLI, Fleet, ended, run_cli, wait_for
from producer.cache import Step
from producer.journal import Journal

NO_BROKER = "redis://127.0.0.1:1/0"


def last_line(done: subprocess.CompletedProcess[str]) -> Path:
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.splitlines()[-1])


def test_without_a_broker_a_fleet_is_started_and_ended(alone: dict[str, str], tmp_path: Path) -> None:
    source = speech_rows(tmp_path / "my däta", 3)
    arguments = ("run", "data.jsonl", "--cache-path", "öut put", "--table")
    done = run_cli(*arguments, environment=alone, cwd=source.parent)
    output = source.parent / "öut put" / "data_step1.jsonl"
    assert last_line(done) == output
    assert "stand-in" in done.stdout, "the table"
    assert "3 rows, 0 failed" in done.stderr
    texts = [row["transcription"] for row in read_rows(output)]
    assert len(set(texts)) == 3
    assert processes_at(tmp_path) == []
    job_folder = output.with_suffix(".job")
    assert sorted(path.name for path in job_folder.iterdir()) == [
        "audio.jsonl",
        "collector.lock",
        "job.json",
        "producer.lock",
        "worker-1.log",
    ]
    # The same again starts nothing.
    log = (job_folder / "worker-1.log").read_bytes()
    again = run_cli(*arguments, environment=alone, cwd=source.parent)
    assert last_line(again) == output
    assert "starting" not in again.stderr
    assert (job_folder / "worker-1.log").read_bytes() == log


def test_packages_of_the_current_folder_are_not_the_fleets(alone: dict[str, str], tmp_path: Path) -> None:
    # Given a user whose own project has folders and files with the names of the fleet's packages
    project = tmp_path / "project"
    for name in ("workers", "producer", "celery", "numpy"):
        (project / name).mkdir(parents=True)
        (project / name / "__init__.py").write_text(f"raise SystemExit('the user has imported {name}')\n")
    write_rows(project / "rows.jsonl", [{"audio": str(SPEECH)}])
    command = [sys.executable, "-P", "-m", "producer", "run", "rows.jsonl"]

    done = subprocess.run(
        command, env=alone, cwd=project, capture_output=True, text=True, timeout=120, check=False
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert "1 rows, 0 failed" in done.stderr


def test_an_empty_input_needs_no_fleet(alone: dict[str, str], tmp_path: Path) -> None:
    source = write_rows(tmp_path / "data.jsonl", [])
    source.write_text("\n\n")
    done = run_cli("run", str(source), "--cache-path", str(tmp_path / "cache"), environment=alone)
    assert last_line(done).read_bytes() == b""
    assert "starting" not in done.stderr
    assert not list((tmp_path / "cache").glob("**/*.log"))


@pytest.mark.parametrize(("ending", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_an_interrupted_run_is_resumed(
    alone: dict[str, str], tmp_path: Path, ending: signal.Signals, code: int
) -> None:
    rows = 24
    source = speech_rows(tmp_path, rows)
    step = Step(tmp_path / "cache", "data", 1)
    command = ["run", str(source), "--cache-path", str(tmp_path / "cache")]
    # A window of 8 keeps the worker from running ahead of what this test sees: the last row comes four seconds after
    # the first, so that a busy machine does not end the job before the signal comes.
    slow = {**alone, "WHISPER_STANDIN_STEP_MS": "400", "WHISPER_WINDOW_ROWS": "8"}

    def answered() -> set[int]:
        found = Journal.read_answered(step.journal_path, rows)
        return {row for row in range(rows) if row in found}

    with ended(subprocess.Popen([*CLI, *command], env=slow, text=True, stdout=-1, stderr=-1)) as process:
        wait_for(lambda: len(answered()) >= 4)
        process.send_signal(ending)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stdout + stderr
    assert stdout == ""
    if ending != signal.SIGKILL:
        assert stderr.splitlines()[-1].startswith("interrupted: ")
        assert "the same command resumes" in stderr
    assert "Traceback" not in stderr
    wait_for_none(lambda: processes_at(tmp_path))
    before, log = answered(), step.job_path / "worker-1.log"
    assert 4 <= len(before) < rows
    assert not step.path.exists()
    size = log.stat().st_size

    done = run_cli(*command, environment=alone)
    assert last_line(done) == step.path
    assert [row["id"] for row in read_rows(step.path)] == list(range(rows))
    assert all(row["transcription"].startswith("stand-in ") for row in read_rows(step.path))
    received = re.findall(r"Task whisper\.transcribe\[[^.\]]*\.(\d+)\.\w+\] received", log.read_text()[size:])
    sent_again = {int(row) for row in received}
    assert sent_again
    assert sent_again.isdisjoint(before), "what is in the journal is not sent again"
    assert len(received) == len(sent_again)
    assert processes_at(tmp_path) == []


def test_a_second_starter_of_a_run_follows_it(alone: dict[str, str], tmp_path: Path) -> None:
    source = speech_rows(tmp_path, 8)
    command = [*CLI, "run", str(source), "--cache-path", str(tmp_path / "cache")]
    slow = {**alone, "WHISPER_STANDIN_STEP_MS": "400"}
    with ended(subprocess.Popen(command, env=slow, text=True, stdout=-1, stderr=-1)) as first:
        wait_for(lambda: list(tmp_path.glob("cache/*.job/worker-1.log")))
        with ended(subprocess.Popen(command, env=slow, text=True, stdout=-1, stderr=-1)) as second:
            ends = [process.communicate(timeout=60) for process in (first, second)]
    path = tmp_path / "cache" / "data_step1.jsonl"
    assert [stdout for stdout, _ in ends] == [f"{path}\n"] * 2
    assert f"following process {first.pid} on" in ends[1][1]
    assert len(read_rows(path)) == 8
    (log,) = path.with_suffix(".job").glob("*.log")
    assert log.read_text().count("engine ready") == 1
    assert "8 windows at once, 1 of them encoded together" in log.read_text()


def test_a_model_that_is_not_there_ends_the_run(alone: dict[str, str], tmp_path: Path) -> None:
    source = speech_rows(tmp_path, 1)
    command = ("run", str(source), "--cache-path", str(tmp_path / "cache"), "--model", "/nonexistent")
    done = run_cli(*command, environment={**alone, "WHISPER_ENGINE": "vllm"})
    assert done.returncode == 1
    assert done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert last.startswith("whisper-fleet: the local worker ended with code 1: ")
    assert "/nonexistent" in last
    assert "Traceback" not in done.stderr
    assert processes_at(tmp_path) == []


# --- on a shared fleet -----------------------------------------------------------------------------------------------


def test_rows_of_every_kind_keep_their_place(standin_fleet: Fleet, tmp_path: Path) -> None:
    shutil.copy(SPEECH, tmp_path / "a b.wav")
    rows = [
        {"audio": "a b.wav", "n": 12345678901234567890},
        {"audio": ["a b.wav"], "language": "German"},
        {"audio": ["a b.wav", "missing.wav"]},
        {"audio": None},
        {"audio": "missing.wav", "ü": "ä"},
        {"audio": [], "language": "fr"},
    ]
    source = write_rows(tmp_path / "data.jsonl", rows)
    done = standin_fleet.cli(
        "run", str(source), "--cache-path", str(tmp_path / "out"), "--details", "--timestamps", "--language", "en"
    )
    found = read_rows(last_line(done))
    assert [{name: row[name] for name in given} for row, given in zip(found, rows, strict=True)] == rows
    assert [row["transcription"] is None for row in found] == [False, False, False, True, True, True]
    assert [isinstance(row["transcription"], list) for row in found] == [False, False, True, False, False, False]
    first, german, pair = found[:3]
    assert first["transcription"] == german["transcription"] == pair["transcription"][0]
    assert first["transcription_details"]["language"] == "en"
    assert german["transcription_details"]["language"] == "de"
    assert first["transcription_segments"][0].keys() == {"start", "end", "text"}
    assert "transcription_error" not in first
    assert pair["transcription"][1] is None
    assert [error and error["type"] for error in pair["transcription_error"]] == [None, "file_not_found"]
    assert [row["transcription_error"]["type"] for row in found[3:]] == ["no_audio", "file_not_found", "no_audio"]
    assert "6 rows, 3 failed" in done.stderr
    assert "(2 x file_not_found, 2 x no_audio)" in done.stderr


def test_a_second_step_translates_what_the_first_transcribed(standin_fleet: Fleet, tmp_path: Path) -> None:
    source = speech_rows(tmp_path / "set", 2)
    command = ("run", "set/data.jsonl", "--cache-path", "elsewhere/cache")
    first = last_line(standin_fleet.cli(*command, cwd=tmp_path))
    step = ("--step", "1", "--task", "translate", "--output-key", "translation")
    second = last_line(standin_fleet.cli(*command, *step, cwd=tmp_path))
    assert (first.name, second.name) == ("data_step1.jsonl", "data_step2.jsonl")
    rows = read_rows(second)
    assert [list(row) for row in rows] == [["audio", "id", "start_s", "transcription", "translation"]] * 2
    assert all(row["translation"].startswith("stand-in ") for row in rows), "paths start at step 0's folder"
    assert len(read_rows(source)[0]) == 3, "the input is as it was"


def test_inputs_may_be_packed_and_several(standin_fleet: Fleet, tmp_path: Path) -> None:
    plain = speech_rows(tmp_path, 3, "a.jsonl").read_bytes()
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(plain))
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress(plain))
    out = ("--cache-path", str(tmp_path / "out"))
    both = last_line(standin_fleet.cli("run", "a.jsonl", "*.gz", "--prefix", "both", *out, cwd=tmp_path))
    assert both.name == "both_step1.jsonl"
    assert [row["id"] for row in read_rows(both)] == [0, 1, 2, 0, 1, 2]
    few = last_line(standin_fleet.cli("run", "c.jsonl.zst", "--limit", "2", *out, cwd=tmp_path))
    assert few.name == "c_step1.jsonl"
    assert few.read_bytes() == b"".join(both.read_bytes().splitlines(keepends=True)[:2])


def test_the_same_command_another_option_force_and_prefix(standin_fleet: Fleet, tmp_path: Path) -> None:
    source = speech_rows(tmp_path, 2)
    command = ("run", str(source), "--cache-path", str(tmp_path / "cache"))
    path = last_line(standin_fleet.cli(*command))
    made = path.read_bytes()
    assert last_line(standin_fleet.cli(*command, REDIS_URL=NO_BROKER)) == path, "complete: no broker is asked"

    # What cannot be done is refused before the finished step is given up.
    for impossible in ({"REDIS_URL": NO_BROKER}, {}):
        refused = standin_fleet.cli(*command, "--force", *([] if impossible else ["--model", "typo"]), **impossible)
        assert (refused.returncode, refused.stderr.count("\n")) == (1 if impossible else 2, 1), refused.stderr
        assert last_line(standin_fleet.cli(*command)) == path
    refused = standin_fleet.cli(*command, "--prefix", "typed", "--model", "typo")
    assert refused.returncode == 2
    assert "--model typo: no live worker has it" in refused.stderr
    assert last_line(standin_fleet.cli(*command, "--prefix", "typed")).read_bytes() == made

    refused = standin_fleet.cli(*command, "--timestamps")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "timestamps was off, now on" in refused.stderr
    assert path.read_bytes() == made

    other = last_line(standin_fleet.cli(*command, "--timestamps", "--prefix", "timed"))
    assert "transcription_segments" in read_rows(other)[0]
    assert path.read_bytes() == made

    assert last_line(standin_fleet.cli(*command, "--timestamps", "--force")) == path
    assert path.read_bytes() == other.read_bytes()


def test_failures_decide_the_exit_code(standin_fleet: Fleet, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "data.jsonl", [{"audio": "missing.wav"}, {"audio": None}])
    command = ("run", str(source), "--cache-path", str(tmp_path / "cache"))
    done = standin_fleet.cli(*command)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == str(tmp_path / "cache" / "data_step1.jsonl"), "it is written all the same"
    assert "2 rows, 2 failed, 0.0 s of audio (1 x file_not_found, 1 x no_audio)\n" in done.stderr
    assert done.stderr.endswith("whisper-fleet: no row succeeded\n")
    assert standin_fleet.cli(*command).returncode == 1, "as often as one asks"

    some = speech_rows(tmp_path / "some", 3)
    with some.open("a") as lines:
        lines.write(json.dumps({"audio": "missing.wav"}) + "\n")
    command = ("run", str(some), "--cache-path", str(tmp_path / "cache"), "--prefix", "some")
    for limit, code in (("0", 1), ("24%", 1), ("25%", 0), ("1", 0)):
        done = standin_fleet.cli(*command, "--max-failed", limit)
        assert done.returncode == code, (limit, done.stderr)
        assert ("--max-failed" in done.stderr) is (code == 1)
        assert "Traceback" not in done.stderr

"""What is wrong is one line on stderr and exit code 2; nothing is sent, made or overwritten."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from job_files import answer, failed_answer, finished, new_job

from fleet import Fleet, clean_environment, run_cli
from patched_imports import patched_imports
from producer import registry
from producer.registry import Registration

GOOD = b'{"audio": "a.wav"}\n'


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with Fleet(tmp_path_factory.mktemp("errors")) as running:
        yield running


def refused(done: subprocess.CompletedProcess[str], code: int = 2) -> str:
    """The one line of a command that was refused."""
    assert done.returncode == code, (done.stdout, done.stderr)
    assert done.stdout == ""
    assert done.stderr.startswith("whisper-fleet: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


#: Input, further arguments, and what the line names.
INPUTS: list[Any] = [
    pytest.param(GOOD + b'{"audio": \n', [], ["data.jsonl:2:", "not valid JSON"], id="malformed line"),
    pytest.param(GOOD + b"\n[1]\n", [], ["data.jsonl:3:", "a list"], id="no object"),
    pytest.param(b'{"path": "a.wav"}\n', [], ["data.jsonl:1:", "'audio'", "path", "--media-key"], id="no media key"),
    pytest.param(b'{"audio": 7}\n', [], ["data.jsonl:1:", "a number"], id="audio is a number"),
    pytest.param(b'{"audio": "\xff"}\n', [], ["data.jsonl:1:", "UTF-8"], id="not UTF-8"),
    pytest.param(
        GOOD + b'{"audio": "b", "transcription": ""}\n',
        [],
        ["data.jsonl:2:", "'transcription'", "--overwrite-column"],
        id="column is there",
    ),
    pytest.param(None, [], ["data.jsonl", "no such file"], id="no input"),
    pytest.param(GOOD, ["more.jsonl"], ["more.jsonl", "no such file"], id="no second input"),
    pytest.param(GOOD, ["x" * 300], ["xxx: cannot be read (File name too long)"], id="name too long"),
    pytest.param(
        GOOD,
        ["--step", "1", "--cache-path", "x" * 300],
        ["data_step1.jsonl: cannot be read (File name too long)"],
        id="name of the step before too long",
    ),
    pytest.param(GOOD, ["./same.jsonl"], ["several inputs", "--prefix"], id="several inputs"),
    pytest.param(GOOD, ["--cache-path", "data.jsonl/below"], ["data.jsonl/below", "--cache-path"], id="unwritable"),
    pytest.param(GOOD, ["--language", "Germn"], ["--language Germn", "german (de)"], id="unknown language"),
    pytest.param(GOOD, ["--prompt", "a" * 10_001], ["--prompt: 10001 characters", "at most 10000"], id="long prompt"),
    pytest.param(GOOD, ["--step", "1"], ["data_step1.jsonl", "run step 0 first"], id="no step before"),
]


@pytest.mark.parametrize(("content", "arguments", "words"), INPUTS)
def test_bad_input_is_named_before_anything_is_made(
    broker: Fleet, tmp_path: Path, content: bytes | None, arguments: list[str], words: list[str]
) -> None:
    if content is not None:
        (tmp_path / "data.jsonl").write_bytes(content)
        (tmp_path / "same.jsonl").write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    line = refused(broker.cli("enqueue", "data.jsonl", *arguments, cwd=tmp_path))
    for word in words:
        assert word in line
    assert sorted(tmp_path.rglob("*")) == before
    assert broker.redis.dbsize() == 0


#: Arguments, environment, and what the line names.
SETTINGS: list[Any] = [
    pytest.param(["run"], {"REDIS_URL": "http://:secret@h"}, ["REDIS_URL", "redis://"], id="run scheme"),
    pytest.param(["enqueue"], {"REDIS_URL": "redis://:secret@h:port"}, ["REDIS_URL", "port"], id="enqueue port"),
    pytest.param(
        ["enqueue"], {"REDIS_URL": "redis://:secret@h/db"}, ["REDIS_URL", "number of a database"], id="enqueue database"
    ),
    pytest.param(["enqueue"], {}, ["REDIS_URL is not set", "redis://"], id="enqueue without"),
    pytest.param(["worker"], {}, ["REDIS_URL is not set", "redis://"], id="worker without"),
    pytest.param(["flower"], {}, ["REDIS_URL is not set", "redis://"], id="flower without"),
    pytest.param(["run"], {"REDIS_URL": "redis://:secret@127.0.0.1:x/0"}, ["REDIS_URL", "(hidden)"], id="run port"),
    pytest.param(["run"], {"WHISPER_WINDOW_ROWS": "many"}, ["WHISPER_WINDOW_ROWS='many'"], id="run setting"),
    pytest.param(["worker"], {"WHISPER_ENGINE": "none"}, ["WHISPER_ENGINE='none'"], id="worker setting"),
    pytest.param(["run", "--max-failed", "x"], {}, ["--max-failed x", "5%"], id="run max-failed"),
]


@pytest.mark.parametrize(("arguments", "changes", "words"), SETTINGS)
def test_wrong_settings_are_named_without_their_secrets(
    tmp_path: Path, arguments: list[str], changes: dict[str, str], words: list[str]
) -> None:
    (tmp_path / "data.jsonl").write_bytes(GOOD)
    inputs = [] if arguments in (["worker"], ["flower"]) else ["data.jsonl"]
    line = refused(run_cli(*arguments, *inputs, environment=clean_environment(**changes), cwd=tmp_path, timeout=60))
    for word in words:
        assert word in line
    assert "secret" not in line
    assert not list(tmp_path.glob("cache/*.jsonl"))


@pytest.mark.parametrize("command", ["run", "worker"])
@pytest.mark.parametrize("engine", ["vllm", "standin"])
def test_a_machine_without_an_engine_says_how_to_get_one(tmp_path: Path, command: str, engine: str) -> None:
    (tmp_path / "data.jsonl").write_bytes(GOOD)
    without = patched_imports(tmp_path / "patched", "sys.modules['vllm'] = sys.modules['numpy'] = None")
    broker = {"REDIS_URL": "redis://127.0.0.1:1/0"} if command == "worker" else {}
    environment = clean_environment(WHISPER_ENGINE=engine, **without, **broker)

    line = refused(
        run_cli(command, *(["data.jsonl"] if command == "run" else []), environment=environment, cwd=tmp_path)
    )

    assert ("'.[gpu]' in a checkout, or without a GPU" if engine == "vllm" else "'.[audio]'") in line
    assert not list(tmp_path.glob("cache/*"))


#: A machine with a GPU, whose engines `workers.nvml` alone could count.
GPU = 'AFTER["producer.shares"] = lambda module: setattr(module, "device_kind", lambda: "cuda")'


@pytest.mark.parametrize("command", ["run", "retry"])
def test_workers_that_do_not_fit_leave_a_finished_job_as_it_is(tmp_path: Path, command: str) -> None:
    # Given a finished job with a row that failed
    folder = tmp_path / "here"
    job = finished(new_job(folder, 2), [answer(0), failed_answer(1)])

    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}

    before = files()
    # When it is to be made anew by two engines that do not fit on one GPU together
    what = ["run", "data.jsonl", "--force"] if command == "run" else ["retry", str(job.step.path)]
    environment = clean_environment(CUDA_VISIBLE_DEVICES="0", **patched_imports(tmp_path / "patched", GPU))
    line = refused(run_cli(*what, "--workers", "2", environment=environment, cwd=folder))
    # Then it stays, byte for byte
    assert "2 engines on one GPU" in line
    assert files() == before


@pytest.mark.parametrize("command", ["run", "enqueue", "collect", "jobs", "workers"])
def test_a_broker_that_does_not_answer_may_answer_later(tmp_path: Path, command: str) -> None:
    (tmp_path / "data.jsonl").write_bytes(GOOD)
    inputs = ["data.jsonl"] if command in ("run", "enqueue") else []
    silent = clean_environment(REDIS_URL="redis://:secret@127.0.0.1:1/0")
    line = refused(run_cli(command, *inputs, environment=silent, cwd=tmp_path, timeout=60), code=1)
    assert "REDIS_URL redis://127.0.0.1:1/0: does not answer" in line
    assert not list(tmp_path.glob("cache/*.jsonl"))


def test_a_collector_needs_jobs_that_are_known(broker: Fleet, tmp_path: Path) -> None:
    for name in ("data_step1-12345678", str(tmp_path / "data_step1.jsonl")):
        line = refused(broker.cli("collect", name))
        assert name in line
        assert "whisper-fleet jobs" in line


@pytest.mark.parametrize("command", ["collect", "failed", "retry"])
def test_a_job_whose_files_are_elsewhere_is_told_from_one_that_is_not_known(broker: Fleet, command: str) -> None:
    entry = Registration(id="x-1", output="/elsewhere/data_step1.jsonl", rows=1, created="2026-12-01")
    with broker.redis as redis:
        registry.register(redis, entry)
        try:
            line = refused(broker.cli(command, "x-1"))
        finally:
            registry.unregister(redis, "x-1")
    assert "job x-1: its step file /elsewhere/data_step1.jsonl is not on this machine: run this where it is" in line


@pytest.mark.parametrize("command", ["run", "retry"])
@pytest.mark.parametrize("option", ["--workers", "--tensor-parallel-size"])
def test_what_is_for_an_own_fleet_is_not_passed_over_on_another(
    broker: Fleet, tmp_path: Path, command: str, option: str
) -> None:
    job = finished(new_job(tmp_path, 2), [answer(0), failed_answer(1)])
    what = str(tmp_path / "data.jsonl") if command == "run" else str(job.step.path)
    line = refused(broker.cli(command, what, option, "1"))
    assert f"{option} is for a fleet of the command's own, and REDIS_URL names another" in line


def test_options_that_do_not_exist_end_with_2_too(tmp_path: Path) -> None:
    done = run_cli("run", "data.jsonl", "--nope", environment=clean_environment(), cwd=tmp_path)
    assert done.returncode == 2
    assert "No such option: --nope" in done.stderr
    assert "Traceback" not in done.stderr
    assert run_cli(environment=clean_environment()).returncode == 2

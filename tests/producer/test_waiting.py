"""What a person reads while nothing is answered yet: who is being waited for, and what that one does."""

from __future__ import annotations

from pathlib import Path

from job_files import spec_of, speech_rows
from running import Running

from fleet import Fleet, clean_environment, run_cli, wait_for
from patched_imports import SLOW_LOAD, patched_imports
from producer.opening import open_job
from workers import keys
from workers.publisher import publish, take_back
from workers.startup import Starting


def test_a_run_with_its_own_fleet_says_what_starts(tmp_path: Path) -> None:
    source = speech_rows(tmp_path, 1)
    done = run_cli(
        "run",
        str(source),
        "--cache-path",
        str(tmp_path / "cache"),
        environment=clean_environment(WHISPER_ENGINE="standin", **patched_imports(tmp_path / "patched", SLOW_LOAD)),
    )
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    # Each thing once, in its order, the worker's in its own words
    assert lines[0] == "starting a private Valkey"
    assert lines[1].startswith(f"starting a local worker, log in {tmp_path}")
    told = [line.partition(" (")[0] for line in lines if line.startswith("worker1: ")]
    assert told
    assert len(told) == len(set(told))
    assert set(told) <= {
        f"worker1: {part}"
        for part in ("starting Python", "asking Redis", "starting a decode process", "loading the engine")
    }


def test_a_run_on_a_fleet_that_starts_says_so(fleet: Fleet, tmp_path: Path) -> None:
    # Given a fleet whose only worker is not ready yet
    starting = Starting(name="early@host", doing="importing vLLM", total_seconds=3.0)
    key = keys.starting("early@host", "1")
    publish(fleet.redis, keys.STARTING, key, starting.model_dump_json())
    running = Running(fleet, open_job(spec_of(speech_rows(tmp_path, 2))))
    # When a job is run there, then that is what it waits for
    wait_for(lambda: "early: importing vLLM" in running.shown)
    assert "no worker is live" not in running.shown
    # When that worker is gone, then nobody is left to wait for
    take_back(fleet.redis, keys.STARTING, key)
    wait_for(lambda: "no worker is live on redis://" in running.shown)
    # And once there is one, the job is done
    fleet.start_worker()
    assert running.join().error is None

"""The GPU benchmark's command, whatever ends it: what was measured, and why no more, is found afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gpu_runs import Run
from fleet import gone, wait_for

ROOT = Path(__file__).parents[2]
RUN = Run("worker", 8, 60, 2.0, 3.0, 10, 6000, 6.0, 1.0, 90.0, 70.0)
#: The command, with systems that say what they do, tell of what they are told to, and stand still, and need no vLLM.
COMMAND = "from benchmarks import gpu; gpu.RUNS, gpu.VLLM_MODULE = 'stuck_runs', 'json'; gpu.app()"
STUCK = """
import json, os, signal, sys
from pathlib import Path
print("loading in process", os.getpid(), flush=True)
with Path(sys.argv[3]).open("a") as told:
    told.write(TOLD)
signal.pause()
"""


def started(folder: Path, told: list[Any], *arguments: str) -> subprocess.Popen[str]:
    lines = "".join(json.dumps(one) + "\n" for one in told)
    (folder / "stuck_runs.py").write_text(STUCK.replace("TOLD", repr(lines)))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
    command = [sys.executable, "-c", COMMAND, "--shape", "tiny", "--results", str(folder / "results"), *arguments]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def report(folder: Path, ending: str) -> dict[str, Any]:
    """What is written there, nothing before there is."""
    found = list((folder / "results").glob(f"gpu-tiny-*{ending}.json"))
    return dict(json.loads(found[0].read_text())) if found else {}


def test_a_command_that_is_killed_leaves_what_was_told_and_the_engines_log(tmp_path: Path) -> None:
    # Given a first system that has told of a run, and stands still in the next
    driver = started(tmp_path, [{"log_mel_ms": {"cpu": 5.0, "wall": 4.0}}, {"run": asdict(RUN)}])
    try:
        wait_for(lambda: report(tmp_path, "-partial").get("runs"))
    finally:
        # When the command is ended from outside
        driver.kill()
        driver.communicate()

    # Then the run is there, and the word that there may be more
    left = report(tmp_path, "-partial")
    assert [(run["system"], run["concurrency"]) for run in left["runs"]] == [("worker", 8)]
    assert left["log_mel_ms"] == {"worker": {"cpu": 5.0, "wall": 4.0}}
    assert left["failures"] == {"worker": "it had not ended when this was written"}
    # And what the engine said
    (log,) = (tmp_path / "results").glob("gpu-tiny-*-worker.log")
    said, _, process = log.read_text().strip().rpartition(" ")
    assert said == "loading in process"
    # And nothing runs on
    wait_for(lambda: gone(int(process)))


def test_engines_that_stand_still_are_ended_in_time_and_their_logs_stay(tmp_path: Path) -> None:
    driver = started(tmp_path, [], "--minutes", "0.1")
    try:
        output, _ = driver.communicate(timeout=300)
    finally:
        driver.kill()
        driver.communicate()

    assert driver.returncode == 1, output
    left = report(tmp_path, "[0-9]")
    assert set(left["failures"]) == {"worker", "bare"}
    assert all("no end after" in why for why in left["failures"].values())
    assert len(list((tmp_path / "results").glob("*.log"))) == 2
    assert report(tmp_path, "-partial") == {}

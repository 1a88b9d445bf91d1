"""The short part of `make chaos`: a few faults on small jobs, with time-outs of seconds instead of a minute."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from benchmarks.chaos import left_over
from benchmarks.chaos.campaign import Campaign
from benchmarks.chaos.faults import FAULTS as KNOWN
from benchmarks.chaos.faults import Fault
from benchmarks.chaos.judge import MOST_LISTED, Line

FAULTS = ("none", "kill-worker", "kill-valkey", "terminate", "kill-run")
#: Its answers are other ones.
DEAF = Fault("speech is taken for noise", settings={"WHISPER_MIN_SPEECH_SECONDS": "10"})
ROWS = 80
#: With it, each fault strikes before a quarter of the rows is answered: seconds before the job is over.
SEED = 10578
SETTINGS = {
    "WHISPER_VISIBILITY_TIMEOUT_SECONDS": "5",
    "WHISPER_LEASE_SECONDS": "1",
    "WHISPER_RESTORE_SECONDS": "1",
    "WHISPER_STANDIN_ENCODE_MS": "120",
}


@pytest.fixture(scope="module")
def lines() -> Iterator[dict[str, Line]]:
    """What came of a job a fault."""
    folder = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))  # short: a socket's path holds 107 bytes
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(KNOWN, "deaf", DEAF)
            campaign = Campaign("standin", (*FAULTS, "deaf"), ROWS, SEED, folder, SETTINGS)
            plans = campaign.plans()
        yield {line.fault: line for line in campaign.lines(plans)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_lost_doubled_or_left_over(lines: dict[str, Line], fault: str) -> None:
    line = lines[fault]
    assert (line.missed, line.left) == ([], []), line
    assert (line.expected, line.answered, line.lost, line.doubled) == (ROWS, ROWS, 0, 0)
    assert (line.left_over, line.identical, line.errors) == (0, True, {})


def test_an_undisturbed_job_runs_every_row_once(lines: dict[str, Line]) -> None:
    assert (lines["none"].runs_mean, lines["none"].runs_most) == (1.0, 1)


def test_the_rows_of_a_killed_worker_ran_elsewhere(lines: dict[str, Line]) -> None:
    line = lines["kill-worker"]
    assert line.elsewhere_seconds, "it held no rows: the fault struck nothing"
    assert line.runs_mean < 1.5


def test_other_texts_than_the_undisturbed_jobs_are_found_and_listed(lines: dict[str, Line]) -> None:
    line = lines["deaf"]
    assert (line.lost, line.doubled, line.left_over, line.identical) == (0, 0, 0, False)
    assert any(f"the step file differs in {ROWS} rows" in missed for missed in line.missed)
    assert len(line.differing) == MOST_LISTED
    for number, difference in enumerate(line.differing):
        assert (difference["id"], "error" in difference) == (number, False)
        assert difference["undisturbed"] != difference["here"]


def test_the_harness_itself_leaves_nothing(lines: dict[str, Line]) -> None:
    assert [process for process in psutil.process_iter() if _is_marked(process)] == []


def _is_marked(process: psutil.Process) -> bool:
    try:
        return str(process.environ().get(left_over.MARK, "")).startswith(f"{psutil.Process().pid}-")
    except psutil.Error:
        return False

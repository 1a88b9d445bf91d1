"""Two jobs share a fleet, whichever came first."""

from __future__ import annotations

from pathlib import Path

import pytest
from job_files import write_rows
from running import Running

from fleet import Fleet, wait_for
from producer.opening import open_job
from producer.spec import JobSpec

ROWS = 40


@pytest.fixture
def slow_fleet(tmp_path: Path) -> Fleet:
    """Its worker takes about five rows a second."""
    return Fleet(tmp_path / "fleet", {"WHISPER_ENGINE": "standin", "WHISPER_STANDIN_STEP_MS": "150"})


def ended(log: str, job: str) -> list[int]:
    """Where in a worker's log the messages of ``job`` ended."""
    return [at for at, line in enumerate(log.splitlines()) if f"[{job}." in line and "succeeded" in line]


def test_two_jobs_at_once_both_go_on(slow_fleet: Fleet, tmp_path: Path, samples: Path) -> None:
    rows = [{"audio": str(samples / "en_train.flac"), "language": "en"} for _ in range(ROWS)]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    with slow_fleet as fleet:
        fleet.start_worker()
        jobs = [open_job(JobSpec((str(source),), cache_path=str(tmp_path / name))) for name in ("first", "second")]
        # Given two jobs at once, whose windows are a part of their rows
        running = [Running(fleet, job, window_rows=8, chunk_rows=1) for job in jobs]
        for one in running:
            assert one.join().error is None, one.shown
        # Then neither waited for the other's end

        def ends() -> list[list[int]]:
            return [ended(fleet.log_path().read_text(), job.id) for job in jobs]

        wait_for(lambda: [len(found) for found in ends()] == [ROWS, ROWS])  # said after the answer is given
        first, second = ends()
        assert first[ROWS // 2] < second[-1]
        assert second[ROWS // 2] < first[-1]

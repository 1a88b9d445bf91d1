"""Reading a journal that another process writes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from job_files import answer, new_job

from producer.errors import FleetError
from producer.follow import Follower
from producer.job import Job
from producer.journal import Answered, Journal


def write(job: Job, rows: Iterable[int]) -> None:
    journal = Journal.open(job.step.journal_path, job.rows)
    journal.append([answer(row) for row in rows])
    journal.close()


def test_a_follower_sees_what_has_come(tmp_path: Path) -> None:
    job = new_job(tmp_path, rows=6)
    follower = Follower(job)
    assert 0 not in follower.read()
    for rows in ([2, 0], [], [5]):
        write(job, rows)
        follower.read()
    assert [row in follower.read() for row in range(6)] == [True, False, True, False, False, True]
    assert follower.count == 3
    # When: a collector writes the step. Then: all rows are answered, though their journal is gone.
    write(job, [1, 3, 4])
    journal = Journal.open(job.step.journal_path, job.rows)
    job.finish(journal)
    journal.close()
    assert all(row in follower.read() for row in range(6))
    assert follower.count == 6


def test_only_what_is_new_is_read(tmp_path: Path) -> None:
    job = new_job(tmp_path, rows=3)
    follower = Follower(job)
    write(job, [0, 1])
    follower.read()
    # What was read is not looked at again (no program changes it; here it tells).
    data = job.step.journal_path.read_bytes()
    job.step.journal_path.write_bytes(b"x" * (len(data) - 1) + b"\n" + answer(2) + b"\n")
    follower.read()
    assert follower.count == 3
    # What is damaged has its right line number.
    with job.step.journal_path.open("ab") as journal:
        journal.write(b"junk\n" + answer(2) + b"\n")
    with pytest.raises(FleetError, match=r"journal\.jsonl:3: not valid JSON"):
        follower.read()


@given(st.lists(st.integers(1, 60), max_size=30))
def test_a_journal_read_in_any_pieces_is_the_same(tmp_path_factory: pytest.TempPathFactory, sizes: list[int]) -> None:
    path = tmp_path_factory.mktemp("pieces") / "journal.jsonl"
    data = b"".join(answer(row) + b"\n" for row in range(8))
    known, end = Answered(8), 0
    for size in (*sizes, len(data)):
        end = min(len(data), end + size)
        path.write_bytes(data[:end])
        Journal.read_answered(path, 8, known)
        assert len(known) == data[:end].count(b"\n")
    assert all(row in known for row in range(8))


def test_a_journal_that_may_not_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A collector that runs as another user keeps its journals to itself."""

    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    job = new_job(tmp_path, rows=2)
    monkeypatch.setattr("producer.follow.Journal.read_answered", refused)
    with pytest.raises(FleetError, match=r"journal\.jsonl: cannot be read \(Permission denied\): .* of another user"):
        Follower(job).read()

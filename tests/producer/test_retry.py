"""Failed rows done again: only those, at once, whatever interrupts."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
from job_files import answer, deliver, failed_answer, finished, read_rows, spec_of, write_rows

from fleet import Fleet
from producer import registry
from producer.collector import Collector
from producer.errors import FleetError, UsageError
from producer.job import Job, load_job
from producer.journal import Journal
from producer.opening import open_job
from producer.retry import begin_retry
from producer.unchanged_input import UnchangedInput
from workers.messages import Failure, Record

#: Of the six rows these failed.
FAILED = {1: "timeout", 2: "not_audio", 5: "timeout"}


def made_step(folder: Path, **options: object) -> Job:
    """A finished step of six rows, three of which failed."""
    write_rows(folder / "data.jsonl", ({"audio": f"{row}.wav", "big": 10**30} for row in range(6)))
    job = open_job(spec_of(folder / "data.jsonl", **options))
    return finished(job, [failed_answer(row, FAILED[row]) if row in FAILED else answer(row) for row in range(6)])


def texts(job: Job) -> list[str | None]:
    return [row["transcription"] for row in read_rows(job.step.path)]


def test_only_failed_rows_are_done_again(tmp_path: Path) -> None:
    step = made_step(tmp_path, details=True)
    before = step.step.path.read_bytes().splitlines()
    # When: the failed rows are to be done again.
    job = begin_retry(step)
    # Then: it is another job to the fleet, with the failed rows alone, and the step is still there.
    assert job
    assert job.id != step.id
    assert (job.rows, job.registration().rows, job.is_complete()) == (3, 3, False)
    records = [(row, record) for row, record in job.records() if isinstance(record, Record)]
    assert [(row, record.row, Path(str(record.audio)).name) for row, record in records] == [
        (0, 0, "1.wav"),
        (1, 1, "2.wav"),
        (2, 2, "5.wav"),
    ]
    assert step.step.path.read_bytes().splitlines() == before
    # When: one of them fails again.
    done = finished(job, [answer(2, "five"), failed_answer(1, "too_long"), answer(0, "one")])
    # Then: the others are byte for byte what they were.
    after = step.step.path.read_bytes().splitlines()
    assert texts(done) == ["text 0", "one", None, "text 3", "text 4", "five"]
    assert [after[row] for row in (0, 3, 4)] == [before[row] for row in (0, 3, 4)]
    rows = read_rows(step.step.path)
    assert "transcription_error" not in rows[1]
    assert rows[2]["transcription_error"]["type"] == "too_long"
    assert rows[1]["big"] == 10**30
    assert done.header.summary
    assert {name: done.header.summary[name] for name in ("rows", "failed", "reasons", "retried", "retried_failed")} == {
        "rows": 6,
        "failed": 1,
        "reasons": {"too_long": 1},
        "retried": 3,
        "retried_failed": 1,
    }
    assert done.progress().audio_seconds == 5.0
    assert sorted(path.name for path in done.step.job_path.iterdir()) == [
        "audio.jsonl",
        "collector.lock",
        "job.json",
        "producer.lock",
    ]
    # And: the step is that of the same job.
    assert open_job(spec_of(tmp_path / "data.jsonl", details=True)) == done == done.reload()


def test_rows_that_failed_for_other_reasons_are_kept(tmp_path: Path) -> None:
    step = made_step(tmp_path)
    job = begin_retry(step, ["timeout", "quarantined", "timeout"])
    assert job
    assert list(job.retried()) == [1, 5]
    done = finished(job, [answer(0, "one"), answer(1, "five")])
    assert texts(done) == ["text 0", "one", None, "text 3", "text 4", "five"]
    assert dict(done.progress().reasons) == {"not_audio": 1}
    assert done.progress().failed == 1
    # And: what is left can be done later, until nothing is.
    assert begin_retry(done, ["timeout"]) is None
    last = begin_retry(done)
    assert last
    assert begin_retry(finished(last, [answer(0, "two")])) is None


def test_kept_rows_that_failed_in_part_have_not_failed(tmp_path: Path) -> None:
    write_rows(tmp_path / "data.jsonl", [{"audio": ["a.wav", "b.wav"]}, {"audio": "c.wav"}, {"audio": "d.wav"}])
    partly = {"row": 0, "items": [{"text": "a"}, {"type": "not_audio", "message": "no"}]}
    answers = [json.dumps(partly).encode(), failed_answer(1, "not_audio"), failed_answer(2, "timeout")]
    step = finished(open_job(spec_of(tmp_path / "data.jsonl")), answers)
    assert step.progress().failed == 2
    # When: the row that failed for another reason is done again. Then: as many have failed as before, but that one.
    job = begin_retry(step, ["timeout"])
    assert job
    done = finished(job, [answer(0)])
    assert (done.progress().failed, done.progress().reasons) == (1, {"not_audio": 2})


def test_rows_that_failed_in_part_are_done_whole(tmp_path: Path) -> None:
    write_rows(tmp_path / "data.jsonl", [{"audio": ["a.wav", "b.wav"]}, {"audio": ["c.wav", "d.wav"]}, {"audio": None}])
    text, failure = {"text": "a"}, {"type": "not_audio", "message": "no"}
    lines = [json.dumps({"row": 0, "items": [text, failure]}), json.dumps({"row": 1, "items": [text, text]})]
    step = finished(
        open_job(spec_of(tmp_path / "data.jsonl")), [*(line.encode() for line in lines), failed_answer(2, "no_audio")]
    )
    job = begin_retry(step)
    assert job
    (first, record), (last, none) = job.records()
    assert (first, last) == (0, 1)
    assert isinstance(record, Record)
    assert [Path(source).name for source in record.sources] == ["a.wav", "b.wav"]
    assert none == Failure(type="no_audio", message="column 'audio' names no audio")
    done = finished(job, [json.dumps({"row": 0, "items": [text, text]}).encode(), failed_answer(1, "no_audio")])
    assert texts(done) == [["a", "a"], ["a", "a"], None]
    assert "transcription_error" not in read_rows(done.step.path)[0]


def test_an_interrupted_retry_is_resumed(tmp_path: Path) -> None:
    step = made_step(tmp_path)
    job = begin_retry(step, ["timeout"])
    assert job
    journal = Journal.open(job.step.journal_path, job.rows)
    journal.append([answer(0, "one")])
    journal.close()
    # Then: the same command, and the one that made the step, go on with it; another one does not.
    assert begin_retry(job, ["timeout"]) == job == begin_retry(step, ["timeout"])
    assert open_job(spec_of(tmp_path / "data.jsonl")) == job == load_job(step.step.path)
    with pytest.raises(UsageError, match="a retry with --reason timeout is not finished"):
        begin_retry(job)
    done = finished(job, [answer(0, "again"), answer(1, "five")])
    assert texts(done) == ["text 0", "one", None, "text 3", "text 4", "five"]


def test_a_retry_is_resumed_in_whatever_order_its_reasons_are_named(tmp_path: Path) -> None:
    step = made_step(tmp_path)
    job = begin_retry(step, ["timeout", "not_audio"])
    assert job
    assert begin_retry(step, ["not_audio", "timeout", "not_audio"]) == job


def test_answers_that_a_crash_has_left_are_not_those_of_a_retry(tmp_path: Path) -> None:
    """`Job.finish` removes them last."""
    step = made_step(tmp_path)
    journal = Journal.open(step.step.journal_path, step.rows)
    journal.append([failed_answer(row, FAILED[row]) if row in FAILED else answer(row) for row in range(6)])
    journal.close()
    step.step.parts_path.write_bytes(b"{}\n")
    assert begin_retry(step)
    assert not step.step.journal_path.exists()
    assert not step.step.parts_path.exists()


def test_a_retry_that_nobody_can_do_is_not_begun(tmp_path: Path) -> None:
    def refuse() -> None:
        raise UsageError("no live worker has it")

    step = made_step(tmp_path)
    with pytest.raises(UsageError, match="no live worker has it"):
        begin_retry(step, (), refuse)
    assert step.reload() == step
    assert not step.step.retried_path.exists()


def test_an_input_that_changes_before_a_retry_is_sent_is_noticed(tmp_path: Path) -> None:
    """While the model loads, somebody corrects the paths that failed."""
    step = made_step(tmp_path)
    for _ in range(2):  # begun, and resumed
        job = begin_retry(step, ["timeout"])
        assert job
        source = tmp_path / "data.jsonl"
        rows = source.read_bytes()
        write_rows(source, [{"audio": "b.wav"}] * 6)
        with pytest.raises(UsageError, match="the input changed"):
            UnchangedInput(job).check()
        source.write_bytes(rows)


def test_a_step_that_was_moved_is_wanted_back(tmp_path: Path) -> None:
    step = made_step(tmp_path)
    step.step.path.rename(tmp_path / "elsewhere.jsonl")
    with pytest.raises(UsageError, match=r"data_step1\.jsonl: not there any more: put it back"):
        begin_retry(step)


def test_a_crash_between_the_step_and_its_header_changes_nothing(tmp_path: Path) -> None:
    job = begin_retry(made_step(tmp_path))
    assert job
    header = job.step.header_path.read_bytes()
    rows = job.step.retried_path.read_bytes()
    answers = [answer(row, "x") for row in range(3)]
    done = finished(job, answers)
    written = done.step.path.read_bytes()
    job.step.header_path.write_bytes(header)
    job.step.retried_path.write_bytes(rows)
    assert finished(job.reload(), answers).header.summary["failed"] == 0  # type: ignore[index]
    assert done.step.path.read_bytes() == written


def test_what_cannot_be_done_again_is_refused_in_words(tmp_path: Path) -> None:
    write_rows(tmp_path / "data.jsonl", [{"audio": "a.wav"}] * 6)
    with pytest.raises(UsageError, match="not finished: run the command"):
        begin_retry(open_job(spec_of(tmp_path / "data.jsonl")))
    step = made_step(tmp_path / "other")
    write_rows(tmp_path / "other" / "data.jsonl", [{"audio": "b.wav"}] * 6)
    with pytest.raises(UsageError, match=r"data\.jsonl: the input changed since .*data_step1\.jsonl began"):
        begin_retry(step)
    step = made_step(tmp_path / "cut", prefix="x")
    lines = step.step.path.read_bytes().splitlines(keepends=True)
    step.step.path.write_bytes(b"".join(lines[:5]))
    with pytest.raises(UsageError, match="has 5 rows, not 6"):
        begin_retry(step)
    assert step.reload() == step
    assert not step.step.retried_path.exists()


@pytest.mark.parametrize("change", ["sorted", "extended"])
def test_a_step_that_another_program_rearranged_keeps_its_rows(tmp_path: Path, change: str) -> None:
    """A row that is done again is written as the input has it at that place."""
    step = made_step(tmp_path, overwrite_column=True)
    rows = read_rows(step.step.path)
    write_rows(step.step.path, reversed(rows) if change == "sorted" else ({**row, "mine": 1} for row in rows))
    before = step.step.path.read_bytes()
    with pytest.raises(FleetError, match=r"data_step1\.jsonl:\d: changed by another program"):
        begin_retry(step)
    assert (step.step.path.read_bytes(), step.reload()) == (before, step)
    assert not step.step.retried_path.exists()


def test_a_row_is_the_same_row_however_it_is_written(tmp_path: Path) -> None:
    # Given: failed rows with an old column that was overwritten, and a step that pandas has written anew
    lines = ['{"audio": "a.wav", "n": 1.10, "x": NaN, "transcription": "old"}', '{"audio": "b.wav"}']
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    job = open_job(spec_of(tmp_path / "data.jsonl", overwrite_column=True))
    step = finished(job, [failed_answer(0), answer(1)])
    write_rows(step.step.path, [dict(reversed(row.items())) for row in read_rows(step.step.path)])
    # Then: nothing is in the way
    retry = begin_retry(step)
    assert retry is not None
    assert retry.rows == 1


def test_a_step_that_the_next_one_is_made_from_stays_as_it_is(tmp_path: Path) -> None:
    """Or all answers of the next one would be of an input that is gone."""
    step = made_step(tmp_path)
    again = {"step": 1, "task": "translate", "output_key": "english"}
    # Given: the next step is begun. Then: its input is not made anew.
    second = open_job(spec_of(tmp_path / "data.jsonl", **again))
    with pytest.raises(UsageError, match=r"data_step2\.jsonl: is being made from .*data_step1\.jsonl"):
        begin_retry(step)
    assert step.reload() == step
    # When: it is done. Then: it may be.
    finished(second, [answer(row) for row in range(6)])
    assert begin_retry(step) is not None
    # And: the next step is not begun from what is about to be replaced.
    with pytest.raises(UsageError, match="is being made anew and not finished: run its retry"):
        open_job(spec_of(tmp_path / "data.jsonl", **again, force=True))


def test_millions_of_rows_are_retried_in_bounded_memory(tmp_path: Path) -> None:
    job = begin_retry(made_step(tmp_path))
    assert job
    assert job.header.retry
    rows = 300_000
    job.step.retried_path.write_text("".join(f"{row}\n" for row in range(rows)))
    many = replace(job, header=replace(job.header, retry=replace(job.header.retry, rows=rows)))
    tracemalloc.start()
    try:
        assert many.retried()[-1] == rows - 1
        assert tracemalloc.get_traced_memory()[1] < 2.5 * 8 * rows
    finally:
        tracemalloc.stop()


def test_a_step_that_is_changed_meanwhile_is_left_alone(tmp_path: Path) -> None:
    job = begin_retry(made_step(tmp_path))
    assert job
    changed = job.step.path.read_bytes().replace(b"text 4", b"edited")
    job.step.path.write_bytes(changed)
    with pytest.raises(FleetError, match="changed while its rows were done again"):
        finished(job, [answer(row) for row in range(3)])
    assert job.step.path.read_bytes() == changed
    # Without its step file a retry is nothing: the job starts over.
    job.step.path.unlink()
    assert open_job(spec_of(tmp_path / "data.jsonl")).rows == 6


@pytest.mark.parametrize("mode", [0o600, 0o664])
def test_a_rewritten_step_stays_where_it_lies_and_as_open_as_it_was(tmp_path: Path, mode: int) -> None:
    # Given: a step whose user has it on another disk, behind a link, and lets these people read it
    step = made_step(tmp_path)
    elsewhere = tmp_path / "elsewhere" / "rows.jsonl"
    elsewhere.parent.mkdir()
    step.step.path.rename(elsewhere)
    step.step.path.symlink_to(elsewhere)
    elsewhere.chmod(mode)
    job = begin_retry(step)
    assert job
    # When: its failed rows are done again
    done = finished(job, [answer(row, "again") for row in range(3)])
    # Then: it is the same file to them
    assert step.step.path.is_symlink()
    assert elsewhere.stat().st_mode & 0o777 == mode
    assert texts(done) == ["text 0", "again", "again", "text 3", "text 4", "again"]
    assert list(elsewhere.parent.iterdir()) == [elsewhere]


def test_force_ends_a_retry(tmp_path: Path) -> None:
    job = begin_retry(made_step(tmp_path))
    assert job
    forced = open_job(spec_of(tmp_path / "data.jsonl", force=True))
    assert (forced.rows, forced.header.retry) == (6, None)
    assert not forced.step.retried_path.exists()


@pytest.mark.parametrize("lock", ["producer", "collector"])
def test_a_retry_waits_for_nobody_who_is_at_the_step(
    tmp_path: Path, lock: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("producer.retry.SETTLE_SECONDS", 0.0)
    step = made_step(tmp_path)
    with step.step.lock(lock) as held:
        assert held.acquire()
        with pytest.raises(UsageError, match="is working on it"):
            begin_retry(step)


def test_any_collector_of_the_fleet_may_end_a_retry(fleet: Fleet, tmp_path: Path) -> None:
    step = made_step(tmp_path)
    job = begin_retry(step)
    assert job
    # Given: its producer is gone, and late answers of the first run arrive.
    registry.register(fleet.redis, job.registration())
    deliver(fleet.redis, step, answer(1, "late"))
    deliver(fleet.redis, job, *(answer(row, f"again {row}") for row in range(3)))
    # When: another process collects what is registered.
    collector = Collector(fleet.redis)
    (owned,) = collector.adopt_registered()
    assert owned.progress().rows == 3
    while not owned.complete:
        collector.poll()
    collector.close()
    # Then: the step is whole.
    assert texts(job) == ["text 0", "again 0", "again 1", "text 3", "text 4", "again 2"]
    assert job.reload().is_complete()
    assert job.id not in {entry.id for entry in registry.registered(fleet.redis)}


def test_the_audio_of_retried_rows_is_known_as_it_is_now(tmp_path: Path) -> None:
    step = made_step(tmp_path)
    assert step.step.audio_path.read_bytes() == b"[null]\n" * 6
    (tmp_path / "2.wav").write_bytes(b"123")
    (tmp_path / "3.wav").write_bytes(b"123")
    assert begin_retry(step)
    lines = step.step.audio_path.read_bytes().splitlines()
    assert [line.startswith(b"[[3,") for line in lines] == [False, False, True, False, False, False]

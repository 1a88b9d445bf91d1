"""Answers of an earlier step: taken for audio that is the same, and for nothing else."""

from __future__ import annotations

import codecs
import contextlib
import errno
import itertools
import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from job_files import answer, failed_answer, finished, read_rows, spec_of, write_rows

from producer import opening
from producer.errors import FleetError, UsageError
from producer.header import JobHeader
from producer.job import Job
from producer.journal import Journal
from producer.opening import open_job
from producer.retry import begin_retry
from producer.spec import JobSpec
from workers.messages import ChannelTranscripts, RowResult, Segment, Transcript

OLD_ROWS = 6


def audio(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes(name.encode())


def made_step(folder: Path, **options: object) -> Job:
    """A finished step of six rows with files, the last of which failed."""
    audio(folder, *(f"{row}.wav" for row in range(OLD_ROWS)))
    source = write_rows(folder / "old.jsonl", ({"audio": f"{row}.wav", "n": row} for row in range(OLD_ROWS)))
    answers = [answer(row) for row in range(OLD_ROWS - 1)]
    return finished(open_job(spec_of(source, **options)), [*answers, failed_answer(OLD_ROWS - 1)])


def reusing(old: Job, folder: Path, rows: Sequence[object], **options: object) -> Job:
    return open_job(spec_of(write_rows(folder / "new.jsonl", rows), reuse=str(old.step.path), **options))


def reused(job: Job) -> dict[int, Any]:
    """Row and text of the answers that the job begins with."""
    found = list(Journal.read_answers(job.step.journal_path, job.rows))
    assert all(one.reused for one in found)
    return {one.row: one.items[0]["text"] for one in found}


def test_a_dataset_that_has_grown_sends_what_is_new(tmp_path: Path) -> None:
    old = made_step(tmp_path)
    audio(tmp_path, "new.wav")
    # When: rows have moved, one is new, and their other columns are others.
    rows = [{"audio": name} for name in ("new.wav", "3.wav", "0.wav", "5.wav", "missing.wav")]
    job = reusing(old, tmp_path, [*rows, {"audio": None}])
    # Then: files that are the same keep their text; one that failed is sent.
    assert reused(job) == {1: "text 3", 2: "text 0"}
    journal = Journal.open(job.step.journal_path, job.rows)
    journal.append([answer(row, "sent") for row in range(5)] + [failed_answer(5, "no_audio")])
    done = job.finish(journal)
    journal.close()
    assert [row["transcription"] for row in read_rows(done.step.path)] == [
        *("sent", "text 3", "text 0", "sent", "sent", None)
    ]
    assert done.progress().reused == 2
    assert done.progress().audio_seconds == 3.0, "what was transcribed for this step"
    # And: this step can be reused in its turn.
    third = open_job(spec_of(tmp_path / "old.jsonl", prefix="third", reuse=str(done.step.path)))
    assert reused(third) == {0: "text 0", 3: "text 3", 5: "sent"}


def test_a_file_that_changed_is_sent(tmp_path: Path) -> None:
    old = made_step(tmp_path)
    before = (tmp_path / "1.wav").stat().st_mtime_ns
    (tmp_path / "0.wav").write_bytes(b"longer than before")
    os.utime(tmp_path / "0.wav", ns=(before, before))
    os.utime(tmp_path / "1.wav", ns=(before, before + 1))
    (tmp_path / "2.wav").unlink()
    (tmp_path / "3.wav").rename(tmp_path / "moved.wav")
    names = ("0.wav", "1.wav", "2.wav", "3.wav", "moved.wav", "4.wav")
    assert reused(reusing(old, tmp_path, [{"audio": name} for name in names])) == {5: "text 4"}


def test_the_options_of_a_row_are_part_of_it(tmp_path: Path) -> None:
    audio(tmp_path, "a.wav")
    options: list[dict[str, Any]] = [{}, {"language": "German"}, {"start_s": 1}, {"prompt": "Ada"}, {"end_s": 2}]
    source = write_rows(tmp_path / "old.jsonl", [{"audio": "a.wav", **one} for one in options])
    old = finished(open_job(spec_of(source)), [answer(row) for row in range(5)])
    changed = [{"language": "de"}, {"start_s": 1.0}, {"start_s": 1.5}, {"prompt": "Bob"}, {"end_s": 2}, {}]
    job = reusing(old, tmp_path, [{"audio": ["a.wav"], **one} for one in changed])
    assert reused(job) == {0: "text 1", 1: "text 2", 4: "text 4", 5: "text 0"}


def test_all_that_a_row_had_is_taken_to_the_letter(tmp_path: Path) -> None:
    audio(tmp_path, "a.wav", "b.wav")
    spoken = Transcript(
        text='"Zwölf" 😀',
        segments=[Segment(start=0.1, end=12.0, text="Zwölf")],
        language="de",
        language_probability=0.98765,
        duration=12,
        avg_logprob=-1e-05,
        flags=["repetition"],
        attempts=2,
    )
    call = ChannelTranscripts(channels=[spoken, Transcript(text="")])
    rows = [{"audio": "a.wav", "n": 10**30}, {"audio": ["a.wav", "b.wav"]}, {"audio": ["b.wav"]}, {"audio": "a.wav"}]
    items = [[spoken], [spoken, call], [call], [spoken]]
    options: dict[str, Any] = {"timestamps": True, "details": True, "channels": "split"}
    answers = [RowResult(row=row, items=one).model_dump_json().encode() for row, one in enumerate(items)]
    old = finished(open_job(spec_of(write_rows(tmp_path / "old.jsonl", rows), **options)), answers)
    # When: nothing is new. Then: the step is made at once, and is the same.
    job = reusing(old, tmp_path, rows, **options)
    assert job.is_complete()
    assert job.step.path != old.step.path
    assert job.step.path.read_bytes() == old.step.path.read_bytes()
    assert (job.progress().reused, job.progress().audio_seconds) == (4, 0.0)
    # And: a column of another name has the same text.
    other = reusing(old, tmp_path, rows, **options, prefix="other", output_key="text")
    assert [row["text"] for row in read_rows(other.step.path)] == [
        row["transcription"] for row in read_rows(old.step.path)
    ]


def test_rows_that_failed_in_part_and_urls_are_sent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    audio(tmp_path, "a.wav", "b.wav")
    rows = [{"audio": ["a.wav", "b.wav"]}, {"audio": "https://example.org/c.wav"}, {"audio": ["a.wav", None]}]
    failure = {"type": "not_audio", "message": "no"}
    lines = [{"row": 0, "items": [{"text": "a"}, failure]}, {"row": 2, "items": [{"text": "a"}, {"text": ""}]}]
    answers = [answer(1), *(json.dumps(line).encode() for line in lines)]
    old = finished(open_job(spec_of(write_rows(tmp_path / "old.jsonl", rows))), answers)
    assert reused(reusing(old, tmp_path, rows)) == {}
    assert caplog.messages == [], "no half answer came as far as the journal"


def test_a_step_may_be_made_again_from_itself(tmp_path: Path) -> None:
    old = made_step(tmp_path)
    # Given: the dataset has grown where it is.
    audio(tmp_path, "9.wav")
    source = write_rows(tmp_path / "old.jsonl", ({"audio": f"{row}.wav"} for row in (9, 0, 1)))
    with pytest.raises(UsageError, match=rf"--force \(and keep answers with --reuse {old.step.path}\)"):
        open_job(spec_of(source))
    made = old.step.path.read_bytes()
    # When: it is started over.
    job = open_job(spec_of(source, reuse=str(old.step.path), force=True))
    # Then: the answers are there, the old file still is, and the job is resumed with or without naming it.
    assert reused(job) == {1: "text 0", 2: "text 1"}
    assert old.step.path.read_bytes() == made
    assert open_job(spec_of(source)) == job == open_job(spec_of(source, reuse=str(old.step.path)))
    done = finished(job, [answer(0, "nine")])
    assert [row["transcription"] for row in read_rows(done.step.path)] == ["nine", "text 0", "text 1"]
    assert not [path.name for path in done.step.job_path.iterdir() if path.name.startswith(".")]


def ended_at(number: int, spec: JobSpec, *, killed: bool) -> bool:
    """Open a job in a process that is killed, or told of a full disk, at its ``number``-th lock or change of a folder.

    Whether it came so far.
    """

    def count(event: str, _: object) -> None:
        if event in ("os.rename", "os.remove", "os.rmdir", "fcntl.flock", "os.mkdir") and next(changes) == number:
            reached.touch()
            if killed:
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    changes, reached = itertools.count(), Path(spec.cache_path, f"reached-{number}")
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            sys.addaudithook(count)
            open_job(spec)
        os._exit(0)
    os.waitpid(child, 0)
    return reached.exists()


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "full disk"])
def test_a_start_that_is_cut_short_keeps_the_answers(tmp_path: Path, killed: bool) -> None:
    for number in itertools.count():
        # Given: a finished step whose dataset has grown
        folder = tmp_path / str(number)
        folder.mkdir()
        old = made_step(folder)
        source = write_rows(folder / "old.jsonl", ({"audio": f"{row}.wav"} for row in (9, 0, 1)))
        spec = spec_of(source, reuse=str(old.step.path), force=True)
        # When: it is started over, and that ends anywhere on the way
        if not ended_at(number, spec, killed=killed):
            break
        # Then: the same command does it, or says how it is resumed
        refused = None
        try:
            job = open_job(spec)
        except UsageError as error:
            refused, job = str(error), open_job(replace(spec, force=False))
        assert refused is None or "not finished: run the command that makes it, without --force" in refused
        assert reused(job) == {1: "text 0", 2: "text 1"}
        assert [row["transcription"] for row in read_rows(finished(job, [answer(0, "nine")]).step.path)] == [
            *("nine", "text 0", "text 1")
        ]
        assert not (job.step.beginning_path / "job.json").exists()
    assert number > 10


def test_what_a_retry_mended_is_reused(tmp_path: Path) -> None:
    old = made_step(tmp_path)
    (tmp_path / "5.wav").write_bytes(b"mended")
    retry = begin_retry(old)
    assert retry
    rows = [{"audio": "5.wav"}, {"audio": "4.wav"}]
    assert reused(reusing(old, tmp_path, rows)) == {1: "text 4"}, "while it is being retried"
    finished(retry, [answer(0, "five")])
    assert reusing(old, tmp_path, rows, prefix="later").progress().reused == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"task": "translate"}, "task was 'transcribe', now 'translate'"),
        ({"language": "french"}, "language was 'auto', now 'fr'"),
        ({"prompt": "Ada"}, "prompt was not set, now 'Ada'"),
        ({"channels": "split"}, "channels was 'mix', now 'split'"),
        ({"timestamps": True}, "timestamps was off, now on"),
        ({"details": True}, "details was off, now on"),
        ({"model": "other"}, "model was not set, now 'other'"),
    ],
)
def test_a_step_made_with_other_options_is_refused_in_words(
    tmp_path: Path, options: dict[str, object], words: str
) -> None:
    old = made_step(tmp_path)
    with pytest.raises(UsageError) as caught:
        reusing(old, tmp_path, [{"audio": "0.wav"}], **options)
    assert f"--reuse {old.step.path}: made with other options: {words}." in str(caught.value)
    assert not (tmp_path / "cache" / "new_step1.job").exists()


def test_what_is_no_step_that_can_be_reused_is_refused(tmp_path: Path) -> None:
    old = made_step(tmp_path)
    new = write_rows(tmp_path / "new.jsonl", [{"audio": "0.wav"}])
    for path in (tmp_path / "old.jsonl", tmp_path / "missing_step1.jsonl"):
        with pytest.raises(UsageError, match=rf"--reuse {path}: no step file of a job"):
            open_job(spec_of(new, reuse=str(path)))
    unfinished = open_job(spec_of(tmp_path / "old.jsonl", prefix="unfinished_old"))
    with pytest.raises(UsageError, match=r"old_step1\.jsonl: not finished"):
        open_job(spec_of(new, reuse=str(unfinished.step.path)))
    made = old.step.path.read_bytes()
    old.step.path.write_bytes(made.replace(b'"transcription"', b'"another"'))
    with pytest.raises(FleetError, match="changed by another program"):
        reusing(old, tmp_path, [{"audio": "0.wav"}])
    old.step.path.write_bytes(made + made)
    with pytest.raises(FleetError, match=rf"old_step1\.jsonl: has {2 * OLD_ROWS} rows, not {OLD_ROWS}: this step"):
        reusing(old, tmp_path, [{"audio": "0.wav"}])
    old.step.path.write_bytes(made)
    stamps = old.step.audio_path.read_bytes()
    old.step.audio_path.write_bytes(b"".join(stamps.splitlines(keepends=True)[:-1]))
    with pytest.raises(FleetError, match=r"audio\.jsonl: ends before its step file"):
        reusing(old, tmp_path, [{"audio": "0.wav"}])
    old.step.audio_path.unlink()
    with pytest.raises(UsageError, match="did not record sizes and times"):
        reusing(old, tmp_path, [{"audio": "0.wav"}])
    assert JobHeader.read(tmp_path / "cache" / "new_step1.job" / "job.json") is None


@pytest.mark.parametrize("column", ["transcription", "transcription_segments"])
def test_a_row_that_has_fewer_texts_than_recordings_is_not_reused(tmp_path: Path, column: str) -> None:
    audio(tmp_path, "a.wav", "b.wav")
    rows = [{"audio": ["a.wav", "b.wav"]}]
    lines = json.dumps({"row": 0, "items": [{"text": "a"}, {"text": "b"}]}).encode()
    old = finished(open_job(spec_of(write_rows(tmp_path / "old.jsonl", rows), timestamps=True)), [lines])
    (row,) = read_rows(old.step.path)
    write_rows(old.step.path, [{**row, column: row[column][:1]}])
    with pytest.raises(FleetError, match="changed by another program: this step cannot be reused"):
        reusing(old, tmp_path, [*rows, {"audio": "new.wav"}], timestamps=True)


@pytest.mark.parametrize("rows", [OLD_ROWS, OLD_ROWS - 1, OLD_ROWS + 1])
def test_an_input_that_changes_while_answers_are_taken_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    """Answers know only the number of their row."""
    old = made_step(tmp_path)
    stamps_written = opening.write_stamps

    def sorted_meanwhile(*arguments: Any) -> None:
        stamps_written(*arguments)
        write_rows(tmp_path / "new.jsonl", ({"audio": f"{row}.wav"} for row in reversed(range(rows))))

    monkeypatch.setattr(opening, "write_stamps", sorted_meanwhile)
    with pytest.raises(UsageError, match="the input changed"):
        reusing(old, tmp_path, [{"audio": f"{row}.wav"} for row in range(OLD_ROWS)])
    assert not (tmp_path / "cache" / "new_step1.job" / "job.json").exists()


def test_a_step_that_was_moved_is_wanted_back(tmp_path: Path) -> None:
    old = made_step(tmp_path)
    old.step.path.rename(tmp_path / "elsewhere.jsonl")
    with pytest.raises(UsageError, match="not there any more: put it back"):
        reusing(old, tmp_path, [{"audio": "0.wav"}])


def test_reuse_is_for_jobs_that_begin(tmp_path: Path) -> None:
    old = made_step(tmp_path)
    rows = [{"audio": "0.wav"}, {"audio": "new.wav"}]
    begun = open_job(spec_of(write_rows(tmp_path / "new.jsonl", rows)))
    with pytest.raises(UsageError, match=r"reuse was not set, now '.*old_step1"):
        reusing(old, tmp_path, rows)
    assert begun.reload() == begun


def test_a_step_that_other_programs_wrote_back_is_reused(tmp_path: Path) -> None:
    """As pandas does: an error in each row, null where there is none. And with a mark of UTF-8 and blank lines."""
    old = made_step(tmp_path)
    rows = [{"transcription_error": None, **row} for row in read_rows(old.step.path)]
    lines = "".join(json.dumps(row) + "\n\n" for row in rows)
    old.step.path.write_bytes(codecs.BOM_UTF8 + lines.encode())

    job = reusing(old, tmp_path, [{"audio": f"{row}.wav"} for row in range(OLD_ROWS)])

    assert reused(job) == {row: f"text {row}" for row in range(OLD_ROWS - 1)}


def test_a_step_that_lacks_a_row_is_not_reused(tmp_path: Path) -> None:
    """The rows after it would be taken for those before them."""
    old = made_step(tmp_path)
    lines = old.step.path.read_bytes().splitlines(keepends=True)
    old.step.path.write_bytes(b"".join(lines[1:]))

    with pytest.raises(FleetError, match=f"has {OLD_ROWS - 1} rows, not {OLD_ROWS}: this step cannot be reused"):
        reusing(old, tmp_path, [{"audio": "0.wav"}])

"""What failed: by reason, of whole rows and of parts of them, in a finished step and in a running job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from job_files import read_rows, write_rows

from producer.errors import FleetError
from producer.failed import failures_of
from producer.job import Job
from producer.journal import Journal
from producer.opening import open_job
from producer.spec import JobSpec
from workers.messages import ChannelTranscripts, Failure, Item, RowResult, Transcript

TEXT = Transcript(text='he said "transcription_error"')
GONE = Failure(type="file_not_found", message="x: no such file")
ODD = Failure(type="not_audio", message="y: no audio")

#: Audio and answer of each row.
ROWS: list[tuple[Any, list[Item]]] = [
    ("0.wav", [TEXT]),
    ("1.wav", [GONE]),
    (["2a.wav", "2b.wav"], [TEXT, ODD]),
    (["3a.wav", None, "3c.wav"], [GONE, ODD, GONE]),
    (None, [Failure(type="no_audio", message="none")]),
    ("5.wav", [ChannelTranscripts(channels=[TEXT, ODD])]),
    (["6a.wav", "6b.wav"], [Failure(type="quarantined", message="twice")]),
    *((f"{number}.wav", [GONE]) for number in range(7, 12)),
]
REASONS = {
    "file_not_found": (7, [(1, "1.wav"), (3, "3a.wav"), (7, "7.wav")]),
    "not_audio": (3, [(2, "2b.wav"), (3, ""), (5, "5.wav")]),
    "no_audio": (1, [(4, "")]),
    "quarantined": (1, [(6, "6a.wav")]),
}


def a_job(folder: Path) -> tuple[Job, Journal]:
    source = write_rows(folder / "data.jsonl", [{"audio": audio} for audio, _ in ROWS])
    job = open_job(JobSpec(inputs=(str(source),), cache_path=str(folder / "cache")))
    return job, Journal.open(job.step.journal_path, job.rows)


def answers() -> list[bytes]:
    return [RowResult(row=row, items=items).model_dump_json().encode() for row, (_, items) in enumerate(ROWS)]


def reasons_of(job: Job) -> dict[str, tuple[int, list[tuple[int, str]]]]:
    ranked = failures_of(job).ranked()
    return {type: (found.rows, [(one.row, one.audio) for one in found.examples]) for type, found in ranked}


def test_a_finished_step_and_a_running_job_say_the_same(tmp_path: Path) -> None:
    job, journal = a_job(tmp_path)
    journal.append(answers())
    running = failures_of(job)
    assert reasons_of(job) == REASONS
    assert [type for type, _ in running.ranked()] == ["file_not_found", "not_audio", "no_audio", "quarantined"]
    assert (running.rows, running.answered, running.failed, running.partly) == (12, 12, 9, 2)

    done = job.finish(journal)
    journal.close()
    assert failures_of(done).as_dict() == running.as_dict()
    assert done.header.summary
    assert done.header.summary["failed"] == running.failed
    first = running.as_dict()["reasons"]["file_not_found"]["examples"][0]
    assert first == {"row": 1, "audio": "1.wav", "message": "x: no such file"}


def test_the_audio_of_a_finished_step_is_named_by_its_own_rows(tmp_path: Path) -> None:
    # Given: an input that is gone. Then: of a running job it is not named
    job, journal = a_job(tmp_path)
    journal.append(answers())
    source = tmp_path / "data.jsonl"
    rows = source.read_bytes()
    source.unlink()
    assert {audio for _, examples in reasons_of(job).values() for _, audio in examples} == {""}
    # And: a finished step has all that is needed, also where the input is another by now
    source.write_bytes(rows)
    done = job.finish(journal)
    journal.close()
    source.unlink()
    assert reasons_of(done) == REASONS
    write_rows(source, [{"audio": "other.wav"}] * len(ROWS))
    assert reasons_of(done) == REASONS


def test_of_a_running_job_what_is_answered_counts_once(tmp_path: Path) -> None:
    job, journal = a_job(tmp_path)
    assert failures_of(job).as_dict() == {"rows": 12, "answered": 0, "failed": 0, "partly_failed": 0, "reasons": {}}
    journal.append(answers()[:2])
    journal.close()
    with job.step.journal_path.open("ab") as file:
        file.write(answers()[1] + b"\n" + answers()[3][:10])
    found = failures_of(job)
    assert (found.answered, found.failed) == (2, 1)
    assert reasons_of(job) == {"file_not_found": (1, [(1, "1.wav")])}


@pytest.mark.parametrize("error", ["text", [{}], {"type": "x"}, 7], ids=str)
def test_a_step_file_that_another_program_changed_is_named(tmp_path: Path, error: object) -> None:
    job, journal = a_job(tmp_path)
    journal.append(answers())
    job = job.finish(journal)
    journal.close()
    rows = read_rows(job.step.path)
    rows[1]["transcription_error"] = error
    write_rows(job.step.path, rows)
    with pytest.raises(FleetError, match=r"data_step1\.jsonl:2: changed by another program"):
        failures_of(job)
    job.step.path.unlink()
    with pytest.raises(FleetError, match="not there any more"):
        failures_of(job)


@pytest.mark.parametrize("change", ["a row more", "no jsonl", "lists"])
def test_of_a_job_whose_input_is_another_no_audio_is_named(tmp_path: Path, change: str) -> None:
    job, journal = a_job(tmp_path)
    journal.append(answers()[:2])
    journal.close()
    source = Path(job.header.inputs[0])
    lines = source.read_bytes()
    source.write_bytes(
        {"a row more": b'{"audio": "new.wav"}\n' + lines, "no jsonl": b"{\n" * 12, "lists": b"[]\n" * 12}[change]
    )
    assert reasons_of(job) == {"file_not_found": (1, [(1, "")])}

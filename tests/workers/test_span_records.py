"""A long recording over two workers: real decoding, queues and deliveries; stand-in engines tell one span from another.

A stand-in's text is a checksum of its samples, so equal texts mean equal windows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from benchmarks.recordings import write_recording
from fleet import Fleet, ended, wait_for
from scripted_engine import transcribed
from workers import keys
from workers.marks import DONE_SECONDS
from workers.messages import Failure, Part, PartResult, Record, Span, Transcript, task_id
from workers.runtime import Runtime, build
from workers.settings import load_settings

SECONDS = 300
#: Marks that lie in the middle of the recording's 100 s pattern, some of them in speech.
SPANS = {"span_seconds": 40, "split_seconds": 60}
ENVIRONMENT = {
    "WHISPER_ENGINE": "standin",
    "WHISPER_SPAN_SECONDS": "40",
    "WHISPER_SPLIT_SECONDS": "60",
    "WHISPER_CONCURRENCY": "2",
    "WHISPER_VISIBILITY_TIMEOUT_SECONDS": "5",
    "WHISPER_LEASE_SECONDS": "1",
    "WHISPER_RESTORE_SECONDS": "1",
    # A window takes long enough for both workers to get some.
    "WHISPER_STANDIN_ENCODE_MS": "300",
}


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recording") / "long.flac"
    write_recording(path, SECONDS)
    return path


@pytest.fixture(scope="module")
def inside() -> Iterator[Runtime]:
    """A worker's inside in this process, with short spans."""
    built = build(load_settings(engine="standin", **SPANS), threads=4)
    yield built
    built.close()


@pytest.fixture(scope="module")
def unsplit(inside: Runtime, recording: Path) -> Transcript:
    """What one worker makes of the whole recording."""
    ((item,),) = transcribed(inside, [Record(audio=str(recording), row=0)], timestamps=True)
    assert isinstance(item, Transcript)
    return item


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with Fleet(tmp_path_factory.mktemp("two"), ENVIRONMENT) as fleet:
        fleet.start_worker(wait=False)
        fleet.start_worker()
        yield fleet


def rows(folder: Path, *records: dict[str, Any]) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def arguments(source: Path) -> tuple[str, ...]:
    return ("run", str(source), "--timestamps", "--details", "--cache-path", str(source.parent / "cache"))


def read(source: Path) -> list[dict[str, Any]]:
    step = source.parent / "cache" / "data_step1.jsonl"
    return [json.loads(line) for line in step.read_text().splitlines()]


def ids(fleet: Fleet, number: int, event: str) -> list[str]:
    """The messages of which a worker's log says that they were received, or have succeeded."""
    return re.findall(rf"Task whisper\.\w+\[([^]]+)\] {event}", fleet.log_path(number).read_text())


def spans(fleet: Fleet, number: int, event: str, job: str) -> list[str]:
    return [id for id in ids(fleet, number, event) if "-p0-" in id and id.startswith(f"{job}.0.")]


def assert_same(row: dict[str, Any], unsplit: Transcript) -> None:
    assert row.get("transcription_error") is None
    assert row["transcription"] == unsplit.text
    assert unsplit.segments is not None
    assert row["transcription_segments"] == [one.model_dump() for one in unsplit.segments]
    details = row["transcription_details"]
    assert details["duration"] == pytest.approx(unsplit.duration)
    assert details["speech_seconds"] == pytest.approx(unsplit.speech_seconds, abs=0.01)
    for name in ("language", "language_probability", "flags", "temperature", "attempts", "avg_logprob"):
        assert details[name] == getattr(unsplit, name), name


def test_two_workers_share_a_recording_and_its_text_is_the_same(
    two_workers: Fleet, tmp_path: Path, recording: Path, unsplit: Transcript
) -> None:
    # Given a long recording, one that is long with a part of it, and a short part
    long = {"audio": str(recording)}
    source = rows(tmp_path, long, {"audio": [str(recording)] * 2, "start_s": 210.0}, {**long, "end_s": 30.0})
    # When
    done = two_workers.cli(*arguments(source))
    # Then both had spans of it, and the row is what it would have been in one piece
    assert done.returncode == 0, done.stderr
    found = read(source)
    assert_same(found[0], unsplit)
    job = job_id(source)
    assert job is not None

    def shared() -> list[list[str]]:
        return [spans(two_workers, number, "succeeded", job) for number in (1, 2)]

    wait_for(lambda: sum(map(len, shared())) == 6)  # said after the answer is given
    assert all(shared()), "both workers take part"
    assert len({*shared()[0], *shared()[1]}) == 6
    # and each recording of a list is shared like one alone, from where its record says
    first, second = found[1]["transcription_segments"]
    assert first == second
    assert 210 <= first[0]["start"] < first[-1]["end"] <= SECONDS
    assert [one["duration"] for one in found[1]["transcription_details"]] == pytest.approx([90.0, 90.0])
    assert len(found[2]["transcription_segments"]) <= 2
    assert two_workers.redis.xlen(keys.results(job)) == 0
    assert not (tmp_path / "cache" / "data_step1.job" / "parts.jsonl").exists()


def test_a_worker_that_is_killed_costs_no_span(
    two_workers: Fleet, tmp_path: Path, recording: Path, unsplit: Transcript
) -> None:
    # Given a recording whose spans are on their way, and the worker that sent them still at its first part
    fleet, source = two_workers, rows(tmp_path, {"audio": str(recording)})
    with ended(fleet.start_cli(*arguments(source))) as running:
        job = wait_for(lambda: job_id(source))
        taker = 1 + [bool(i) for i in wait_for(lambda: taken(fleet, job))].index(True)
        other = 3 - taker
        wait_for(lambda: spans(fleet, other, "received", job))
        # When it is killed
        fleet.workers[taker - 1].kill()
        # Then the other one does what is left, and the row is there once and whole
        _, told = running.communicate(timeout=120)
        assert running.returncode == 0, told
    (row,) = read(source)
    assert_same(row, unsplit)


def taken(fleet: Fleet, job: str) -> list[list[str]] | None:
    """What each worker has received of a job, once one has something."""
    found = [[id for id in ids(fleet, number, "received") if id.startswith(job)] for number in (1, 2)]
    return found if any(found) else None


def test_an_answer_of_a_span_says_which_it_is(standin_fleet: Fleet, samples: Path) -> None:
    # Given two messages for spans of a row's recording, one of a file that is not there
    span = {"row": 7, "start_s": 1.0, "end_s": 2.5, "span_of": 1}
    client = Celery(broker=standin_fleet.url, set_as_current=False)
    for audio in (str(samples / "en_weather.wav"), str(samples / "missing.wav")):
        client.send_task("whisper.transcribe", [[{**span, "audio": audio}]], {"job": "alone"}, queue="transcribe")
    # When they are answered
    entries = wait_for(lambda: (found := standin_fleet.redis.xrange(keys.results("alone"))) and found[1:] and found)
    client.close()
    # Then both are parts of the row's answer, and keep their times and their error
    parts = [PartResult.model_validate_json(fields[keys.RESULT_FIELD]) for _, fields in entries]
    assert [(part.row, part.part) for part in parts] == [(7, Part(span=Span(recording=1, start_s=1.0, end_s=2.5)))] * 2
    items = {type(part.items[0]): part.items[0] for part in parts}
    assert items[Transcript].duration == pytest.approx(1.5)  # type: ignore[union-attr]
    assert items[Failure].type == "file_not_found"  # type: ignore[union-attr]


def test_a_span_that_is_done_is_not_done_again(standin_fleet: Fleet, samples: Path) -> None:
    """A row's message that comes back, because its worker died, sends its spans again."""
    record = {"row": 0, "audio": str(samples / "en_weather.wav"), "start_s": 1.0, "end_s": 2.0, "span_of": 0}
    id = task_id("again", 0, "abc-p0-100-200")
    client = Celery(broker=standin_fleet.url, set_as_current=False)
    for count in (1, 2):
        client.send_task(
            "whisper.transcribe", [[record]], {"job": "again"}, task_id=id, queue="transcribe", ignore_result=True
        )
        wait_for(lambda count=count: ids(standin_fleet, 1, "succeeded").count(id) == count)
    client.close()
    assert standin_fleet.redis.xlen(keys.results("again")) == 1
    assert standin_fleet.redis.ttl(keys.held(id)) > DONE_SECONDS


def job_id(source: Path) -> str | None:
    header = source.parent / "cache" / "data_step1.job" / "job.json"
    return str(json.loads(header.read_text())["id"]) if header.exists() else None

"""Jobs for the producer's tests: inputs, answers by hand, and what a running command has started."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis import Redis

from fleet import wait_for
from producer.job import Job
from producer.journal import Journal
from producer.opening import open_job
from producer.spec import JobSpec
from workers import keys

SPEECH = Path(__file__).parents[1] / "samples" / "audio" / "en_weather.wav"


def write_rows(path: Path, rows: Iterable[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def speech_rows(folder: Path, count: int, name: str = "data.jsonl") -> Path:
    """An input with ``count`` rows of speech; no two rows take the same part of the recording."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(SPEECH, folder / "speech.wav")
    rows = [{"audio": "speech.wav", "id": number, "start_s": number / 100} for number in range(count)]
    return write_rows(folder / name, rows)


def new_job(folder: Path, rows: int = 5, **options: Any) -> Job:
    """A job on files that need not exist: nothing here listens to them."""
    source = write_rows(folder / "data.jsonl", ({"audio": f"{number}.wav"} for number in range(rows)))
    return open_job(spec_of(source, **options))


def spec_of(source: Path, **options: Any) -> JobSpec:
    """What makes a job of ``source``, with its files in ``cache`` beside it."""
    return JobSpec(inputs=(str(source),), cache_path=str(source.parent / "cache"), **options)


def finished(job: Job, answers: Sequence[bytes]) -> Job:
    """The job with these answers and its step file."""
    journal = Journal.open(job.step.journal_path, job.rows)
    journal.append(answers)
    done = job.finish(journal)
    journal.close()
    return done


def answer(row: int, text: str | None = None) -> bytes:
    """The answer of one row as a worker writes it."""
    item = {"text": f"text {row}" if text is None else text, "duration": 1.0}
    return json.dumps({"row": row, "items": [item]}).encode()


def failed_answer(row: int, reason: str = "not_audio") -> bytes:
    return json.dumps({"row": row, "items": [{"type": reason, "message": "no"}]}).encode()


def deliver(redis: Redis, job: Job, *answers: bytes) -> None:
    """Put answers where workers put them."""
    for one in answers:
        redis.xadd(keys.results(job.id), {keys.RESULT_FIELD: one})


def away(patch: pytest.MonkeyPatch, path: Path) -> list[int]:
    """The errors that the next reads of ``path`` give, for a test to fill: a network's file system comes and goes."""
    read, errors = Path.read_bytes, list[int]()

    def reads(read_path: Path) -> bytes:
        if read_path == path and errors:
            raise OSError(errors.pop(), "stale")
        return read(read_path)

    patch.setattr(Path, "read_bytes", reads)
    return errors


def processes_at(folder: Path) -> list[psutil.Process]:
    """The processes that work in ``folder`` or have a file in it open: a job's Valkey, workers and their children."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            places = [process.cwd(), *(file.path for file in process.open_files())]
            if any(Path(place).is_relative_to(folder) for place in places) and process.pid != psutil.Process().pid:
                found.append(process)
    return found


def wait_for_none(find: Callable[[], list[psutil.Process]], seconds: float = 30.0) -> None:
    """Fails, and says what is left, unless all processes that ``find`` finds are gone in time."""
    try:
        wait_for(lambda: not find(), seconds)
    except AssertionError:
        raise AssertionError(f"still there: {find()}") from None

"""From the results stream to the step file: every row once, whatever the stream holds."""

from __future__ import annotations

import json
import logging
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from job_files import answer, deliver, failed_answer, finished, new_job, read_rows, write_rows
from redis import Redis
from redis.exceptions import ReadOnlyError, RedisError

from fleet import Fleet, wait_for
from producer import registry
from producer.aside import Stopped, StoppedError
from producer.collector import Collector
from producer.errors import FleetError
from producer.job import Job
from producer.journal import Journal
from producer.opening import open_job
from producer.read_size import READ_BYTES, READ_COUNT
from producer.registry import Registration
from producer.spec import JobSpec
from workers import keys


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with Fleet(tmp_path_factory.mktemp("collector")) as running:
        yield running


@pytest.fixture(params=[2, 3], ids=["RESP2", "RESP3"])
def redis(broker: Fleet, request: pytest.FixtureRequest) -> Iterator[Redis]:
    client = Redis.from_url(broker.url, protocol=request.param)
    client.flushdb()
    yield client
    client.close()


@pytest.fixture
def collector(redis: Redis) -> Iterator[Collector]:
    collecting = Collector(redis)
    yield collecting
    collecting.close()


def poll_all(collector: Collector) -> int:
    """Everything that waits; returns how many answers were new."""
    total = new = collector.poll(0.01)
    while new:
        new = collector.poll(0.01)
        total += new
    return total


def texts(job: Job) -> list[str | None]:
    return [row["transcription"] for row in read_rows(job.step.path)]


def test_answers_that_come_one_by_one_are_gathered(
    redis: Redis, collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each write waits for the disk."""
    job = new_job(tmp_path, rows=4)
    monkeypatch.setattr("producer.collector.GATHER_SECONDS", 60.0)
    collector.add(job)
    # Given: the last read brought a single answer.
    deliver(redis, job, answer(0))
    assert collector.poll(1) == 1
    # When: another one is there, and one comes while the collector waits.
    deliver(redis, job, answer(1))
    monkeypatch.setattr(time, "sleep", lambda seconds: deliver(redis, job, *([answer(2)] if seconds > 0 else ())))
    # Then: they are written together.
    assert collector.poll(1) == 2


def test_answers_in_any_order_become_the_step_file(redis: Redis, collector: Collector, tmp_path: Path) -> None:
    job = new_job(tmp_path, rows=4)
    owned = collector.add(job)
    assert owned is not None
    assert [entry.id for entry in registry.registered(redis)] == [job.id]
    deliver(redis, job, answer(2), answer(0), failed_answer(3))
    assert poll_all(collector) == 3
    assert redis.xlen(keys.results(job.id)) == 0
    assert not job.step.path.exists(), "row 1 has no answer"
    progress = registry.read(redis, job.id)
    assert progress is not None
    assert (progress.answered, progress.failed, progress.complete) == (3, 1, False)

    deliver(redis, job, answer(1))
    assert poll_all(collector) == 1
    assert owned.complete
    assert texts(job) == ["text 0", "text 1", "text 2", None]
    assert job.reload().is_complete()
    assert registry.registered(redis) == []
    assert not redis.exists(keys.results(job.id))
    progress = registry.read(redis, job.id)
    assert progress is not None
    assert progress.complete
    assert progress.step_path == str(job.step.path)


def test_a_job_that_cannot_be_taken_over_takes_a_small_part_of_the_time(
    redis: Redis, collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its journal is read each time: minutes where it is long, in which no other job is served."""
    job = new_job(tmp_path, rows=4)
    registry.register(redis, job.registration())
    opened: list[Path] = []

    def damaged(path: Path, rows: int, stopped: object) -> None:
        opened.append(path)
        time.sleep(0.2)
        raise FleetError(f"{path}:2: damaged")

    monkeypatch.setattr("producer.owned.Journal.open", damaged)
    began = time.monotonic()
    while time.monotonic() - began < 1.5:
        assert collector.adopt_registered() == []
    assert len(opened) == 1, "the next try comes after twenty times as long"


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not done in a hundredth of a second is done beside the loop."""
    monkeypatch.setattr("producer.collector.AT_ONCE_SECONDS", 0.01)


def work_without_end() -> tuple[threading.Event, Callable[[Iterable[object], Stopped], Iterator[object]]]:
    """For `while_wanted`: rows that never come, and an event that tells that somebody waits for them."""
    begun = threading.Event()

    def endless(rows: Iterable[object], stopped: Stopped) -> Iterator[object]:
        begun.set()
        while not stopped():
            time.sleep(0.01)
        raise StoppedError

    return begun, endless


@pytest.mark.usefixtures("at_once")
def test_other_jobs_are_served_while_a_step_file_is_written(
    redis: Redis, collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Minutes, where it has ten million rows."""
    large, small = new_job(tmp_path / "large", rows=3), new_job(tmp_path / "small", rows=2)
    written, finish = threading.Event(), Job.finish

    def slow_for_large(job: Job, journal: Journal, stopped: Stopped) -> Job:
        if job.id == large.id:
            assert written.wait(30)
        return finish(job, journal, stopped)

    monkeypatch.setattr(Job, "finish", slow_for_large)
    first, second = collector.add(large), collector.add(small)
    assert first is not None
    assert second is not None
    deliver(redis, large, answer(0), answer(1), answer(2))
    assert poll_all(collector) == 3
    assert (first.merging is not None, first.complete) == (True, False)

    deliver(redis, small, answer(0))
    assert poll_all(collector) == 1
    deliver(redis, large, answer(2, "again"))
    deliver(redis, small, answer(1))
    wait_for(lambda: (poll_all(collector), second.complete)[1])
    assert (texts(small), first.complete) == (["text 0", "text 1"], False)

    written.set()
    wait_for(lambda: (poll_all(collector), first.complete)[1])
    assert texts(large) == ["text 0", "text 1", "text 2"]
    assert not redis.exists(keys.results(large.id))


@pytest.mark.usefixtures("at_once")
def test_other_jobs_are_served_while_a_journal_is_read(
    redis: Redis, collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large, small = new_job(tmp_path / "large", rows=3), new_job(tmp_path / "small", rows=2)
    registry.register(redis, large.registration())
    registry.register(redis, small.registration())
    read, opened = threading.Event(), Journal.open

    def slow_for_large(path: Path, rows: int, stopped: Stopped) -> Journal:
        if rows == large.rows:
            assert read.wait(30)
        return opened(path, rows, stopped)

    monkeypatch.setattr("producer.owned.Journal.open", slow_for_large)
    wait_for(lambda: [owned.job.id for owned in collector.adopt_registered()] == [small.id])
    deliver(redis, small, answer(1), answer(0))
    assert poll_all(collector) == 2
    wait_for(lambda: (poll_all(collector), small.reload().is_finished())[1])
    assert not large.step.lock("collector").acquire(), "it is this collector's already"

    read.set()
    wait_for(lambda: [owned.job.id for owned in collector.adopt([])] == [large.id])


def test_after_trouble_in_redis_all_jobs_are_there_at_once(
    redis: Redis, collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may answer reads and refuse writes for a while: as a replica does, or without room for its file."""
    jobs = [new_job(tmp_path / str(number)) for number in range(3)]
    for job in jobs:
        registry.register(redis, job.registration())

    def refused(*_: object) -> None:
        raise ReadOnlyError("You can't write against a read only replica.")

    with monkeypatch.context() as patched:
        patched.setattr(registry, "register", refused)
        with pytest.raises(ReadOnlyError):
            collector.adopt_registered()
    found: set[str] = set()
    for _ in range(2):  # the one that was refused is opened again
        found |= {owned.job.id for owned in collector.adopt_registered()}
    assert found == {job.id for job in jobs}


def test_parts_that_keep_coming_do_not_keep_the_other_jobs_waiting(
    redis: Redis, collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What begins the answer of a long recording is no answer yet; each read waits for more of them."""
    job = new_job(tmp_path, rows=READ_COUNT)
    collector.add(job)
    reads = 0
    read = redis.xread

    def one_more(*arguments: Any, **named: Any) -> Any:
        nonlocal reads
        part = {"row": reads, "items": [{"text": "begins"}], "part": {"awaits": [{"recording": 0, "start_s": 600.0}]}}
        deliver(redis, job, json.dumps(part).encode())
        reads += 1
        return read(*arguments, **named)

    monkeypatch.setattr(redis, "xread", one_more)
    assert collector.poll(1) == 0
    assert reads == 1
    assert redis.xlen(keys.results(job.id)) == 0


@pytest.mark.usefixtures("at_once")
def test_a_journal_that_is_read_is_given_back_to_who_starts_over(
    redis: Redis, collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = new_job(tmp_path)
    begun, endless = work_without_end()

    monkeypatch.setattr("producer.journal.while_wanted", endless)
    monkeypatch.setattr("producer.owned.LOOK_SECONDS", 0.05)
    assert collector.adopt([job]) == []
    assert begun.wait(30)
    with job.step.force_lock as asking, job.step.lock("collector") as collecting:
        assert asking.acquire()
        wait_for(collecting.acquire)
        assert collector.adopt([job]) == []


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("doing", ["opening", "merging"])
def test_a_collector_that_ends_leaves_what_it_is_at(
    doing: str, redis: Redis, collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not wait until ten million rows are read or written, and the next one begins where it was."""
    job = new_job(tmp_path, rows=4)
    begun, endless = work_without_end()

    if doing == "merging":
        collector.add(job)
        monkeypatch.setattr("producer.job.while_wanted", endless)
        deliver(redis, job, *map(answer, range(4)))
        assert poll_all(collector) == 4
    else:
        monkeypatch.setattr("producer.journal.while_wanted", endless)
        assert collector.adopt([job]) == []
    assert begun.wait(30)
    collector.close()
    monkeypatch.undo()

    assert not list(job.step.path.parent.glob(f"*{job.step.path.name}*.tmp")), "a half-written step file"
    after = Collector(redis)
    owned = after.add(job)
    assert owned is not None, "the lock was given back"
    deliver(redis, job, *map(answer, range(4)))
    wait_for(lambda: (poll_all(after), owned.complete)[1])
    assert texts(job) == [f"text {row}" for row in range(4)]
    after.close()


def test_of_a_rows_answers_the_first_counts(redis: Redis, collector: Collector, tmp_path: Path) -> None:
    job = new_job(tmp_path, rows=2)
    owned = collector.add(job)
    assert owned is not None
    deliver(redis, job, answer(0, "first"), answer(0, "second"))
    assert poll_all(collector) == 1
    deliver(redis, job, answer(0, "third"), failed_answer(0), answer(1))
    assert poll_all(collector) == 1
    assert texts(job) == ["first", "text 1"]
    assert (owned.journal.answered, owned.journal.failed) == (2, 0)


def test_what_is_no_answer_is_logged_and_dropped(
    redis: Redis, collector: Collector, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = new_job(tmp_path, rows=2)
    collector.add(job)
    junk = (b"", b"\xff", b"{}", b'{"row": 2, "items": [{"text": "no such row"}]}', b'{"row": 1, "items": []}')
    deliver(redis, job, *junk, answer(0))
    redis.xadd(keys.results(job.id), {"foreign": "field"})
    assert poll_all(collector) == 1
    assert redis.xlen(keys.results(job.id)) == 0
    assert caplog.text.count("an answer is ignored") == len(junk) + 1
    assert not job.step.path.exists(), "row 1 is still to be done"


def test_more_answers_than_one_read_takes(redis: Redis, collector: Collector, tmp_path: Path) -> None:
    rows = 2 * READ_COUNT + 50
    job = new_job(tmp_path, rows=rows)
    collector.add(job)
    deliver(redis, job, *(answer(row) for row in reversed(range(rows))))
    reads = list(iter(lambda: collector.poll(0.01), 0))
    assert sum(reads) == rows
    assert max(reads) == READ_COUNT
    assert reads.index(READ_COUNT) <= 4, "short answers are soon read by the hundred"
    assert texts(job) == [f"text {row}" for row in range(rows)]


def test_answers_of_long_recordings_are_read_in_bounded_memory(
    redis: Redis, collector: Collector, tmp_path: Path
) -> None:
    """After an outage of the collector hundreds may wait, half a megabyte each with timestamps, more when parsed."""
    rows = 60
    job = new_job(tmp_path, rows=rows, timestamps=True)
    segments = [{"start": float(at), "end": at + 0.5, "text": "some words of it " * 10} for at in range(2500)]
    items = json.dumps([{"text": "long", "duration": 14_400.0, "segments": segments}])
    assert len(items) > 500_000
    deliver(redis, job, *(f'{{"row": {row}, "items": {items}}}'.encode() for row in range(rows)))
    owned = collector.add(job)
    assert owned is not None
    tracemalloc.start()
    try:
        reads = []
        while owned.journal.answered < rows:
            reads.append(collector.poll(0.01))
        assert tracemalloc.get_traced_memory()[1] < 6 * READ_BYTES
    finally:
        tracemalloc.stop()
    assert max(reads) * len(items) < READ_BYTES
    assert (owned.journal.audio_seconds, owned.journal.failed) == (14_400.0 * rows, 0)


def test_an_answer_is_on_the_disk_before_it_leaves_redis(redis: Redis, tmp_path: Path) -> None:
    """A collector that dies between the two reads its answers again, and nothing is there twice."""
    job = new_job(tmp_path, rows=2)
    first = Collector(redis)
    first.add(job)
    deliver(redis, job, answer(0, "kept"))
    entries = redis.xrange(keys.results(job.id))
    poll_all(first)
    first.close()
    # As if it had died before it deleted the entry:
    redis.xadd(keys.results(job.id), {keys.RESULT_FIELD: answer(0, "again")})
    assert len(entries) == 1  # type: ignore[arg-type]
    second = Collector(redis)
    owned = second.add(job)
    assert owned is not None
    assert owned.journal.answered == 1
    deliver(redis, job, answer(1))
    assert poll_all(second) == 1
    assert texts(job) == ["kept", "text 1"]
    second.close()


def test_a_job_has_one_owner_at_a_time(redis: Redis, tmp_path: Path) -> None:
    job = new_job(tmp_path, rows=1)
    first, second = Collector(redis), Collector(redis)
    owned = first.add(job)
    assert owned is not None
    assert second.add(job) is None
    assert second.adopt_registered() == []
    first.release(owned)
    (adopted,) = second.adopt_registered()
    assert adopted.job.id == job.id
    deliver(redis, job, answer(0))
    poll_all(second)
    assert first.add(job) is None, "complete: nothing to own"
    second.close()


def test_of_collectors_that_start_together_each_job_gets_one(broker: Fleet, redis: Redis, tmp_path: Path) -> None:
    jobs = [new_job(tmp_path / str(number), rows=1) for number in range(6)]
    for job in jobs:
        registry.register(redis, job.registration())
    collectors = [Collector(Redis.from_url(broker.url)) for _ in range(4)]
    ready = threading.Barrier(4)

    def start(collector: Collector) -> None:
        ready.wait()
        collector.adopt_registered()

    threads = [threading.Thread(target=start, args=(collector,)) for collector in collectors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    owned = [one.job.id for collector in collectors for one in collector.jobs]
    assert sorted(owned) == sorted(job.id for job in jobs)
    for collector in collectors:
        collector.close()


def test_jobs_that_cannot_be_served_here_are_left_alone(
    redis: Redis, collector: Collector, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = new_job(tmp_path / "good", rows=1)
    damaged = new_job(tmp_path / "damaged", rows=1)
    replaced = new_job(tmp_path / "replaced", rows=1)
    for job in (damaged, good, replaced):
        registry.register(redis, job.registration())
    damaged.step.header_path.write_text("{")
    new_job(tmp_path / "replaced", rows=1, force=True)
    plain_file = write_rows(tmp_path / "file", [])
    places = {"below": plain_file / "data_step1.jsonl", "elsewhere": tmp_path / "nowhere" / "data_step1.jsonl"}
    for name, output in places.items():
        registry.register(redis, Registration(id=name, output=str(output), rows=1, created="now"))
    with caplog.at_level(logging.WARNING):
        assert [owned.job.id for owned in collector.adopt_registered()] == [good.id]
        collector.adopt_registered()
    assert caplog.text.count("cannot be served here") == 2, "said once each: damaged, below a file"
    assert not (tmp_path / "nowhere").exists()
    assert len(registry.registered(redis)) == 5, "they may be served elsewhere"


def test_a_job_that_cannot_go_on_does_not_stop_the_others(redis: Redis, collector: Collector, tmp_path: Path) -> None:
    broken, good = new_job(tmp_path / "broken", rows=2), new_job(tmp_path / "good", rows=2)
    for job in (broken, good):
        collector.add(job)
        deliver(redis, job, answer(0))
    poll_all(collector)
    write_rows(tmp_path / "broken" / "data.jsonl", [{"audio": "other.wav"}] * 2)
    deliver(redis, broken, answer(1))
    poll_all(collector)
    deliver(redis, good, answer(1))
    poll_all(collector)
    assert texts(good) == ["text 0", "text 1"]
    assert not broken.step.path.exists()
    (error,) = [str(owned.error) for owned in collector.jobs if owned.error is not None]
    assert "the input changed" in error
    # It is given back, and not taken again at once; its answers are safe.
    (owned,) = [owned for owned in collector.jobs if owned.error is not None]
    collector.release(owned, pause_seconds=60.0)
    assert collector.adopt_registered() == []
    assert len(broken.step.journal_path.read_bytes().splitlines()) == 2


def test_an_empty_job_is_complete_at_once(redis: Redis, collector: Collector, tmp_path: Path) -> None:
    # Given: one whose starter was killed before it wrote the step.
    done = new_job(tmp_path, rows=0)
    job = replace(done, header=replace(done.header, complete=False, summary=None))
    job.header.write(job.step.header_path)
    job.step.path.unlink()
    owned = collector.add(job)
    assert owned is not None
    collector.poll(0.01)
    assert owned.complete
    assert job.step.path.read_bytes() == b""


def test_a_job_whose_file_was_moved_away_is_not_done_again(redis: Redis, collector: Collector, tmp_path: Path) -> None:
    # Given a job that a killed collector has written and not taken off the list, and whose file has a new place
    job = finished(new_job(tmp_path, rows=2), [answer(0), answer(1)])
    registry.register(redis, job.registration())
    job.step.path.rename(tmp_path / "moved.jsonl")
    # Then nobody takes it over
    assert collector.adopt_registered() == []
    assert registry.registered(redis) == []
    assert not job.step.journal_path.exists()
    published = registry.read(redis, job.id)
    assert published is not None
    assert (published.complete, published.answered) == (True, 2)


def test_an_outage_of_redis_raises_and_loses_nothing(fleet: Fleet, tmp_path: Path) -> None:
    job = new_job(tmp_path, rows=2)
    collector = Collector(fleet.redis)
    owned = collector.add(job)
    assert owned is not None
    deliver(fleet.redis, job, answer(0))
    fleet.kill_valkey()
    with pytest.raises(RedisError):
        collector.poll(0.01)
    with pytest.raises(RedisError):
        Collector(fleet.redis).add(new_job(tmp_path / "other"))
    fleet.valkey.start()
    deliver(fleet.redis, job, answer(1))
    assert poll_all(collector) == 2
    assert texts(job) == ["text 0", "text 1"]
    collector.close()


def test_columns_of_a_row_survive_as_they_were_written(redis: Redis, collector: Collector, tmp_path: Path) -> None:
    line = '{"audio": ["a.wav"],  "n": 12345678901234567890123, "f": 1.10, "s": "\\u00e9 ß"}'
    source = tmp_path / "data.jsonl"
    source.write_text(line + "\n", encoding="utf-8")
    job = open_job(JobSpec((str(source),), cache_path=str(tmp_path / "cache")))
    collector.add(job)
    deliver(redis, job, json.dumps({"row": 0, "items": [{"text": "ü"}]}).encode())
    poll_all(collector)
    assert job.step.path.read_text(encoding="utf-8") == line[:-1] + ', "transcription": "ü"}\n'


def test_a_flushed_redis_is_told_of_the_jobs_again(
    redis: Redis, collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("producer.collector.ANNOUNCE_SECONDS", 0.0)
    job = new_job(tmp_path, rows=2)
    collector.add(job)
    deliver(redis, job, answer(1))
    poll_all(collector)
    redis.flushdb()
    collector.poll(0.01)
    assert [entry.id for entry in registry.registered(redis)] == [job.id]
    progress = registry.read(redis, job.id)
    assert progress is not None
    assert progress.answered == 1


def test_a_full_redis_is_collected_all_the_same(redis: Redis, tmp_path: Path) -> None:
    """Collecting is what makes room in it."""
    job, done = new_job(tmp_path, rows=2), new_job(tmp_path / "done", rows=0)
    deliver(redis, job, answer(0), answer(1))
    collector = Collector(redis)
    redis.config_set("maxmemory", 1)
    try:
        owned = collector.add(job)
        assert owned is not None
        assert collector.add(done) is None
        assert poll_all(collector) == 2
        assert owned.complete
    finally:
        redis.config_set("maxmemory", 0)
        collector.close()
    assert not redis.exists(keys.results(job.id))
    assert texts(job) == ["text 0", "text 1"]


def test_a_job_whose_step_cannot_be_written_does_not_end_the_service(
    redis: Redis, collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the fault is: the collector of all jobs would end with it, at every start."""
    bad, good = collector.add(new_job(tmp_path / "bad", rows=1)), collector.add(new_job(tmp_path / "good", rows=1))
    assert bad is not None
    assert good is not None
    finish = Job.finish

    def finishes(job: Job, *arguments: Any) -> Job:
        if job.id == bad.job.id:
            raise ValueError("nobody has thought of this")
        return finish(job, *arguments)

    monkeypatch.setattr(Job, "finish", finishes)
    deliver(redis, bad.job, answer(0))
    deliver(redis, good.job, answer(0))
    poll_all(collector)
    assert "cannot be written: ValueError: nobody has thought of this" in str(bad.error)
    assert good.complete

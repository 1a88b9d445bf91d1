"""Sending a job's rows: what is sent, how far ahead, and again what Redis has lost."""

from __future__ import annotations

import base64
import errno
import json
import math
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from job_files import answer, away, deliver, finished, new_job, write_rows

from failover import MovingBroker
from fleet import Fleet, ended, wait_for
from producer import enqueue, patience, registry
from producer import job as module_of_jobs
from producer.chunks import ChunkLimits
from producer.enqueue import Enqueuer, enqueuer_for
from producer.errors import UsageError
from producer.file_lock import FileLock
from producer.follow import Follower
from producer.in_flight import rows_in_flight, rows_uncollected
from producer.job import Job
from producer.journal import Journal
from producer.opening import open_job
from producer.registry import Progress
from producer.spec import JobSpec
from workers import keys
from workers.app import create_app
from workers.presence import Presence, live_workers
from workers.publisher import publish
from workers.settings import load_settings

BULK = "transcribe:5"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with Fleet(tmp_path_factory.mktemp("enqueue")) as running:
        yield running


@pytest.fixture
def clean(broker: Fleet) -> Fleet:
    broker.redis.flushdb()
    return broker


class Sending:
    """An enqueuer in a thread of its own, and the journal of its job, which the test writes."""

    def __init__(
        self,
        fleet: Fleet | MovingBroker,
        job: Job,
        *,
        chunk_rows: int = 1,
        chunk_seconds: float = math.inf,
        window_rows: int = 1000,
        limits: ChunkLimits | None = None,
    ) -> None:
        self.stop = threading.Event()
        self._job = job
        self.enqueuer = Enqueuer(
            job,
            create_app(load_settings(REDIS_URL=fleet.url)),
            fleet.redis,
            queue="transcribe",
            limits=limits or ChunkLimits(chunk_rows, chunk_seconds),
            window_rows=window_rows,
            answered=Follower(job).read,
            stop=self.stop,
            stall_seconds=0.5,
        )
        self._thread = threading.Thread(target=lambda: self.enqueuer.send_all())

    def journal(self, rows: Iterable[int]) -> None:
        """Answer these rows, as if a collector had."""
        write_journal(self._job, rows)

    def __enter__(self) -> Sending:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()


def write_journal(job: Job, rows: Iterable[int]) -> None:
    journal = Journal.open(job.step.journal_path, job.rows)
    journal.append([answer(row) for row in rows])
    journal.close()


def messages(fleet: Fleet) -> list[dict[str, Any]]:
    """The queued messages, first sent first."""
    return [json.loads(message) for message in reversed(fleet.redis.lrange(BULK, 0, -1))]  # type: ignore[arg-type]


def message_records(message: dict[str, Any]) -> list[dict[str, Any]]:
    """The records of a queued message."""
    (records,), _, _ = json.loads(base64.b64decode(message["body"]))
    return list(records)


def queued(fleet: Fleet | MovingBroker, job: Job) -> Callable[[], set[int]]:
    return lambda: rows_in_flight(fleet.redis, "transcribe", job.id)


def test_a_message_is_a_plain_task_that_says_whose_rows_it_has(clean: Fleet, tmp_path: Path) -> None:
    job = new_job(tmp_path, rows=3, language="de", timestamps=True)
    with Sending(clean, job, chunk_rows=2):
        wait_for(lambda: queued(clean, job)() == {0, 1, 2})
    first, second = messages(clean)
    assert first["headers"]["task"] == "whisper.transcribe"
    assert first["headers"]["id"].startswith(f"{job.id}.0.")
    assert first["headers"]["ignore_result"] is True
    assert first["headers"]["argsrepr"] == "(2 rows from row 0)"
    assert first["headers"]["kwargsrepr"] == f"{{job: {job.id}}}"
    assert first["properties"]["priority"] == 5
    args, kwargs, _ = json.loads(base64.b64decode(first["body"]))
    assert args == [[{"audio": str(tmp_path / f"{row}.wav"), "row": row} for row in (0, 1)]]
    assert kwargs == {"options": {"language": "de", "timestamps": True}, "job": job.id}
    (rest,), _, _ = json.loads(base64.b64decode(second["body"]))
    assert [record["row"] for record in rest] == [2]


def rows_by_message(fleet: Fleet) -> list[list[int]]:
    bodies = [json.loads(base64.b64decode(message["body"])) for message in messages(fleet)]
    return [[record["row"] for record in records] for (records,), _, _ in bodies]


def test_the_last_messages_of_a_job_are_small(clean: Fleet, tmp_path: Path) -> None:
    job = new_job(tmp_path, rows=100)
    with Sending(clean, job, limits=ChunkLimits(8, threads=2, fill=2)):
        wait_for(lambda: queued(clean, job)() == set(range(100)))
    sizes = [len(rows) for rows in rows_by_message(clean)]
    assert sizes[:9] == [8] * 9
    assert sizes[9:] == sorted(sizes[9:], reverse=True)
    assert sizes[-2] == 2


def test_rows_that_say_how_long_they_are_make_messages_of_that_much_audio(clean: Fleet, tmp_path: Path) -> None:
    spans = [{"start_s": 5, "end_s": 30}, {"duration": 30}, {"duration": 20, "end_s": 3}, {}, {"duration": 4000}, {}]
    source = write_rows(tmp_path / "d.jsonl", ({"audio": "a.wav", **span} for span in spans))
    job = open_job(JobSpec((str(source),), cache_path=str(tmp_path)))
    with Sending(clean, job, chunk_rows=64, chunk_seconds=60):
        wait_for(lambda: queued(clean, job)() == set(range(6)))
    assert rows_by_message(clean) == [[0, 1, 2, 3], [4], [5]]


def test_rows_that_do_not_say_how_long_they_are_count_as_the_answered_ones(clean: Fleet, tmp_path: Path) -> None:
    job = new_job(tmp_path, rows=10)
    # Given: of the rows so far, two were transcribed, and were 20 s long.
    progress = Progress(rows=10, answered=4, failed=1, reused=1, audio_seconds=40.0)
    registry.publish(clean.redis, job.id, progress)
    with Sending(clean, job, chunk_rows=64, chunk_seconds=60):
        wait_for(lambda: queued(clean, job)() == set(range(10)))
    assert rows_by_message(clean) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]


def test_translations_go_to_their_own_task(clean: Fleet, tmp_path: Path) -> None:
    job = new_job(tmp_path, rows=1, task="translate")
    with Sending(clean, job):
        wait_for(lambda: messages(clean))
    assert messages(clean)[0]["headers"]["task"] == "whisper.translate"


def test_at_most_a_window_of_rows_is_ahead_of_the_journal(clean: Fleet, tmp_path: Path) -> None:
    job = new_job(tmp_path, rows=40)
    with Sending(clean, job, window_rows=10) as sending:
        wait_for(lambda: len(queued(clean, job)()) == 10)
        sending.journal(range(4))
        wait_for(lambda: len(queued(clean, job)()) == 14)
        assert queued(clean, job)() == set(range(14)), "in order"
        sending.journal(range(4, 12))
        wait_for(lambda: len(queued(clean, job)()) == 22)
        sending.journal(range(12, 22))
        wait_for(lambda: len(queued(clean, job)()) == 32)
        sending.journal(range(22, 32))
        wait_for(lambda: len(queued(clean, job)()) == 40)
    assert sending.enqueuer.sent == 40


def live(fleet: Fleet, count: int, queue: str = "transcribe", model: str = "m", *, more: bool = False) -> None:
    """So many workers are live, each of eight threads, and no others unless these are ``more``."""
    if not more:
        fleet.redis.delete(keys.WORKERS)
    for number in range(count):
        one = Presence.model_validate(
            {
                **{"name": f"{number}@{model}", "queues": [queue], "model": model, "revision": "1", "device": "cuda"},
                **{"version": "1", "tasks": ["transcribe"], "languages": ["en"], "max_num_seqs": 16, "threads": 8},
            }
        )
        publish(fleet.redis, keys.WORKERS, keys.worker(one.name, "1"), one.model_dump_json())


def test_the_window_suits_the_workers_that_come_and_go(
    clean: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fleet that comes up after the job was sent would have a window for one machine until its end."""
    monkeypatch.setattr(enqueue, "ANNOUNCE_SECONDS", 0.2)
    job, config = new_job(tmp_path, rows=12_000), load_settings(REDIS_URL=clean.url)
    sending = Sending(clean, job)
    answered = Follower(job).read
    sending.enqueuer = enqueuer_for(job, create_app(config), clean.redis, [], config, answered, sending.stop)
    with sending:
        # Given a job that was begun while nobody was live: what a small fleet needs is sent
        wait_for(lambda: clean.redis.llen(BULK) == 31)
        assert sending.enqueuer.sent == 31 * 64
        # When many workers come, then each of their threads has two messages
        live(clean, 100)
        wait_for(lambda: sending.enqueuer._window.limit == 6400)
        wait_for(lambda: len(queued(clean, job)()) > 6390)
        assert clean.redis.llen(BULK) > 800, "some for the first of them are larger"
        assert len(message_records(messages(clean)[-1])) == 4
        # When all but one go, then no more is sent until what is left is little
        live(clean, 1)
        wait_for(lambda: sending.enqueuer._window.limit == 2000)
        sent = sending.enqueuer.sent
        sending.journal(range(3000))
        wait_for(lambda: len(sending.enqueuer._window) == sent - 3000)
        assert sending.enqueuer.sent == sent
        sending.journal(range(3000, 6000))
        wait_for(lambda: sending.enqueuer.sent > sent)
        # When there is nobody at all for a while, it stays as it is
        live(clean, 0)
        sending.enqueuer._suit_workers()
        assert sending.enqueuer._window.limit == 2000


def test_workers_of_other_queues_do_not_count(clean: Fleet, tmp_path: Path) -> None:
    """A large fleet for one model beside a worker of another: a job of that one keeps to what one worker needs."""
    job, config = new_job(tmp_path, rows=12_000), load_settings(REDIS_URL=clean.url)
    live(clean, 101)
    one, *others = live_workers(clean.redis)
    beside = [worker.model_copy(update={"queues": ["transcribe.whisper-small"]}) for worker in others]

    def window_rows(present: list[Presence]) -> int:
        made = enqueuer_for(
            job, create_app(config), clean.redis, present, config, Follower(job).read, threading.Event()
        )
        return made._window.limit

    assert window_rows([one, *beside]) == window_rows([one]) < window_rows([one, *others])


def test_a_message_that_is_larger_than_the_window_by_now_goes_alone(clean: Fleet, tmp_path: Path) -> None:
    job = new_job(tmp_path, rows=12)
    with Sending(clean, job, chunk_rows=4, window_rows=4) as sending:
        wait_for(lambda: queued(clean, job)() == set(range(4)))
        # Given a message that waits, and a window that is smaller than when it was made
        sending.enqueuer._window.limit = 1
        # When all before it is answered, then it goes
        sending.journal(range(4))
        wait_for(lambda: queued(clean, job)() == set(range(8)))


def test_rows_that_need_no_worker_keep_to_the_window_too(clean: Fleet, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "d.jsonl", [{"audio": None}] * 30)
    job = open_job(JobSpec((str(source),), cache_path=str(tmp_path)))
    with Sending(clean, job, window_rows=10) as sending:
        wait_for(lambda: len(rows_uncollected(clean.redis, job.id)) == 10)
        clean.redis.delete(keys.results(job.id))
        sending.journal(range(10))
        wait_for(lambda: rows_uncollected(clean.redis, job.id) == set(range(10, 20)))


def test_a_window_smaller_than_a_chunk_still_moves(clean: Fleet, tmp_path: Path) -> None:
    job = new_job(tmp_path, rows=9)
    with Sending(clean, job, chunk_rows=4, window_rows=1) as sending:
        wait_for(lambda: queued(clean, job)() == set(range(4)))
        sending.journal(range(4))
        wait_for(lambda: queued(clean, job)() == set(range(8)))
        sending.journal(range(4, 8))
        wait_for(lambda: queued(clean, job)() == set(range(9)))


def test_rows_that_are_answered_or_on_their_way_are_not_sent_again(clean: Fleet, tmp_path: Path) -> None:
    job = new_job(tmp_path, rows=12)
    # Given: an earlier producer sent rows 0 to 9 and ended with its window full.
    with Sending(clean, job, window_rows=10):
        wait_for(lambda: len(queued(clean, job)()) == 10)
    # Given: rows 0 to 2 are in the journal, 3 and 4 in the stream; their messages are gone, 5 to 9 are queued.
    clean.redis.rpop(BULK, 5)
    write_journal(job, range(3))
    deliver(clean.redis, job, answer(3), answer(4))
    assert queued(clean, job)() == {5, 6, 7, 8, 9}
    # When: the same job is sent again. Then: only 10 and 11 are new, and what is uncollected counts in the window.
    with Sending(clean, job, window_rows=8) as sending:
        wait_for(lambda: queued(clean, job)() == {5, 6, 7, 8, 9, 10})
        assert sending.enqueuer.sent == 8
        sending.journal([3])
        wait_for(lambda: queued(clean, job)() == {5, 6, 7, 8, 9, 10, 11})
    assert clean.redis.llen(BULK) == 7, "each row once"


def test_a_row_without_a_record_is_answered_without_a_worker(clean: Fleet, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "d.jsonl", [{"audio": None}, {"audio": "a.wav"}, {"audio": "b", "start_s": "x"}])
    job = open_job(JobSpec((str(source),), cache_path=str(tmp_path)))
    with Sending(clean, job):
        wait_for(lambda: queued(clean, job)() == {1})
        wait_for(lambda: rows_uncollected(clean.redis, job.id) == {0, 2})
    entries: Any = clean.redis.xrange(keys.results(job.id))
    answers = [json.loads(entry[keys.RESULT_FIELD]) for _, entry in entries]
    assert {one["row"]: one["items"][0]["type"] for one in answers} == {0: "no_audio", 2: "bad_argument"}


def test_a_window_that_redis_has_lost_is_sent_again(clean: Fleet, tmp_path: Path) -> None:
    """Nothing would ever make room in it."""
    job = new_job(tmp_path, rows=12)
    with Sending(clean, job, window_rows=6) as sending:
        wait_for(lambda: len(queued(clean, job)()) == 6)
        # Given: row 0 is answered and on the disk, the answer of row 1 waits, and of the messages only row 5's is left.
        kept = clean.redis.lrange(BULK, 0, 0)
        clean.redis.flushdb()
        clean.redis.lpush(BULK, *kept)  # type: ignore[misc]
        deliver(clean.redis, job, answer(1))
        sending.journal([0])
        wait_for(lambda: queued(clean, job)() == {2, 3, 4, 5, 6})
        assert clean.redis.llen(BULK) == 5, "each row once, and no more than a window"
        # And: collectors can find the job again.
        wait_for(lambda: [entry.id for entry in registry.registered(clean.redis)] == [job.id])
        # When: rows are answered. Then: the window is as wide as before.
        sending.journal(range(1, 6))
        wait_for(lambda: queued(clean, job)() == set(range(2, 12)))


def test_what_is_lost_is_sent_without_a_look_at_the_rows_after_it(
    clean: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of millions: each is read and checked, while the fleet has nothing to do."""
    job = new_job(tmp_path, rows=2000)
    looked_at: list[int] = []
    timed = module_of_jobs.timed_record_of

    def noted(row: int, *others: Any) -> Any:
        looked_at.append(row)
        return timed(row, *others)

    with Sending(clean, job, window_rows=6) as sending:
        wait_for(lambda: len(queued(clean, job)()) == 6)
        monkeypatch.setattr(module_of_jobs, "timed_record_of", noted)
        clean.redis.delete(BULK)
        wait_for(lambda: len(queued(clean, job)()) == 6)
        assert looked_at
        assert set(looked_at) <= set(range(8)), "and the row or two that wait for room"
        assert sending.enqueuer.sent == 6


@pytest.mark.parametrize("appended", [True, False])
def test_rows_of_an_input_that_is_written_over_meanwhile_are_not_sent(
    clean: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, appended: bool
) -> None:
    """Answers know only the number of their row: put back, the old input would get other rows' texts."""
    # Given a job of which a window is sent; its lines are of one length, so that each place in the file is a line's
    source = write_rows(tmp_path / "data.jsonl", ({"audio": f"{row:04}.wav"} for row in range(3000)))
    job = open_job(JobSpec((str(source),), cache_path=str(tmp_path / "cache")))
    lines = source.read_bytes().splitlines(keepends=True)
    sending = Sending(clean, job, window_rows=4)
    failures: list[BaseException] = []
    monkeypatch.setattr(threading, "excepthook", lambda told: failures.append(told.exc_value))
    with sending:
        wait_for(lambda: len(queued(clean, job)()) == 4)
        # When other rows are written into the same file, or some behind them
        with source.open("r+b") as handle:
            handle.write(b"".join(lines if appended else reversed(lines)))
            handle.seek(0, 2)
            handle.write(lines[0] if appended else b"")
        sending.journal(range(4))
        # Then nothing is sent that is another's, and it says why
        if appended:
            wait_for(lambda: queued(clean, job)() == set(range(8)))
        else:
            wait_for(lambda: bool(failures))
            assert "the input changed since the job" in str(failures[0])
    paths = [message_records(message) for message in messages(clean)]
    assert all(Path(record["audio"]).stem == f"{record.get('row', 0):04}" for found in paths for record in found)


def test_rows_of_an_input_that_was_written_over_before_they_are_sent_are_not(clean: Fleet, tmp_path: Path) -> None:
    """An own fleet takes minutes to load between the look at the input and the first row."""
    source = write_rows(tmp_path / "data.jsonl", [{"audio": "1.wav"}, {"audio": None}])
    job = open_job(JobSpec((str(source),), cache_path=str(tmp_path / "cache")))
    write_rows(source, [{"audio": None}, {"audio": "two.wav"}])
    with pytest.raises(UsageError, match="the input changed since"):
        Sending(clean, job).enqueuer.send_all()
    assert not clean.redis.exists(BULK, keys.results(job.id))


@pytest.mark.parametrize("change", ["sorted", "removed"])
def test_an_input_that_changes_while_it_is_sent_is_no_wrong_argument(clean: Fleet, tmp_path: Path, change: str) -> None:
    """That would say that nothing is enqueued."""
    # Given: a window of the rows is sent
    job = new_job(tmp_path, rows=3000)
    source = tmp_path / "data.jsonl"
    command = ("enqueue", str(source), "--cache-path", str(tmp_path / "cache"))
    with ended(clean.start_cli(*command, WHISPER_WINDOW_ROWS="4", WHISPER_CHUNK_ROWS="1")) as process:
        wait_for(lambda: len(queued(clean, job)()) == 4)
        # When: the rows that come next are others by now
        if change == "sorted":
            source.write_bytes(b"".join(reversed(source.read_bytes().splitlines(keepends=True))))
        else:
            source.unlink()
        write_journal(job, range(4))
        # Then: it says so, and that some of them are sent
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1, stderr
    words = "the input changed since" if change == "sorted" else "data.jsonl: cannot be read"
    assert words in stderr.splitlines()[-1]
    assert "--reuse" not in stderr, "of a job that is not finished"


@pytest.mark.parametrize("answers", [0, 3])
def test_who_is_awaited_is_said(clean: Fleet, tmp_path: Path, caplog: pytest.LogCaptureFixture, answers: int) -> None:
    """Nobody works on the rows, or nobody collects their answers: without a word it would look like a hang."""
    job = new_job(tmp_path, rows=9)
    with Sending(clean, job, window_rows=3):
        wait_for(lambda: len(queued(clean, job)()) == 3)
        deliver(clean.redis, job, *(answer(row) for row in range(answers)))
        said = "3 answers wait for a collector" if answers else "no worker is live: rows wait in transcribe"
        wait_for(lambda: said in caplog.text)


def test_while_answers_wait_for_their_collector_nothing_is_lost(clean: Fleet, tmp_path: Path) -> None:
    job = new_job(tmp_path, rows=5)
    with Sending(clean, job, window_rows=3) as sending:
        wait_for(lambda: len(queued(clean, job)()) == 3)
        deliver(clean.redis, job, answer(0), answer(1), answer(2))
        clean.redis.delete(BULK)
        sending.enqueuer._resend_lost()
        assert not clean.redis.exists(BULK)


def test_a_job_that_another_has_finished_is_not_sent(clean: Fleet, tmp_path: Path) -> None:
    """Its journal is gone by then, so that its rows look unanswered."""
    job = new_job(tmp_path, rows=2)
    journal = Journal.open(job.step.journal_path, job.rows)
    journal.append([answer(0), answer(1)])
    job.finish(journal)
    journal.close()
    Sending(clean, job).enqueuer.send_all()
    assert not clean.redis.exists(BULK)
    assert registry.registered(clean.redis) == []


def test_a_full_redis_is_waited_out_before_it_is_full(
    clean: Fleet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = new_job(tmp_path, rows=2000)
    redis = clean.redis
    redis.config_set("maxmemory", int(redis.info("memory")["used_memory"]) + 400_000)
    try:
        with Sending(clean, job, window_rows=2000) as sending:
            # Then: the producer says so, and leaves room for the answers.
            wait_for(lambda: "Redis is full" in caplog.text)
            sent = len(queued(clean, job)())
            assert sent < 2000
            redis.xadd("an answer", {"r": "x" * 1000})
            # When: there is room again. Then: the rest is sent.
            redis.config_set("maxmemory", 0)
            wait_for(lambda: len(queued(clean, job)()) == 2000)
            assert clean.redis.llen(BULK) == 2000, "each row once"
            assert sending.enqueuer.sent == 2000
    finally:
        redis.config_set("maxmemory", 0)


def test_of_a_batch_that_redis_took_in_part_the_rest_is_sent(
    clean: Fleet, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("producer.room.PRODUCERS_SHARE", 2.0)  # as if others had filled it meanwhile
    job = new_job(tmp_path, rows=1000)
    redis = clean.redis
    redis.config_set("maxmemory", int(redis.info("memory")["used_memory"]) + 300_000)
    try:
        with Sending(clean, job):
            wait_for(lambda: "when used memory > 'maxmemory'" in caplog.text)
            redis.config_set("maxmemory", 0)
            wait_for(lambda: len(queued(clean, job)()) == 1000)
            assert clean.redis.llen(BULK) == 1000, "each row once"
    finally:
        redis.config_set("maxmemory", 0)


def test_an_outage_of_redis_is_waited_out(fleet: Fleet, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    job = new_job(tmp_path, rows=30)
    with Sending(fleet, job, window_rows=10) as sending:
        wait_for(lambda: len(queued(fleet, job)()) == 10)
        fleet.kill_valkey()
        sending.journal(range(10))
        wait_for(lambda: "Redis does not take it, trying again" in caplog.text)
        fleet.valkey.start()
        wait_for(lambda: queued(fleet, job)() >= set(range(10, 20)))


def test_rows_find_the_new_primary(tmp_path: Path) -> None:
    """The old one may answer after a failover, and take nothing."""
    job = new_job(tmp_path, rows=30)
    with MovingBroker(tmp_path / "brokers") as broker, Sending(broker, job, window_rows=10) as sending:
        wait_for(lambda: len(queued(broker, job)()) == 10)
        broker.move()
        sending.journal(range(10))
        wait_for(lambda: queued(broker, job)() >= set(range(10, 20)))


def test_the_jobs_lock_is_free_for_its_collector(clean: Fleet, tmp_path: Path) -> None:
    job = new_job(tmp_path, rows=1)
    with Sending(clean, job):
        wait_for(lambda: queued(clean, job)())
        lock: FileLock = job.step.lock("collector")
        assert lock.acquire()
        lock.release()


def test_a_row_that_is_answered_as_it_is_sent_does_not_close_the_window(clean: Fleet, tmp_path: Path) -> None:
    job = new_job(tmp_path, rows=3)
    with Sending(clean, job, window_rows=1) as sending:
        wait_for(lambda: queued(clean, job)() == {0})
        # Given: row 0 is journaled and its message gone, and the window is thought to hold it all the same.
        clean.redis.delete(BULK)
        sending.enqueuer._window._looked_at = 1
        sending.journal([0])
        # Then: when nothing moves for a while, it is found out.
        wait_for(lambda: queued(clean, job)() == {1})


def test_a_job_of_a_named_model_waits_for_a_worker_that_has_it(
    clean: Fleet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In the plain queue all its rows would fail: the workers there have another model."""
    job, config = new_job(tmp_path, rows=3, model="openai/whisper-small"), load_settings(REDIS_URL=clean.url)
    sending = Sending(clean, job)
    answered = Follower(job).read
    sending.enqueuer = enqueuer_for(job, create_app(config), clean.redis, [], config, answered, sending.stop)
    own = "transcribe.whisper-small"
    with sending:
        # Given nobody, and then those of another model
        wait_for(lambda: "no worker is live: waiting for a worker with the model openai/whisper-small" in caplog.text)
        live(clean, 1)
        wait_for(lambda: "no live worker has it, there are m: waiting for" in caplog.text)
        assert not clean.redis.exists(BULK, f"{own}:5")
        # When there is one that has it, then its queue gets the rows
        live(clean, 1, own, "openai/whisper-small", more=True)
        wait_for(lambda: clean.redis.llen(f"{own}:5") == 3)
    assert not clean.redis.exists(BULK)


@pytest.mark.parametrize("done", ["answered", "queued", "finished"])
def test_what_needs_no_worker_waits_for_none(clean: Fleet, tmp_path: Path, done: str) -> None:
    """The same command again, or one whose rows have all been reused."""
    job, config = new_job(tmp_path, rows=3, model="openai/whisper-small"), load_settings(REDIS_URL=clean.url)
    sending = Sending(clean, job)
    if done == "queued":
        live(clean, 1, "transcribe.whisper-small", "openai/whisper-small")
    present = live_workers(clean.redis)
    answered = Follower(job).read
    made = enqueuer_for(job, create_app(config), clean.redis, present, config, answered, sending.stop)
    if done == "queued":
        made.send_all()
        live(clean, 0)
        made = enqueuer_for(job, create_app(config), clean.redis, [], config, answered, sending.stop)
    elif done == "answered":
        sending.journal(range(3))
    sending.enqueuer = made
    with sending:
        if done == "finished":
            finished(job, [answer(row) for row in range(3)])
        sending._thread.join(60)
        assert not sending._thread.is_alive()
    assert clean.redis.llen("transcribe.whisper-small:5") == (3 if done == "queued" else 0)
    assert not clean.redis.exists(BULK)


def test_what_the_named_model_cannot_do_is_refused_when_its_worker_comes(clean: Fleet, tmp_path: Path) -> None:
    job = new_job(tmp_path, rows=2, model="m", language="de")
    config, stop = load_settings(REDIS_URL=clean.url), threading.Event()
    made = enqueuer_for(job, create_app(config), clean.redis, [], config, Follower(job).read, stop)
    live(clean, 1)
    with pytest.raises(UsageError, match="no live worker knows it"):
        made.send_all()


def test_a_job_without_a_model_waits_in_its_queue(clean: Fleet, tmp_path: Path) -> None:
    job, config = new_job(tmp_path, rows=2), load_settings(REDIS_URL=clean.url)
    answered = Follower(job).read
    enqueuer_for(job, create_app(config), clean.redis, [], config, answered, threading.Event()).send_all()
    assert queued(clean, job)() == {0, 1}


def test_that_nobody_serves_the_jobs_queue_is_said(
    clean: Fleet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = new_job(tmp_path, rows=9)
    live(clean, 1, "translate")
    with Sending(clean, job, window_rows=3):
        wait_for(lambda: "no live worker serves transcribe" in caplog.text)


def test_that_workers_of_another_model_came_is_said(
    clean: Fleet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job, config = new_job(tmp_path, rows=2), load_settings(REDIS_URL=clean.url)
    live(clean, 1)
    answered, stop = Follower(job).read, threading.Event()
    made = enqueuer_for(job, create_app(config), clean.redis, live_workers(clean.redis), config, answered, stop)
    made._suit_workers()
    assert "several models" not in caplog.text
    live(clean, 1, model="other", more=True)
    made._suit_workers()
    assert "the step gets texts of several models: the queue transcribe is served with m, other" in caplog.text


def test_a_folder_that_is_away_for_a_moment_is_waited_for(
    clean: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A network's file system whose server restarts ended the producer, and left the mark that nobody sends."""
    job = new_job(tmp_path, rows=3)
    troubles = away(monkeypatch, job.step.header_path)
    troubles += [errno.ESTALE, errno.EIO]
    monkeypatch.setattr(patience, "RETRY_SECONDS", 0.01)
    Sending(clean, job).enqueuer.send_all()
    assert queued(clean, job)() == {0, 1, 2}
    assert not troubles
    assert "trying again" in caplog.text
    # What does not pass is not waited for
    troubles.append(errno.EACCES)
    with pytest.raises(UsageError, match="cannot be read"):
        Sending(clean, job).enqueuer.send_all()

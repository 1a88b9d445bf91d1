"""What becomes of messages whose worker dies, drains, or loses its connection: real workers, killed for real."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from celery import Celery
from celery.result import AsyncResult
from kombu.transport.redis import Mutex

from fleet import Fleet, wait_for
from workers import keys
from workers.app import create_app
from workers.errors import TranscriptionError
from workers.marks import Claim, TaskMarks, mark_cancelled
from workers.messages import Failure, RowResult, Transcript
from workers.settings import load_settings

DEADLINE_SECONDS = 120.0
#: Nothing is queued or held for so long, and still an answer is missing.
LOST_SECONDS = 5.0
QUICK = {
    "WHISPER_VISIBILITY_TIMEOUT_SECONDS": "5",
    "WHISPER_RESTORE_SECONDS": "1",
    "WHISPER_LEASE_SECONDS": "0.5",
    "WHISPER_RETRY_SECONDS": "0.01",
    "WHISPER_DECODE_PROCESSES": "1",
    "WHISPER_CONCURRENCY": "2",
    "PYTHONPATH": str(Path(__file__).parent.parent),
}


@dataclass
class Poisonous:
    """A fleet whose workers' engines note what they are given, and can be killed by it."""

    fleet: Fleet
    client: Celery
    folder: Path
    audio: str
    #: Tasks of calls, to be forgotten.
    results: list[AsyncResult] = field(default_factory=list)

    def start_worker(self, *, wait: bool = True, **changes: str) -> subprocess.Popen[bytes]:
        files = {"POISON_RUNS": str(self.folder / "runs"), "POISON_GO": str(self.folder / "go")}
        return self.fleet.start_worker("-I", "poisonous_engine", wait=wait, **files, **changes)

    def send(self, job: str | None, *prompts: str, first: int = 0, part: str = "part") -> AsyncResult:
        records = [{"audio": self.audio, "prompt": prompt} for prompt in prompts]
        if job is None:
            return self.client.send_task("whisper.transcribe", [records], queue="transcribe")
        records = [{**record, "row": row} for row, record in enumerate(records, start=first)]
        id = f"{job}.{first}.{part}"
        return self.client.send_task(
            "whisper.transcribe", [records], {"job": job}, queue="transcribe", task_id=id, priority=5
        )

    def go(self) -> None:
        (self.folder / "go").touch()

    def runs(self) -> Counter[str]:
        """How often each prompt went into an engine."""
        path = self.folder / "runs"
        lines = path.read_text().splitlines() if path.exists() else []
        return Counter(line.partition(" ")[2] for line in lines)

    def rows(self, job: str) -> dict[int, RowResult]:
        entries = self.fleet.redis.xrange(keys.results(job))
        rows = [RowResult.model_validate_json(fields[keys.RESULT_FIELD]) for _, fields in entries]
        assert len({row.row for row in rows}) == len(rows), "no row is answered twice"
        return {row.row: row for row in rows}

    def idle(self) -> bool:
        redis = self.fleet.redis
        return not (redis.hlen(keys.UNACKED) or redis.llen("transcribe") or redis.llen("transcribe:5"))


@pytest.fixture
def poisonous(fleet: Fleet, tmp_path: Path, samples: Path) -> Iterator[Poisonous]:
    fleet._environment.update(QUICK)
    client = Celery(broker=fleet.url, backend=fleet.url)
    client.conf.broker_transport_options = {"priority_steps": [0, 5], "sep": ":", "queue_order_strategy": "round_robin"}
    yield Poisonous(fleet, client, tmp_path, str(samples / "en_train.flac"))
    client.close()


def kill(worker: subprocess.Popen[bytes]) -> None:
    worker.send_signal(signal.SIGKILL)
    worker.wait(DEADLINE_SECONDS)


def test_rows_of_a_killed_worker_run_elsewhere_and_answered_ones_not_again(poisonous: Poisonous) -> None:
    # Given a worker in the middle of a chunk: two rows are answered, two are not
    first = poisonous.start_worker()
    poisonous.send("job", "one", "two", "slow three", "slow four")
    wait_for(lambda: len(poisonous.rows("job")) == 2 and len(poisonous.runs()) == 4, DEADLINE_SECONDS)

    # When it is killed, and another one is there
    kill(first)
    poisonous.fleet.workers.remove(first)
    poisonous.go()
    poisonous.start_worker()

    # Then the others are answered, in the message in which they were, and no row ran again that had its answer
    wait_for(lambda: len(poisonous.rows("job")) == 4 and poisonous.idle(), DEADLINE_SECONDS)
    assert all(isinstance(row.items[0], Transcript) for row in poisonous.rows("job").values())
    assert poisonous.runs() == {"one": 1, "two": 1, "slow three": 2, "slow four": 2}
    log = poisonous.fleet.log_path().read_text()
    assert "'skipped': 2" in log
    assert "suspects" not in log, "taken apart is what a worker dies over alone: row by row takes as long as the rows"
    # and of what the workers knew of the messages only that they are done is left, for a while
    left = poisonous.fleet.redis.keys("whisper:task:*")
    assert {poisonous.fleet.redis.get(key) for key in left} == {b"done"}
    assert all(0 < poisonous.fleet.redis.ttl(key) <= 120 for key in left)


def test_worker_that_is_killed_while_it_gives_messages_out_again_holds_up_no_other(poisonous: Poisonous) -> None:
    # Given a worker that dies with a message, and with the lock under which messages are given out again
    first = poisonous.start_worker()
    poisonous.send("job", "slow one")
    wait_for(lambda: len(poisonous.runs()) == 1, DEADLINE_SECONDS)
    kill(first)
    poisonous.fleet.workers.remove(first)
    settings = load_settings(redis_url=poisonous.fleet.url, restore_seconds=float(QUICK["WHISPER_RESTORE_SECONDS"]))
    with create_app(settings, set_as_current=False).connection_for_read() as connection:
        channel = connection.default_channel
        with Mutex(channel.client, channel.unacked_mutex_key, channel.unacked_mutex_expire):
            assert poisonous.fleet.redis.exists(keys.UNACKED_MUTEX)

            # When another one is there
            poisonous.go()
            poisonous.start_worker()

            # Then the lock is no matter for long
            wait_for(lambda: len(poisonous.rows("job")) == 1 and poisonous.idle(), DEADLINE_SECONDS)


def test_record_that_kills_its_workers_is_quarantined_and_nothing_else(poisonous: Poisonous) -> None:
    # Given a chunk with a poisonous record, and a poisonous call
    prompts = ("one", "poison", "two", "three")
    poisonous.send("job", *prompts)
    call = poisonous.send(None, "poison")
    # When there are workers until one stays: each message kills one worker, alone another, and each record alone two
    killed: list[subprocess.Popen[bytes]] = []
    busy = time.monotonic()

    def answered() -> bool:
        nonlocal busy, call
        for worker in poisonous.fleet.workers[:]:
            if worker.poll() is not None:
                assert worker.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), worker.returncode
                poisonous.fleet.workers.remove(worker)
                killed.append(worker)
        while len(poisonous.fleet.workers) < 2:
            poisonous.start_worker(wait=False)
        missing = [row for row in range(len(prompts)) if row not in poisonous.rows("job")]
        if not poisonous.idle():
            busy = time.monotonic()
        elif (missing or not call.ready()) and time.monotonic() > busy + LOST_SECONDS:
            # As a job's producer does, and whoever waits for a call: what a worker has taken out of a queue and not yet
            # noted as its own is lost when another of its threads kills it just then (kombu).
            for row in missing:
                poisonous.send("job", prompts[row], first=row, part="again")
            call = call if call.ready() else poisonous.send(None, "poison")
            busy = time.monotonic()
        return not missing and call.ready() and poisonous.idle()

    wait_for(answered, 2 * DEADLINE_SECONDS)

    # Then it has its error, and all others have their text
    rows = poisonous.rows("job")
    (failure,) = rows[1].items
    assert isinstance(failure, Failure)
    assert failure.type == "quarantined"
    assert "2 of them while nothing else ran there" in failure.message
    assert all(isinstance(rows[row].items[0], Transcript) for row in (0, 2, 3))
    assert call.state == "FAILURE"
    with pytest.raises(TranscriptionError, match="quarantined"):
        call.get()
    # and no worker died for anything else
    assert poisonous.runs()["poison"] == len(killed)


def test_worker_that_runs_a_suspect_leaves_all_others_to_other_workers(poisonous: Poisonous) -> None:
    # Given a worker whose engine a suspect has to itself, for as long as it takes
    redis = poisonous.fleet.redis
    suspect = TaskMarks(redis, threading.Event(), load_settings())
    suspect.accuse("job.0.part", Claim(deaths=1))
    poisonous.start_worker(WHISPER_CONCURRENCY="5")
    poisonous.send("job", "slow suspect")
    wait_for(lambda: len(poisonous.runs()) == 1, DEADLINE_SECONDS)

    # When calls come, then it takes none, or gives back what it had asked for before
    calls = [poisonous.send(None, f"call {number}") for number in range(4)]
    wait_for(lambda: (redis.llen("transcribe"), redis.hlen(keys.UNACKED)) == (4, 1), DEADLINE_SECONDS)
    time.sleep(1)
    assert (redis.llen("transcribe"), redis.hlen(keys.UNACKED)) == (4, 1), "nor does it ask for them again and again"

    # and another worker answers them
    other = poisonous.start_worker()
    for call in calls:
        assert call.get(timeout=DEADLINE_SECONDS)
    assert poisonous.rows("job") == {}

    # Left to itself, it answers what there is once the suspect is done
    other.terminate()
    assert other.wait(DEADLINE_SECONDS) == 0
    poisonous.fleet.workers.remove(other)
    last = poisonous.send(None, "last")
    time.sleep(0.5)
    assert not last.ready()
    poisonous.go()
    assert last.get(timeout=DEADLINE_SECONDS)
    wait_for(lambda: len(poisonous.rows("job")) == 1 and poisonous.idle(), DEADLINE_SECONDS)


def test_what_a_drain_gives_back_is_no_suspect(poisonous: Poisonous) -> None:
    # Given a worker without time to end what it has begun
    poisonous.fleet._environment["WHISPER_DRAIN_SECONDS"] = "0.1"
    first = poisonous.start_worker()
    poisonous.send("job", "one", "slow two", "slow three")
    wait_for(lambda: len(poisonous.rows("job")) == 1 and len(poisonous.runs()) == 3, DEADLINE_SECONDS)

    # When it is told to end
    first.terminate()
    assert first.wait(DEADLINE_SECONDS) == 0
    poisonous.fleet.workers.remove(first)

    # Then its message is back as it was, with a note of the row that is answered, and nobody died
    (message,) = poisonous.fleet.redis.lrange("transcribe:5", 0, -1)
    assert json.loads(message)["headers"]["id"] == "job.0.part"
    assert poisonous.fleet.redis.hgetall(keys.task("job.0.part")) == {b"row:0": b""}
    assert not poisonous.fleet.redis.exists(keys.held("job.0.part"))
    poisonous.go()
    poisonous.start_worker()
    wait_for(lambda: len(poisonous.rows("job")) == 3 and poisonous.idle(), DEADLINE_SECONDS)
    assert poisonous.runs() == {"one": 1, "slow two": 2, "slow three": 2}
    assert "suspects" not in poisonous.fleet.log_path().read_text()


@pytest.mark.parametrize("taker", ["same worker", "another worker"])
def test_message_that_is_delivered_again_while_it_runs_is_not_repeated(poisonous: Poisonous, taker: str) -> None:
    # Given a job's chunk and a call in work
    poisonous.start_worker(WHISPER_CONCURRENCY="4" if taker == "same worker" else "2")
    poisonous.send("job", "slow one", "slow two")
    call = poisonous.send(None, "slow call")
    wait_for(lambda: len(poisonous.runs()) == 3, DEADLINE_SECONDS)
    log = poisonous.fleet.log_path()
    if taker == "same worker":
        # When all connections are lost: kombu gives back what was not acknowledged
        poisonous.fleet.redis.client_kill_filter(_type="normal", skipme=True)
    else:
        # or the messages were not renewed in time, their worker has no thread to spare, and another one has
        poisonous.start_worker()
        log = poisonous.fleet.log_path(2)
        give_out_again(poisonous.fleet)
    received = 4 if taker == "same worker" else 2
    wait_for(lambda: log.read_text().count("] received") >= received, DEADLINE_SECONDS)
    poisonous.go()

    # Then each ran once, nobody was taken for dead, and all is answered
    wait_for(lambda: len(poisonous.rows("job")) == 2 and call.ready() and poisonous.idle(), DEADLINE_SECONDS)
    (answer,) = call.get()
    assert answer["text"].startswith("stand-in ")
    assert poisonous.runs() == {"slow one": 1, "slow two": 1, "slow call": 1}


def test_cancelled_call_that_another_worker_runs_occupies_nobody(poisonous: Poisonous) -> None:
    # Given a call in work, whose message is given out again after it was cancelled
    poisonous.start_worker(WHISPER_CONCURRENCY="1")
    call = poisonous.send(None, "slow call")
    wait_for(lambda: len(poisonous.runs()) == 1, DEADLINE_SECONDS)
    mark_cancelled(poisonous.fleet.redis, [call.id])
    poisonous.start_worker(WHISPER_CONCURRENCY="1")
    give_out_again(poisonous.fleet)
    # Then the worker that gets it drops it, and goes on with what comes next
    wait_for(lambda: f"task {call.id} was cancelled" in poisonous.fleet.log_path(2).read_text(), DEADLINE_SECONDS)
    assert poisonous.send(None, "one").get(timeout=DEADLINE_SECONDS)
    # and the one that has begun it goes on to its end
    assert not call.ready()
    poisonous.go()
    assert call.get(timeout=DEADLINE_SECONDS)
    assert poisonous.runs() == {"slow call": 1, "one": 1}


def give_out_again(fleet: Fleet) -> None:
    """As a sweep does with messages whose holder has been silent."""
    with create_app(load_settings(redis_url=fleet.url)).connection_for_read() as connection:
        for tag in fleet.redis.hkeys(keys.UNACKED):
            connection.default_channel.qos.restore_by_tag(tag.decode())


def test_dead_engine_makes_suspects_of_what_was_in_it_alone(poisonous: Poisonous) -> None:
    # Given a record that takes the engine down, beside others
    first = poisonous.start_worker()
    poisonous.send("job", "one", "fatal two", "three")

    # When the worker has ended over it
    assert first.wait(DEADLINE_SECONDS) not in (0, None)
    poisonous.fleet.workers.remove(first)

    # Then one death is known, and the message, whole or in parts, waits for another worker, which answers all of it
    names = [key for key in poisonous.fleet.redis.keys("whisper:task:*") if not key.endswith(b":held")]
    marks = [poisonous.fleet.redis.hgetall(name) for name in names]
    assert {mark.get(b"deaths") for mark in marks} == {b"1"}
    assert {int(mark.get(b"deaths_alone", 0)) for mark in marks} == {0}
    poisonous.go()
    poisonous.start_worker()
    wait_for(lambda: len(poisonous.rows("job")) == 3 and poisonous.idle(), DEADLINE_SECONDS)
    assert all(isinstance(row.items[0], Transcript) for row in poisonous.rows("job").values())
    assert poisonous.runs()["fatal two"] == 2


def test_full_broker_costs_no_answer_and_no_second_run(poisonous: Poisonous) -> None:
    # Given a worker in the middle of a chunk and a call
    poisonous.start_worker(WHISPER_CONCURRENCY="2")
    poisonous.send("job", "slow one", "slow two")
    call = poisonous.send(None, "slow call")
    wait_for(lambda: len(poisonous.runs()) == 3, DEADLINE_SECONDS)

    # When Redis is full while they get their answers
    poisonous.fleet.redis.config_set("maxmemory", 1)
    poisonous.go()
    wait_for(
        lambda: "the answer of row 0 of job job: Redis does not take it yet" in poisonous.fleet.log_path().read_text()
    )
    wait_for(lambda: "Failed operation _store_result. Retrying" in poisonous.fleet.log_path().read_text())
    assert poisonous.rows("job") == {}
    assert not call.ready()
    poisonous.fleet.redis.config_set("maxmemory", 0)

    # Then they wait for it
    wait_for(lambda: len(poisonous.rows("job")) == 2 and call.ready() and poisonous.idle(), DEADLINE_SECONDS)
    assert all(isinstance(row.items[0], Transcript) for row in poisonous.rows("job").values())
    (answer,) = call.get()
    assert answer["text"].startswith("stand-in ")
    assert poisonous.runs() == {"slow one": 1, "slow two": 1, "slow call": 1}

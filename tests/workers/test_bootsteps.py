"""What a worker does besides tasks: load the engine first, hold on to its messages, end in good order."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from kombu import Connection, Consumer

from fleet import Fleet, wait_for
from patched_imports import patched_imports
from workers import exit_codes, keys
from workers.app import create_app
from workers.bootsteps import renew_leases
from workers.messages import RowResult
from workers.presence import live_workers
from workers.settings import load_settings

#: How long anything here may take before the test fails.
DEADLINE_SECONDS = 120.0


def test_a_worker_without_a_package_of_its_engine_says_so_in_one_line(fleet: Fleet, tmp_path: Path) -> None:
    """Celery would take it for a fault of its own, with a trace, and the fleet for one that another start may mend."""
    broken = "def fail(): raise ImportError('libsndfile.so: cannot open')\nBEFORE['workers.transcriber'] = fail"
    without = "sys.modules['vllm'] = sys.modules['numpy'] = None"
    for number, (code, why) in enumerate(
        (
            (
                without,
                "no engine is installed: pip install '.[gpu]' in a checkout, or without a GPU `make setup` there",
            ),
            (broken, "a package is missing or broken: libsndfile.so: cannot open"),
        ),
        start=1,
    ):
        changes = patched_imports(tmp_path / str(number), code)
        worker = fleet.start_worker(wait=False, WHISPER_ENGINE="vllm" if code is without else "standin", **changes)
        assert worker.wait(DEADLINE_SECONDS) == exit_codes.CANNOT_START
        said = fleet.log_path(number).read_text()
        assert f"The worker cannot start: {why}\n" in said
        assert "Traceback" not in said


def test_the_stand_in_needs_no_vllm(fleet: Fleet, tmp_path: Path) -> None:
    assert fleet.start_worker(**patched_imports(tmp_path / "patched", "sys.modules['vllm'] = None")).poll() is None


# The two private attributes of kombu's QoS that `renew_leases` reads.


class Held:
    """A kombu consumer of the queue ``transcribe`` that has taken messages and acknowledged none."""

    def __init__(self, fleet: Fleet, count: int) -> None:
        self.app = create_app(load_settings(redis_url=fleet.url))
        for _ in range(count):
            self.app.send_task("whisper.transcribe", [[{"audio": "a.wav"}]])
        self.connection: Connection = self.app.connection_for_read()
        self.channel: Any = self.connection.default_channel
        self.messages: list[Any] = []
        queue = next(queue for queue in self.app.conf.task_queues if queue.name == "transcribe")
        self._consumer = Consumer(self.channel, [queue], on_message=self.messages.append, accept=["json"])
        self._consumer.consume()
        while len(self.messages) < count:
            self.connection.drain_events(timeout=30)

    def close(self) -> None:
        self.connection.close()
        self.app.close()


@pytest.fixture
def held(fleet: Fleet) -> Iterator[Held]:
    taken = Held(fleet, 3)
    yield taken
    taken.close()


def stamps(fleet: Fleet) -> dict[bytes, float]:
    return dict(fleet.redis.zrange(keys.UNACKED_INDEX, 0, -1, withscores=True))


def test_held_messages_are_stamped_anew(held: Held, fleet: Fleet) -> None:
    # Given three messages that were taken long ago
    tags = [message.delivery_tag.encode() for message in held.messages]
    assert set(stamps(fleet)) == set(tags)
    fleet.redis.zadd(keys.UNACKED_INDEX, dict.fromkeys(tags, 1.0))

    # When the worker renews its hold
    renewed = renew_leases(held.channel)

    # Then none of them looks abandoned any more
    assert renewed == 3
    assert set(stamps(fleet)) == set(tags)
    assert min(stamps(fleet).values()) > 1e9
    # and a sweep of any worker gives out none of them
    held.channel.qos.restore_visible(num=10, interval=1)
    assert fleet.redis.llen("transcribe") == 0
    assert fleet.redis.hlen(keys.UNACKED) == 3


def test_what_another_application_holds_is_left_to_it(held: Held, fleet: Fleet) -> None:
    """Celery applications in one database share ``unacked`` by default; theirs may run for longer than ours."""
    # Given one of another's messages, held for longer than the fleet's visibility timeout
    with Connection(fleet.url) as connection, connection.SimpleQueue("celery") as queue:
        queue.put("long")
        queue.get(timeout=30)
        fleet.redis.zadd("unacked_index", dict.fromkeys(fleet.redis.zrange("unacked_index", 0, -1), 1.0))
        # When a fleet's worker looks for messages of silent ones
        held.channel.qos.restore_visible(num=10, interval=1)
        # Then it is where it was
        assert fleet.redis.hlen("unacked") == 1
        assert not fleet.redis.keys("celery*")


def test_acknowledged_and_rejected_messages_are_not_held_again(held: Held, fleet: Fleet) -> None:
    acknowledged, requeued, kept = held.messages
    acknowledged.ack()
    requeued.requeue()

    assert renew_leases(held.channel) == 1

    assert set(stamps(fleet)) == {kept.delivery_tag.encode()}


def test_message_that_redis_gave_out_again_is_not_stamped(held: Held, fleet: Fleet) -> None:
    """Another worker's message by now: a stamp of ours without its message would never go away."""
    fleet.redis.zrem(keys.UNACKED_INDEX, held.messages[0].delivery_tag)

    renew_leases(held.channel)

    assert len(stamps(fleet)) == 2


def test_renewing_nothing(fleet: Fleet) -> None:
    empty = Held(fleet, 0)
    try:
        assert renew_leases(empty.channel) == 0
        assert stamps(fleet) == {}
    finally:
        empty.close()


# Whole workers. They start together, because a start costs seconds.

#: A record takes 10 s, and a silent worker's messages are given out again after 6 s.
SLOW = {
    "WHISPER_VISIBILITY_TIMEOUT_SECONDS": "6",
    "WHISPER_RESTORE_SECONDS": "1",
    "WHISPER_STANDIN_STEP_MS": "500",
    "WHISPER_STANDIN_STEPS": "20",
}


#: A worker that does not say that it holds its messages.
FORGETS = 'AFTER["workers.bootsteps"] = lambda module: setattr(module, "renew_leases", lambda channel: 0)'


@dataclass
class Slow:
    """A fleet of one slow worker, with a one-row job on its way."""

    fleet: Fleet
    worker: subprocess.Popen[bytes]
    client: Celery
    #: The task's id.
    first: str

    def rows(self, job: str) -> list[RowResult]:
        entries = self.fleet.redis.xrange(keys.results(job))
        return [RowResult.model_validate_json(fields[keys.RESULT_FIELD]) for _, fields in entries]

    def log(self) -> str:
        return self.fleet.log_path().read_text()


def send_row(client: Celery, audio: str, job: str) -> str:
    records = [{"audio": audio, "row": 0}]
    return str(client.send_task("whisper.transcribe", [records], {"job": job}, queue="transcribe").id)


@pytest.fixture(scope="module")
def slow_workers(tmp_path_factory: pytest.TempPathFactory, samples: Path) -> Iterator[dict[str, Slow]]:
    """One that renews its hold and one that does not, each at the same work; started side by side."""
    environments = {
        "renews": {"WHISPER_LEASE_SECONDS": "0.5", "WHISPER_DRAIN_SECONDS": "120"},
        "forgets": {"WHISPER_DRAIN_SECONDS": "1", **patched_imports(tmp_path_factory.mktemp("patch"), FORGETS)},
    }
    with contextlib.ExitStack() as stack:
        fleets = {
            name: stack.enter_context(Fleet(tmp_path_factory.mktemp(name), {"WHISPER_ENGINE": "standin", **SLOW}))
            for name in environments
        }
        workers = {
            name: fleets[name].start_worker(wait=False, **environment) for name, environment in environments.items()
        }
        found: dict[str, Slow] = {}
        for name, fleet in fleets.items():
            fleet.wait_for_workers(1)
            client = Celery(broker=fleet.url, backend=fleet.url)
            stack.callback(client.close)
            first = send_row(client, str(samples / "en_train.flac"), "first")
            found[name] = Slow(fleet, workers[name], client, first)
        yield found


@pytest.mark.parametrize(
    ("arguments", "why"), [(("--autoscale=8,2",), "--autoscale: a worker has"), (("-P", "solo"), "-P: the tasks of")]
)
def test_a_pool_that_cannot_be_the_fleets_ends_the_worker_with_one_line(
    fleet: Fleet, arguments: tuple[str, ...], why: str
) -> None:
    """Celery would end it at its third message, and have nobody renew what it holds."""
    worker = fleet.start_worker(*arguments, wait=False, WHISPER_ENGINE="standin")
    assert worker.wait(DEADLINE_SECONDS) == exit_codes.CANNOT_START
    log = fleet.log_path().read_text()
    assert f"The worker cannot start: {why}" in log
    assert "Traceback" not in log


@pytest.mark.usefixtures("slow_workers")
def test_model_that_cannot_load_ends_the_worker_with_one_line(fleet: Fleet, tmp_path: Path) -> None:
    model = str(tmp_path / "no-such-model")

    worker = fleet.start_worker(wait=False, WHISPER_MODEL=model, WHISPER_ENGINE="vllm")

    assert worker.wait(DEADLINE_SECONDS) == 1
    log = fleet.log_path().read_text()
    (line,) = [line for line in log.splitlines() if "The worker cannot start:" in line]
    assert model in line
    assert "Traceback" not in log
    assert live_workers(fleet.redis) == []


def test_record_that_takes_longer_than_the_timeout_runs_once(slow_workers: dict[str, Slow]) -> None:
    slow = slow_workers["renews"]

    assert slow.client.AsyncResult(slow.first).get(timeout=DEADLINE_SECONDS) == {"rows": 1, "failed": 0, "reasons": {}}
    wait_for(lambda: not slow.fleet.redis.hlen(keys.UNACKED))

    assert slow.log().count("received") == 1
    assert [row.row for row in slow.rows("first")] == [0]
    assert slow.fleet.redis.llen("transcribe") == 0


def test_without_renewal_it_would_run_twice(slow_workers: dict[str, Slow]) -> None:
    """The control: what the test above shows comes from the renewal."""
    slow = slow_workers["forgets"]

    wait_for(lambda: slow.log().count("received") > 1, DEADLINE_SECONDS)


@pytest.mark.parametrize(
    "name",
    ["renews", pytest.param("forgets", id="short-of-time")],
)
def test_worker_told_to_end_delivers_or_gives_back(slow_workers: dict[str, Slow], samples: Path, name: str) -> None:
    # Given a worker in the middle of a record
    slow = slow_workers[name]
    redis = slow.fleet.redis
    audio = str(samples / "en_train.flac")
    last = send_row(slow.client, audio, "last")
    wait_for(lambda: f"{last}] received" in slow.log(), DEADLINE_SECONDS)

    # When it is told to end, with time for the record or without
    slow.worker.send_signal(signal.SIGTERM)

    # Then it ends well, and no producer counts on it any more
    assert slow.worker.wait(DEADLINE_SECONDS) == 0
    assert live_workers(redis) == []
    # and the row has its answer, or its message waits for another worker
    answered = [row.row for row in slow.rows("last")]
    waiting = [json.loads(message)["headers"]["id"] for message in redis.lrange("transcribe", 0, -1)]
    assert (answered, last in waiting) == (([0], False) if name == "renews" else ([], True))
    assert redis.hlen(keys.UNACKED) == 0
    assert name == "forgets" or "Traceback" not in slow.log()

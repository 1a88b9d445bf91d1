"""A bulk backlog keeps no interactive call waiting, and no other job."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery
from celery.exceptions import TimeoutError as CeleryTimeoutError
from kombu import Connection, Consumer
from kombu.transport.redis import Channel

from fleet import Fleet, wait_for
from workers import keys
from workers.app import PRIORITY_BULK, PRIORITY_INTERACTIVE, create_app
from workers.presence import live_workers
from workers.settings import load_settings
from workers.spare_thread import ask_for_interactive, ask_for_nothing, bulk_threads

BULK_LIST = "transcribe:5"
#: More than anything here takes; only a test that fails waits so long.
ANSWER_SECONDS = 60


@pytest.mark.parametrize(("threads", "bulk"), [(1, 1), (2, 2), (3, 2), (5, 4), (65, 64)])
def test_bulk_messages_leave_a_thread(threads: int, bulk: int) -> None:
    assert bulk_threads(threads) == bulk


# The private attributes of kombu's channel.


def test_what_stands_for_kombus_own_asks_for_the_first_priority_only(fleet: Fleet) -> None:
    app = create_app(load_settings(redis_url=fleet.url))
    taken: list[str] = []
    connection: Connection = app.connection_for_read()
    try:
        # Given a bulk message, and a consumer of both queues that can take no such
        app.send_task("whisper.transcribe", [[{"audio": "bulk.wav"}]], queue="transcribe", priority=PRIORITY_BULK)
        channel: Channel = connection.default_channel
        channel._brpop_start = lambda timeout=None: ask_for_interactive(channel)
        queues = list(app.conf.task_queues)
        with Consumer(channel, queues, on_message=lambda one: taken.append(str(one.payload)), accept=["json"]):
            # When interactive ones come
            for number in range(3):
                app.send_task("whisper.translate", [[{"audio": f"{number}.wav"}]], queue="translate")
            while len(taken) < 3:
                connection.drain_events(timeout=30)
            # Then these are taken, and it stays
            with pytest.raises(TimeoutError):
                connection.drain_events(timeout=1)
        assert [re.findall(r"\w+\.wav", one) for one in taken] == [["0.wav"], ["1.wav"], ["2.wav"]]
        assert fleet.redis.llen(BULK_LIST) == 1
    finally:
        connection.close()
        app.close()


# Whole workers.


@pytest.fixture(scope="module")
def stuck(tmp_path_factory: pytest.TempPathFactory, samples: Path) -> Iterator[tuple[Fleet, Celery]]:
    """Two workers of three threads whose engines answer nothing, behind a backlog of nine bulk messages."""
    environment = {
        "WHISPER_ENGINE": "standin",
        "WHISPER_CONCURRENCY": "3",
        "WHISPER_STANDIN_STEPS": "1000000",
        "WHISPER_DRAIN_SECONDS": "0",
    }
    with Fleet(tmp_path_factory.mktemp("stuck"), environment) as fleet:
        fleet.start_worker(wait=False)
        fleet.start_worker(wait=False)
        fleet.wait_for_workers(2)
        app = create_app(load_settings(redis_url=fleet.url))
        for number in range(9):
            row = {"audio": str(samples / "en_train.flac"), "row": number}
            app.send_task("whisper.transcribe", [[row]], {"job": "bulk"}, queue="transcribe", priority=PRIORITY_BULK)
        yield fleet, app
        app.close()


def call(app: Celery, audio: str) -> str:
    """The error of a call that needs no engine."""
    answer = app.send_task(
        "whisper.transcribe", [[{"audio": audio}]], queue="transcribe", priority=PRIORITY_INTERACTIVE
    )
    try:
        return str(answer.get(timeout=ANSWER_SECONDS, propagate=False))
    except CeleryTimeoutError:
        return "no answer"


def test_who_asks_for_nothing_stays_connected_and_takes_nothing(fleet: Fleet) -> None:
    """Redis closes connections that are idle for its ``timeout``, but none that waits for a list."""
    app = create_app(load_settings(redis_url=fleet.url))
    taken: list[str] = []
    connection: Connection = app.connection_for_read()
    fleet.redis.config_set("timeout", 1)
    try:
        app.send_task("whisper.transcribe", [[{"audio": "call.wav"}]], queue="transcribe")
        channel: Channel = connection.default_channel
        channel._brpop_start = lambda timeout=None: ask_for_nothing(channel)
        queues = list(app.conf.task_queues)
        with Consumer(channel, queues, on_message=lambda one: taken.append(str(one.payload)), accept=["json"]):
            began = time.monotonic()
            while time.monotonic() - began < 4:  # Redis looks at them in turn, each once a second
                with contextlib.suppress(TimeoutError):
                    connection.drain_events(timeout=0.5)
        assert not taken
        assert fleet.redis.llen("transcribe") == 1
    finally:
        fleet.redis.config_set("timeout", 0)
        fleet.redis.delete("transcribe")
        connection.close()
        app.close()


def test_a_backlog_leaves_each_worker_a_thread(stuck: tuple[Fleet, Celery]) -> None:
    fleet, app = stuck
    # Given two workers that have all the bulk messages that they take
    wait_for(lambda: fleet.redis.hlen(keys.UNACKED) == 4)
    assert [worker.threads for worker in live_workers(fleet.redis)] == [2, 2]
    # When calls come, one after another
    for number in range(4):
        # Then each is answered, though no bulk message ends
        assert "file_not_found" in call(app, f"/nowhere/{number}.wav")
    # And meanwhile no more of those were taken (a call is answered before it is acknowledged)
    wait_for(lambda: fleet.redis.hlen(keys.UNACKED) == 4)
    assert fleet.redis.llen(BULK_LIST) == 5


def test_a_call_takes_no_bulk_messages_place_whatever_its_priority_in_the_first_queue(
    fleet: Fleet, samples: Path
) -> None:
    # Given a worker of three threads whose engine answers nothing, with a call that its sender gave a priority of 3
    fleet.start_worker(WHISPER_CONCURRENCY="3", WHISPER_STANDIN_STEPS="1000000", WHISPER_DRAIN_SECONDS="0")
    app = create_app(load_settings(redis_url=fleet.url))
    try:
        row = {"audio": str(samples / "en_train.flac"), "row": 0}
        app.send_task("whisper.transcribe", [[row]], queue="transcribe", priority=3)
        wait_for(lambda: fleet.redis.hlen(keys.UNACKED) == 1)
        # When a backlog of bulk messages comes
        for _ in range(4):
            app.send_task("whisper.transcribe", [[row]], {"job": "bulk"}, queue="transcribe", priority=PRIORITY_BULK)
        # Then it takes as many of those as without the call
        wait_for(lambda: fleet.redis.hlen(keys.UNACKED) == 3)
        assert fleet.redis.llen(BULK_LIST) == 2
    finally:
        app.close()


def test_a_thread_takes_bulk_messages_again_after_one_ended(fleet: Fleet, samples: Path) -> None:
    # Given a worker with a backlog, whose engine answers
    fleet.start_worker(WHISPER_CONCURRENCY="3", WHISPER_STANDIN_STEP_MS="40")
    app = create_app(load_settings(redis_url=fleet.url))
    try:
        audio = str(samples / "en_train.flac")
        jobs = [
            app.send_task(
                "whisper.transcribe",
                [[{"audio": audio, "row": number}]],
                {"job": "bulk"},
                queue="transcribe",
                priority=PRIORITY_BULK,
            )
            for number in range(60)
        ]
        wait_for(lambda: fleet.redis.llen(BULK_LIST) < 58)
        # When a call comes
        answer = app.send_task("whisper.transcribe", [[{"audio": audio}]], queue="transcribe")
        (transcript,) = answer.get(timeout=ANSWER_SECONDS)
        # Then it is answered while there is a backlog, and that goes on to its end
        assert transcript["text"].startswith("stand-in ")
        for job in jobs:
            assert job.get(timeout=ANSWER_SECONDS)["rows"] == 1
        ended = re.findall(r"Task whisper\.transcribe\[([^]]+)\] succeeded", fleet.log_path().read_text())
        assert answer.id in ended[:-1]
    finally:
        app.close()

"""No password, signature or prompt leaves a worker by its log, its events or what it answers to `inspect`."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from celery import Celery
from celery.exceptions import TimeoutError as NoAnswerError
from celery.worker.consumer import consumer

from celery_events import events_heard
from fleet import READY_SECONDS, clean_environment, listeners, wait_for
from producer.embedded import Valkey, end, start_guarded, worker_command
from workers.app import create_app
from workers.discretion import Discreet, guard
from workers.errors import TranscriptionError
from workers.presence import live_workers
from workers.redis_client import connect
from workers.settings import load_settings

SIGNATURE, PROMPT = "X-Signature=5ecret5ecret", "Ada of the secret project"
RECORD = {"audio": f"http://127.0.0.1:9/call.wav?{SIGNATURE}", "prompt": PROMPT}


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Celery]:
    """A client of a worker on a private Valkey's socket: the URL whose password Celery itself shows."""
    with Valkey(tmp_path / "valkey") as valkey:
        environment = clean_environment(REDIS_URL=valkey.url, WHISPER_ENGINE="standin")
        process = start_guarded(worker_command("w@%h", "-l", "DEBUG"), environment, tmp_path / "worker.log")

        def ready() -> bool:
            assert process.poll() is None, (tmp_path / "worker.log").read_text()[-3000:]
            redis = connect(valkey.url)
            return bool(live_workers(redis)) and listeners(redis) > 0

        try:
            wait_for(ready, READY_SECONDS)
            with create_app(load_settings(REDIS_URL=valkey.url)) as made:
                yield made
        finally:
            end(process, 20.0)


def test_a_worker_keeps_what_it_is_told_to_itself(app: Celery, tmp_path: Path) -> None:
    password = urlsplit(app.conf.broker_url).password
    assert password
    log = tmp_path / "worker.log"
    with events_heard(app) as events:
        # Given a call that fails, with secrets in its argument and in the summary that its sender made
        call = app.send_task("whisper.transcribe", [[RECORD]], queue="transcribe", argsrepr=json.dumps(RECORD))
        with pytest.raises((TranscriptionError, Exception)) as failed:
            call.get(timeout=120)
        assert not isinstance(failed.value, NoAnswerError)
        # And messages that Celery discards with all that is in them
        app.send_task("whisper.nothing", [[RECORD]], queue="transcribe", argsrepr=json.dumps(RECORD))
        connect(app.conf.broker_url).lpush("transcribe", _not_celerys(json.dumps(RECORD)))
        wait_for(lambda: log.read_text().count("message discarded: ") == 2)
        wait_for(lambda: {"task-received", "task-failed"} <= {event["type"] for event in events})

    inspect = app.control.inspect(timeout=60, limit=1)
    told = {name: repr(getattr(inspect, name)()) for name in ("stats", "conf", "report", "active", "reserved")}
    told |= {"log": log.read_text(), "events": repr(events), "error": str(failed.value)}
    assert "redis+socket://" in told["stats"]
    for name, text in told.items():
        assert password not in text, name
        assert SIGNATURE not in text, name
        assert PROMPT not in text, name


def _not_celerys(body: str) -> str:
    return json.dumps(
        {
            "body": body,
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "headers": {},
            "properties": {"delivery_info": {"exchange": "", "routing_key": "transcribe"}, "delivery_tag": "a-tag"},
        }
    )


@pytest.fixture
def logged(tmp_path: Path) -> Iterator[tuple[logging.Logger, Path]]:
    """Celery's logger of the consumer, guarded, and the file that it writes."""
    path = tmp_path / "log"
    logger = logging.getLogger("celery.worker.consumer.consumer")
    handler = logging.FileHandler(path)
    logger.addHandler(handler)
    guard(logger)
    yield logger, path
    logger.removeHandler(handler)
    handler.close()


def test_discarded_messages_are_named_and_not_shown(logged: tuple[logging.Logger, Path]) -> None:
    logger, path = logged
    logger.error(consumer.UNKNOWN_TASK_ERROR, KeyError("some.task"), RECORD, {"argsrepr": PROMPT}, {})
    logger.warning(consumer.UNKNOWN_FORMAT, RECORD)
    logger.error(consumer.INVALID_TASK_ERROR, ValueError("no list"), RECORD)
    logger.critical(consumer.MESSAGE_DECODE_ERROR, ValueError(PROMPT), "a", "b", PROMPT, RECORD)

    assert path.read_text().splitlines() == [
        "message discarded: there is no task 'some.task' here",
        "message discarded: it is no message of Celery's",
        "message discarded: no list",
        "message discarded: its body cannot be read (ValueError)",
    ]


def test_urls_in_lines_and_tracebacks_lose_their_secrets(logged: tuple[logging.Logger, Path]) -> None:
    logger, path = logged
    try:
        raise ValueError("redis://user:pass@h:1/0")
    except ValueError:
        logger.exception("reading %s", RECORD["audio"])

    text = path.read_text()
    assert "reading http://127.0.0.1:9/call.wav?..." in text
    assert "ValueError: redis://h:1/0" in text
    assert "pass" not in text
    assert SIGNATURE not in text


def test_a_record_that_cannot_be_formatted_is_left_to_its_handler() -> None:
    record = logging.makeLogRecord({"msg": "%d per cent", "args": ("ten",)})

    assert Discreet().filter(record)
    assert (record.msg, record.args) == ("%d per cent", ("ten",))


def test_a_logger_is_guarded_once() -> None:
    logger = logging.Logger("twice")
    logger.addHandler(logging.NullHandler())
    guard(logger)
    guard(logger)

    assert [type(one) for one in logger.handlers[0].filters] == [Discreet]

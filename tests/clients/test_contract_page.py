"""contract.md says what is so: its message works when it is pushed by hand, and its tables leave nothing out."""

from __future__ import annotations

import ast
import base64
import json
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet import Fleet, wait_for
from workers import contract, messages
from workers.app import PRIORITY_BULK, PRIORITY_INTERACTIVE, create_app
from workers.messages import TASK_NAMES, VERSION, Message, Options, Record, Transcript
from workers.settings import load_settings

WORKERS = Path(contract.__file__).parent
PAGE = (WORKERS / "contract.md").read_text(encoding="utf-8")
BLOCKS = [json.loads(block) for block in re.findall(r"^```json\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)]


def rows() -> set[str]:
    """What the first column of any table names."""
    names = re.findall(r"^\| ([^|]*) \|", PAGE, re.MULTILINE)
    return {name for cell in names for name in re.findall(r"`([^`]+)`", cell)}


def test_message_of_the_page_is_answered(standin_fleet: Fleet, samples: Path) -> None:
    # Given the page's message, with a recording that is there, and ids of its own
    message, _ = BLOCKS
    arguments = json.loads(base64.b64decode(message["body"]))
    assert f"`{json.dumps(arguments)}`" in PAGE
    arguments[0][0][0]["audio"] = str(samples / "en_train.flac")
    message["body"] = base64.b64encode(json.dumps(arguments).encode()).decode()
    task_id = message["headers"]["id"] = message["properties"]["correlation_id"] = str(uuid.uuid4())
    message["properties"]["delivery_tag"] = str(uuid.uuid4())
    redis = standin_fleet.redis

    # When it is pushed to its list, without Celery
    redis.lpush("transcribe", json.dumps(message))

    # Then the result is where the page says
    key = f"celery-task-meta-{task_id}"
    end = json.loads(wait_for(lambda: redis.get(key)))
    assert end["status"] == "SUCCESS"
    (transcript,) = end["result"]
    assert transcript["text"].startswith("stand-in ")
    assert transcript["segments"]
    assert 0 < redis.ttl(key) <= 86_400


def test_failure_of_the_page_is_what_is_in_redis(standin_fleet: Fleet) -> None:
    _, shown = BLOCKS
    with create_app(load_settings(redis_url=standin_fleet.url)) as app:
        call = app.send_task("whisper.transcribe", [[{"audio": "/none.wav"}]], queue="transcribe")
        wait_for(call.ready)

    end = json.loads(standin_fleet.redis.get(f"celery-task-meta-{call.id}"))

    type, message = end["result"]["exc_message"]
    shown["result"]["exc_message"] = [type, message]
    assert {name: end[name] for name in shown} == shown
    assert type == "file_not_found"


@pytest.mark.parametrize("model", [Record, Options, Transcript])
def test_every_field_is_on_the_page(model: type[Message]) -> None:
    assert set(model.model_fields) <= rows()


def test_tasks_queues_and_version_are_on_the_page() -> None:
    assert PAGE.startswith(f"# The messages of whisper-fleet, version {VERSION}\n")
    assert {*TASK_NAMES.values(), *TASK_NAMES} <= rows()
    transport = create_app(load_settings()).conf.broker_transport_options
    shown = {name: transport[name] for name in ("sep", "priority_steps")}
    assert f"broker_transport_options = {json.dumps(shown)}" in PAGE
    assert shown["priority_steps"] == [PRIORITY_INTERACTIVE, PRIORITY_BULK]
    assert {f"{task}:{PRIORITY_BULK}" for task in TASK_NAMES} <= rows()


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        (messages.MAX_RECORDS, "a list of 1 to {} records"),
        (messages.MAX_SOURCE_CHARACTERS, "or a URL (at most {} characters)"),
        (messages.MAX_SOURCES, "a list of 1 to {} of them"),
        (messages.MAX_PROMPT_CHARACTERS, "at most {:,} characters; default"),
        (messages.MAX_SOURCES_CHARACTERS, "at most {:,} characters, and with"),
        (messages.MAX_RECORDS_CHARACTERS, "those of a call at most {:,};"),
        (messages.MAX_MESSAGE_BYTES >> 20, "body has at most {} MiB"),
    ],
)
def test_limits_are_on_the_page(limit: int, said: str) -> None:
    assert said.format(limit) in PAGE


def error_types() -> Iterator[str]:
    """The types of all errors that the workers' source makes."""
    for path in WORKERS.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name: Any = getattr(node.func, "id", "")
            named = [keyword.value for keyword in node.keywords if keyword.arg == "type"]
            first = node.args[:1] if name in ("TranscriptionError", "TransientError", "kind", "_error") else []
            for value in first or (named if name == "Failure" else []):
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield value.value


def test_reasons_in_the_readme_are_types_of_errors() -> None:
    """A reason that no row can have would leave out what it was meant for, without an error."""
    named = re.findall(r"--reason (\w+)", (WORKERS.parent / "README.md").read_text(encoding="utf-8"))
    assert named
    assert set(named) <= rows()


def test_every_type_of_error_is_on_the_page() -> None:
    types = set(error_types())
    assert {"file_not_found", "quarantined", "decode_crashed", "too_large_to_decode"} <= types
    assert types <= rows()

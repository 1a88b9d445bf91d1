"""Node's celery-node, which nobody here wrote, enqueues records and reads what became of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from fleet import Fleet
from node import Node
from workers import contract

EXAMPLE = Path(contract.__file__).parent.parent / "producer" / "examples" / "node_client.js"
#: Sends what is in its argument, and prints the task's id and what celery-node makes of its end.
SCRIPT = """
const celery = require("celery-node");
const { protocol, queue, args, kwargs } = JSON.parse(process.argv[1]);
const client = celery.createClient(process.env.REDIS_URL, process.env.REDIS_URL, queue);
client.conf.TASK_PROTOCOL = protocol;
const call = client.createTask(`whisper.${queue}`).applyAsync(args, kwargs);
call.get(120000, 50)
  .then((result) => console.log(JSON.stringify({ id: call.taskId, result })))
  .catch((error) => console.log(JSON.stringify({ id: call.taskId, status: error.message, error })))
  .finally(() => client.disconnect());
"""


def valid(kind: str, value: Any) -> bool:
    document = contract.load()
    return Draft202012Validator({**document, "$ref": f"#/$defs/{kind}"}).is_valid(value)


def sent(fleet: Fleet, node: Node, queue: str, args: list[Any], kwargs: dict[str, Any], protocol: int = 2) -> Any:
    """What celery-node made of the end of a task, and beside it, under ``meta``, what is in Redis of it."""
    call = json.dumps({"protocol": protocol, "queue": queue, "args": args, "kwargs": kwargs})
    done = node.run("-e", SCRIPT, call, environment=fleet.environment())
    assert done.returncode == 0, done.stderr
    end = json.loads(done.stdout)
    end["meta"] = json.loads(fleet.redis.get(f"celery-task-meta-{end['id']}"))
    return end


def test_example_transcribes(standin_fleet: Fleet, node: Node, samples: Path) -> None:
    done = node.run(str(EXAMPLE), str(samples / "en_train.flac"), "en", environment=standin_fleet.environment())

    assert done.returncode == 0, done.stderr
    *segments, text = done.stdout.splitlines()
    assert text.startswith("stand-in ")
    assert len(segments) >= 1
    start, end, _ = segments[0].split(" ", 2)
    assert 0 <= float(start) < float(end)


def test_example_says_why_there_is_no_text(standin_fleet: Fleet, node: Node, tmp_path: Path) -> None:
    done = node.run(str(EXAMPLE), str(tmp_path / "none.wav"), environment=standin_fleet.environment())

    assert done.returncode == 1
    assert done.stderr.startswith("file_not_found: ")
    assert "none.wav" in done.stderr


def test_example_without_arguments_says_its_usage(node: Node, standin_fleet: Fleet) -> None:
    done = node.run(str(EXAMPLE), environment=standin_fleet.environment())

    assert done.returncode == 2
    assert done.stderr.startswith("usage: node node_client.js FILE_OR_URL")


@pytest.mark.parametrize("protocol", [1, 2])
def test_answers_are_as_the_schema_says(
    standin_fleet: Fleet, node: Node, samples: Path, tmp_path: Path, protocol: int
) -> None:
    # Given three records: one recording, one that is not there, and two recordings of which one is not there
    good, bad = str(samples / "en_train.flac"), str(tmp_path / "none.wav")
    records = [{"audio": good}, {"audio": bad}, {"audio": [good, bad]}]
    assert valid("Call", {"records": records, "options": {"timestamps": True}})

    end = sent(standin_fleet, node, "translate", [records], {"options": {"timestamps": True}}, protocol)

    assert valid("Answer", end["result"])
    first, second, (third, fourth) = end["result"]
    assert first["text"].startswith("stand-in ")
    assert first["segments"] == third["segments"]
    assert second["error"]["type"] == fourth["error"]["type"] == "file_not_found"
    assert end["meta"]["status"] == "SUCCESS"
    assert end["meta"]["result"] == end["result"]


@pytest.mark.parametrize(
    ("args", "kwargs", "type", "said"),
    [
        ([[{"audio": "/none.wav"}], {}], {}, "file_not_found", "/none.wav"),
        ([[]], {}, "bad_argument", "records must be a list of at least one record"),
        ([[{"audio": "a", "lang": "de"}]], {}, "bad_argument", "record 0: unknown field 'lang'"),
        ([], {"records": [{"audio": "a"}], "options": {"beam": 5}}, "bad_argument", "options: unknown field 'beam'"),
    ],
)
def test_failures_are_as_the_schema_says(
    standin_fleet: Fleet, node: Node, args: list[Any], kwargs: dict[str, Any], type: str, said: str
) -> None:
    end = sent(standin_fleet, node, "transcribe", args, kwargs)

    assert end["status"] == end["meta"]["status"] == "FAILURE"
    assert end["error"]["exc_message"][0] == type
    assert said in end["error"]["exc_message"][1]
    assert valid("TaskError", end["meta"]["result"])

"""The message contract as a JSON Schema (2020-12), made of the models that both sides validate with.

``contract.schema.json`` beside this file is `schema`, written down for clients in other languages; after a change to
the models ``python -m workers.contract`` writes it anew. contract.md explains it to people.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from workers.messages import (
    MAX_RECORDS,
    MAX_RECORDS_CHARACTERS,
    MAX_SOURCES_CHARACTERS,
    VERSION,
    Failure,
    Message,
    Options,
    Record,
    RowResult,
    Transcript,
)

SCHEMA_PATH = Path(__file__).with_name("contract.schema.json")
DIALECT = "https://json-schema.org/draft/2020-12/schema"
DESCRIPTION = (
    "Task arguments by name (Call), the result of a task that succeeded (Answer) and of one that failed (TaskError). "
    "In force beyond what a schema can say: end_s is greater than start_s; all paths and URLs of a record have at most "
    f"{MAX_SOURCES_CHARACTERS} characters, with the prompts all of a call have at most {MAX_RECORDS_CHARACTERS}; texts "
    "are valid Unicode. Readers of results pass over fields that they do not know."
)


class Call(Message):
    """What a client sends: kwargs with these names, or args in this order."""

    records: list[Record] = Field(min_length=1, max_length=MAX_RECORDS)
    options: Options | None = None


class FailedRecording(Message):
    """One of several recordings (or channels) that failed, while others may have their transcripts."""

    error: Failure


class Channels(Message):
    """A recording of several channels, each transcribed on its own: one entry a channel."""

    channels: list[Transcript | FailedRecording] = Field(min_length=2)


Recording = Transcript | FailedRecording | Channels
#: One entry a record, in order: what became of its recording, or a list of that where ``audio`` was a list.
Answer = list[Recording | list[Recording]]


class TaskError(Message):
    """The result of a task that failed because of what was asked for, or of what is in the file."""

    exc_type: Literal["TranscriptionError"]
    exc_message: Annotated[list[str], Field(min_length=2, max_length=2, description="Type and message of the error.")]
    exc_module: Literal["workers.errors"]


def schema() -> dict[str, Any]:
    """The contract as one document: ``Call`` and, by name in ``$defs``, everything else."""
    sent, answered = TypeAdapter(Call), TypeAdapter(Answer)
    inputs: list[tuple[str, JsonSchemaMode, TypeAdapter[Any]]] = [("Call", "validation", sent)]
    outputs: list[tuple[str, JsonSchemaMode, TypeAdapter[Any]]] = [
        ("Answer", "serialization", answered),
        ("TaskError", "serialization", TypeAdapter(TaskError)),
        ("RowResult", "serialization", TypeAdapter(RowResult)),
    ]
    _, read = TypeAdapter.json_schemas(inputs, ref_template="#/$defs/{model}")
    written_refs, written = TypeAdapter.json_schemas(outputs, ref_template="#/$defs/{model}")
    definitions = {**_open(written["$defs"]), **read["$defs"]}
    definitions["Answer"] = written_refs[("Answer", "serialization")]
    return {
        "$schema": DIALECT,
        "$id": f"urn:whisper-fleet:messages:{VERSION}",
        "title": f"Messages of whisper-fleet, version {VERSION}",
        "description": DESCRIPTION,
        "$ref": "#/$defs/Call",
        "$defs": {name: _untitled(definitions[name]) for name in sorted(definitions)},
    }


def _open(definitions: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Results may get more fields within a version: who reads them must not refuse those."""
    return {
        name: {key: value for key, value in one.items() if key != "additionalProperties"}
        for name, one in definitions.items()
    }


def _untitled(node: Any) -> Any:
    """Without the titles that pydantic makes of names: they say nothing more."""
    if isinstance(node, list):
        return [_untitled(one) for one in node]
    if not isinstance(node, dict):
        return node
    return {key: _untitled(value) for key, value in node.items() if key != "title" or not isinstance(value, str)}


def load() -> dict[str, Any]:
    """The committed schema."""
    document: dict[str, Any] = json.loads(SCHEMA_PATH.read_text(encoding="utf-8"))
    return document


def write(path: Path = SCHEMA_PATH) -> None:
    """Write the schema down."""
    path.write_text(json.dumps(schema(), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()

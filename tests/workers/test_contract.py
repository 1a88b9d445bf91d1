"""The committed JSON Schema says what the models do, to the word and for any input."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from workers import contract
from workers.contract import Call
from workers.errors import TranscriptionError
from workers.messages import Options, Record, parse_options, parse_records

CALL = Draft202012Validator(contract.load())
#: What is in force beyond what a schema can say.
BEYOND = ("end_s must be greater than start_s", "characters in all paths", "characters in one task", "newer_version")

numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
#: What another JSON type, or a lax reader, would let pass first.
tricky = st.sampled_from([None, True, False, "1", "1.5", "yes", "", 0, -1, 1.0, 2.5, [], {}])
junk = tricky | numbers | st.text(max_size=9) | st.lists(numbers, max_size=2)
times = st.floats(0, 100, allow_nan=False) | st.integers(0, 100)
texts = st.none() | st.text(max_size=9)
RECORD_FIELDS = {
    "audio": st.text(min_size=1, max_size=9) | st.lists(st.text(max_size=3), min_size=1, max_size=3),
    "row": st.integers(0, 9),
    "language": texts,
    "prompt": texts,
    "start_s": times,
    "end_s": times,
    "attempt": st.integers(1, 5),
    "span_of": st.integers(0, 5),
}
OPTION_FIELDS = {
    "language": st.text(max_size=9),
    "prompt": texts,
    "timestamps": st.booleans(),
    "channels": st.sampled_from(["mix", "split"]),
    "model": texts,
    "version": st.sampled_from([1, 1, 1, 1, 0, 2]),
}


def mostly(values: st.SearchStrategy[Any], otherwise: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.sampled_from([values] * 11 + [otherwise]).flatmap(lambda chosen: chosen)


def objects(fields: dict[str, st.SearchStrategy[Any]], *required: str) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with some of ``fields``, mostly with values that fit, and now and then with an unknown one."""
    mixed = {name: mostly(values, junk) for name, values in fields.items()}
    needed = {name: mixed.pop(name) for name in required}
    known = st.fixed_dictionaries(needed, optional=mixed)
    return mostly(known, known.map(lambda one: {**one, "unknown": 1}))


records = mostly(st.lists(mostly(objects(RECORD_FIELDS, "audio"), junk | objects(RECORD_FIELDS)), max_size=3), junk)
options = mostly(st.none() | objects(OPTION_FIELDS), junk)


def refusal(records: Any, options: Any) -> str | None:
    """Why the models refuse a call, None where they accept it."""
    try:
        parse_records(records)
        parse_options(options)
    except TranscriptionError as error:
        return str(error)
    return None


def test_committed_schema_is_what_the_models_generate() -> None:
    assert contract.load() == contract.schema(), "write it anew: python -m workers.contract"


def test_schema_is_one_and_knows_every_field() -> None:
    document = contract.load()
    Draft202012Validator.check_schema(document)
    assert document["$schema"] == contract.DIALECT

    assert set(document["$defs"]["Record"]["properties"]) == set(Record.model_fields) == set(RECORD_FIELDS)
    assert set(document["$defs"]["Options"]["properties"]) == set(Options.model_fields) == set(OPTION_FIELDS)
    assert set(document["$defs"]["Call"]["properties"]) == set(Call.model_fields)


@settings(max_examples=500)
@given(records=records, options=options)
def test_schema_and_models_accept_and_refuse_the_same(records: Any, options: Any) -> None:
    # As it comes out of a message
    records, options = json.loads(json.dumps([records, options]))

    why = refusal(records, options)

    if CALL.is_valid({"records": records, "options": options}):
        event("accepted" if why is None else "refused beyond the schema")
        assert why is None or any(rule in why for rule in BEYOND), why
    else:
        event("refused")
        assert why is not None
        assert "\n" not in why


@pytest.mark.parametrize("over", [0, 1])
@pytest.mark.parametrize(
    ("limit", "call"),
    [
        (8192, lambda size: ([{"audio": "a" * size}], None)),
        (8192, lambda size: ([{"audio": ["", "ä" * size]}], None)),
        (4096, lambda size: ([{"audio": ["a"] * size}], None)),
        (1000, lambda size: ([{"audio": "a"}] * size, None)),
        (1000, lambda size: ([{"audio": "a", "language": "a" * size}], None)),
        (10_000, lambda size: ([{"audio": "a", "prompt": "🎧" * size}], None)),
        (10_000, lambda size: ([{"audio": "a"}], {"prompt": "a" * size})),
        (1000, lambda size: ([{"audio": "a"}], {"language": "a" * size})),
        (1000, lambda size: ([{"audio": "a"}], {"model": "a" * size})),
    ],
)
def test_schema_and_models_have_the_same_limits(limit: int, call: Any, over: int) -> None:
    records, options = call(limit + over)

    assert (refusal(records, options) is None) is not bool(over)
    assert CALL.is_valid({"records": records, "options": options}) is not bool(over)


@pytest.mark.parametrize(
    ("records", "options", "said"),
    [
        ([{"audio": "a", "start_s": "1.5"}], None, "record 0: start_s: Input should be a valid number"),
        ([{"audio": "a"}, {"audio": "b", "row": True}], None, "record 1: row: Input should be a valid integer"),
        ([["a"]], None, "record 0: must be an object"),
        ([{"audio": "a"}], ["en"], "options: must be an object"),
        ([{"audio": "a"}], {"timestamps": "yes"}, "options: timestamps: Input should be a valid boolean"),
        ([{"audio": "a"}], {"version": 0}, "options: version: Input should be greater than or equal to 1"),
    ],
)
def test_wrong_type_is_named_by_record_and_field(records: Any, options: Any, said: str) -> None:
    assert refusal(records, options) == f"bad_argument: {said}"
    assert not CALL.is_valid({"records": records, "options": options})


def test_json_has_one_kind_of_number() -> None:
    (record,) = parse_records(json.loads('[{"audio": "a", "row": 3.0, "attempt": 1.0, "start_s": 2}]'))

    assert (record.row, record.attempt, record.start_s) == (3, 1, 2.0)
    assert parse_options({"version": 1.0}).version == 1


def test_readers_of_results_pass_over_new_fields() -> None:
    definitions = contract.load()["$defs"]
    assert all(definitions[name]["additionalProperties"] is False for name in ("Call", "Record", "Options"))
    for name in ("Transcript", "Failure", "FailedRecording", "Channels", "RowResult", "TaskError", "Segment"):
        assert "additionalProperties" not in definitions[name], name

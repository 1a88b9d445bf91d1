"""The message format: what is accepted, what is refused and how, and that JSON gives everything back."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from workers.errors import TranscriptionError, TransientError
from workers.messages import (
    TASK_NAMES,
    TASKS,
    ChannelTranscripts,
    Failure,
    Item,
    Options,
    Record,
    RowResult,
    Segment,
    Transcript,
    failures_of,
    parse_options,
    parse_records,
)

numbers = st.floats(allow_nan=False, allow_infinity=False)
segments = st.builds(Segment, start=numbers, end=numbers, text=st.text())
transcripts = st.builds(
    Transcript,
    text=st.text(),
    segments=st.none() | st.lists(segments, max_size=3),
    language=st.none() | st.text(max_size=5),
    duration=numbers,
    avg_logprob=st.none() | numbers,
    flags=st.lists(st.text(), max_size=2),
    attempts=st.integers(1, 9),
)
failures = st.builds(Failure, type=st.text(), message=st.text())
split = st.builds(ChannelTranscripts, channels=st.lists(transcripts | failures, min_size=2, max_size=3))


def problem(records: object) -> str:
    with pytest.raises(TranscriptionError) as caught:
        parse_records(records)
    assert caught.value.type == "bad_argument"
    assert not isinstance(caught.value, TransientError), "another try would not help"
    return caught.value.message


def test_tasks_are_named_after_their_queues() -> None:
    assert {name.removeprefix("whisper.") for name in TASK_NAMES.values()} == set(TASKS) == {"transcribe", "translate"}


def test_record_with_nothing_but_audio() -> None:
    (record,) = parse_records([{"audio": "a.wav"}])

    assert record == Record(audio="a.wav", row=None, language=None, prompt=None, start_s=None, end_s=None, attempt=1)
    assert record.sources == ["a.wav"]


def test_record_with_everything() -> None:
    plain = {"audio": ["a", "b"], "row": 3, "language": "de", "prompt": "Ada", "start_s": 1, "end_s": 2.5}
    plain |= {"attempt": 2, "span_of": 1}

    (record,) = parse_records([plain])

    assert record.sources == ["a", "b"]
    assert record.model_dump() == plain


@pytest.mark.parametrize("records", [None, [], {}, "a.wav", {"audio": "a.wav"}])
def test_anything_but_a_list_of_records_is_refused(records: object) -> None:
    assert problem(records) == "records must be a list of at least one record"


@pytest.mark.parametrize(
    ("record", "names"),
    [
        ({}, "audio"),
        ({"audio": ""}, "audio"),
        ({"audio": []}, "audio"),
        ({"audio": None}, "audio"),
        ({"audio": "a", "row": -1}, "row"),
        ({"audio": "a", "start_s": -0.1}, "start_s"),
        ({"audio": "a", "start_s": float("nan")}, "start_s"),
        ({"audio": "a", "end_s": 0}, "end_s"),
        ({"audio": "a", "start_s": 2, "end_s": 2}, "end_s must be greater than start_s"),
        ({"audio": "a", "attempt": 0}, "attempt"),
        ({"audio": "a", "langauge": "de"}, "unknown field 'langauge'"),
        ("a.wav", "record 1"),
        ({"audio": "a", "start_s": float("inf")}, "start_s: Input should be a finite number"),
        ({"audio": "a", "end_s": float("inf")}, "end_s: Input should be a finite number"),
        ({"audio": "a" * 8193}, "audio: 8193 characters in path or URL 1, the limit is 8192"),
        ({"audio": ["a", "", "a" * 9000]}, "audio: 9000 characters in path or URL 3, the limit is 8192"),
        ({"audio": ["a"] * 4097}, "audio: 4097 recordings, the limit is 4096"),
        ({"audio": ["a" * 8000] * 66}, "audio: 528000 characters in all paths and URLs, the limit is 524288"),
        ({"audio": "a", "prompt": "a" * 10_001}, "prompt: String should have at most 10000 characters"),
        ({"audio": "a", "language": "a" * 1001}, "language: String should have at most 1000 characters"),
        ({"audio": "a", "x" * 5000: 1}, f"unknown field '{'x' * 100}'"),
    ],
)
def test_wrong_record_is_refused_by_number_and_field(record: object, names: str) -> None:
    message = problem([{"audio": "good.wav"}, record])

    assert message.startswith("record 1: ")
    assert names in message
    assert "\n" not in message


def test_limits_themselves_are_allowed() -> None:
    parse_records([{"audio": "a" * 8192, "prompt": "a" * 10_000}, {"audio": ["a"] * 4096}] + [{"audio": "a"}] * 998)


def test_task_with_too_many_records_is_refused() -> None:
    assert problem([{"audio": "a"}] * 1001) == "1001 records in one task, the limit is 1000: send several tasks"


def test_task_with_too_much_in_its_records_is_refused() -> None:
    records = [{"audio": "a", "prompt": "b" * 9_999}] * 420
    assert problem(records) == "records with 4200000 characters in one task, the limit is 4194304: send several tasks"


@pytest.mark.parametrize("options", [{"prompt": "a" * 10_001}, {"model": "a" * 1001}, {"language": "a" * 1001}])
def test_options_have_limits(options: dict[str, str]) -> None:
    with pytest.raises(TranscriptionError, match=rf"^bad_argument: options: {next(iter(options))}: .* at most 1000"):
        parse_options(options)


@pytest.mark.parametrize(
    "result",
    [{"row": 1}, {"row": -1, "items": []}, {"row": 1, "items": [], "x": 1}, {"row": 1, "items": [{"txt": ""}]}],
)
def test_result_that_is_none_is_refused(result: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        RowResult.model_validate(result)


def test_options_default_to_detection_without_timestamps() -> None:
    wanted = Options(language="auto", prompt=None, timestamps=False, channels="mix", model=None)
    assert parse_options(None) == parse_options({}) == wanted


@pytest.mark.parametrize("options", [{"word_timestamps": True}, {"diarize": True}])
def test_what_the_system_does_not_do_is_refused_by_name(options: dict[str, object]) -> None:
    with pytest.raises(TranscriptionError, match=rf"^bad_argument: options: unknown field '{next(iter(options))}'$"):
        parse_options(options)


def test_messages_do_not_change_on_their_way() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Record(audio="a").audio = "b"  # type: ignore[misc]


@given(row=st.integers(0, 2**63), items=st.lists(transcripts | failures | split, max_size=3))
def test_row_results_survive_json(row: int, items: list[Item]) -> None:
    result = RowResult(row=row, items=items)

    assert RowResult.model_validate_json(result.model_dump_json()) == result


@given(audio=st.text(min_size=1) | st.lists(st.text(), min_size=1, max_size=3), row=st.none() | st.integers(0))
def test_records_survive_celerys_json(audio: str | list[str], row: int | None) -> None:
    record = Record(audio=audio, row=row)

    assert parse_records(json.loads(json.dumps([record.model_dump(exclude_defaults=True)]))) == [record]


def test_failure_says_what_the_error_said() -> None:
    error = TransientError("unreachable", "no route to a.example")

    assert Failure.of(error).model_dump() == error.as_dict() == {"type": "unreachable", "message": error.message}


def test_failures_of_a_recording_are_its_own_or_its_channels() -> None:
    good, bad = Transcript(text="a"), Failure(type="x", message="y")

    assert failures_of(good) == []
    assert failures_of(bad) == [bad]
    assert failures_of(ChannelTranscripts(channels=[bad, good, bad])) == [bad, bad]


def test_one_channel_is_no_list_of_channels() -> None:
    with pytest.raises(ValidationError, match="at least 2"):
        ChannelTranscripts(channels=[Transcript(text="a")])

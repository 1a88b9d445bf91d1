"""What a call may ask for, and what its answer says, whatever comes back."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.calls import ManyOptions, call_of
from producer.errors import CallCancelledError, FleetError, UsageError
from workers.errors import TranscriptionError
from workers.messages import ChannelTranscripts, Failure, Options, Record, Transcript, parse_record

TEXT = {"text": "hello", "language": "en"}
FAILED = {"exc_type": "TranscriptionError", "exc_module": "workers.errors", "exc_message": ["not_audio", "no audio"]}

# What a call asks for.


def test_a_relative_path_starts_where_the_application_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "calls").mkdir()
    monkeypatch.chdir(tmp_path)
    call = call_of("transcribe", "calls/../a.wav", {})
    assert call.record == Record(audio=str(tmp_path / "a.wav"))
    assert call.options == Options()
    assert call_of("transcribe", Path("a.wav"), {}).record == call.record
    both = call_of("transcribe", [Path("a.wav"), "https://media.example.org/b.mp3?sig=1"], {}).record
    assert both.audio == [str(tmp_path / "a.wav"), "https://media.example.org/b.mp3?sig=1"]


def test_a_working_directory_that_was_removed_matters_to_relative_paths_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of a service whose release folder the next one has replaced."""
    folder = tmp_path / "release-1"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    for source in ("/data/a.wav", "https://media.example.org/b.mp3"):
        assert call_of("transcribe", source, {}).record == Record(audio=source)
    with pytest.raises(UsageError, match=r"'a\.wav': relative to a working directory that was removed"):
        call_of("transcribe", ["/data/a.wav", "a.wav"], {})


def test_options_are_the_calls_or_the_records() -> None:
    options = {"language": "German", "prompt": " Ada ", "timestamps": True, "start_s": 1, "end_s": 2.5, "model": None}
    call = call_of("translate", "/a.wav", options)
    assert call.options == Options(language="de", prompt="Ada", timestamps=True)
    assert (call.record.start_s, call.record.end_s, call.record.row) == (1.0, 2.5, None)
    assert call.language == "de"


def test_a_row_says_things_for_itself_and_keeps_its_own_columns() -> None:
    row = {"audio": ["/a.wav"], "language": "French", "start_s": 3, "id": object(), "row": "x"}
    call = call_of("transcribe", row, {"language": "de", "start_s": 1})
    assert call.record == Record(audio="/a.wav", language="fr", start_s=3.0)
    assert (call.language, call.options.language, call.is_list) == ("fr", "de", True)


@pytest.mark.parametrize(
    ("audio", "options", "type", "says"),
    [
        ("/a.wav", {"lang": "de"}, "bad_argument", "unknown option 'lang': there are language, prompt"),
        ("/a.wav", {"language": "Klingon"}, "unknown_language", "unknown language 'Klingon'"),
        ({"audio": "/a.wav", "language": "Klingon"}, {}, "unknown_language", "unknown language 'Klingon'"),
        ("/a.wav", {"channels": "left"}, "bad_argument", "channels: "),
        ("/a.wav", {"timestamps": "perhaps"}, "bad_argument", "timestamps: "),
        ("/a.wav", {"prompt": "x" * 10_001}, "bad_argument", "prompt: "),
        ("/a.wav", {"prompt": "\ud800"}, "bad_argument", "prompt: "),
        ("/a.wav", {"start_s": "1"}, "bad_argument", "start_s: must be a number of seconds"),
        ("/a.wav", {"end_s": float("inf")}, "bad_argument", "end_s: must be a finite number of seconds"),
        ("/a.wav", {"end_s": object()}, "bad_argument", "no JSON"),
        ("/a.wav", {"start_s": 2, "end_s": 1}, "bad_argument", "end_s must be greater"),
        ({"audio": "/a.wav", "timestamps": True}, {}, "bad_argument", "'timestamps' in a row"),
        ({"file": "/a.wav"}, {}, "no_audio", "names no audio"),
        ([], {}, "no_audio", "names no audio"),
        (None, {}, "no_audio", "names no audio"),
        (b"/a.wav", {}, "bad_argument", "audio: bytes is no path"),
        ([["/a.wav"]], {}, "bad_argument", "audio: list is no path"),
        ("/a\0.wav", {}, "bad_argument", "audio: "),
        ("/a" * 5000, {}, "bad_argument", "audio: 10000 characters"),
    ],
)
def test_what_no_worker_could_do_is_refused(audio: Any, options: dict[str, Any], type: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        call_of("transcribe", audio, options)
    assert caught.value.type == type
    assert says in caught.value.message
    assert "\n" not in caught.value.message


def test_there_are_two_tasks() -> None:
    with pytest.raises(UsageError, match="task 'summarize': must be transcribe or translate"):
        call_of("summarize", "/a.wav", {})  # type: ignore[arg-type]


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
anything = st.recursive(scalars, lambda some: st.lists(some) | st.dictionaries(st.text(), some), max_leaves=5)


@given(anything, st.dictionaries(st.sampled_from(sorted(get_type_hints(ManyOptions))), anything))
def test_whatever_is_asked_for_can_be_sent_or_is_refused(audio: Any, options: dict[str, Any]) -> None:
    try:
        call = call_of("transcribe", audio, options)
    except UsageError:
        return
    sent = json.loads(json.dumps(call.record.model_dump(exclude_defaults=True)).encode("utf-8"))
    assert parse_record(sent, 0) == call.record
    json.dumps(call.options.model_dump()).encode("utf-8")


# What its answer says.


def answer(audio: Any, result: Any, status: str = "SUCCESS") -> Any:
    return call_of("transcribe", audio, {}).answer({"status": status, "result": result})


def test_an_answer_has_the_shape_of_what_was_asked() -> None:
    one = Transcript(text="hello", language="en")
    error = Failure(type="not_audio", message="no audio")
    assert answer("/a", [TEXT]) == one
    assert answer(["/a"], [TEXT]) == [one]
    assert answer(["/a"], [[TEXT]]) == [one]
    assert answer(["/a", "/b"], [[TEXT, {"error": error.model_dump()}]]) == [one, error]
    split = {"channels": [TEXT, {"error": error.model_dump()}]}
    assert answer("/a", [split]) == ChannelTranscripts(channels=[one, error])


def test_what_a_newer_worker_adds_is_passed_over() -> None:
    assert answer("/a", [{**TEXT, "speaker": "Ada"}]) == Transcript(text="hello", language="en")


def test_a_recording_that_failed_is_raised_and_in_a_list_given() -> None:
    with pytest.raises(TranscriptionError) as caught:
        answer("/a", FAILED, "FAILURE")
    assert (caught.value.type, caught.value.message) == ("not_audio", "no audio")
    assert answer(["/a"], FAILED, "FAILURE") == [Failure(type="not_audio", message="no audio")]
    with pytest.raises(TranscriptionError):
        answer(["/a", "/b"], FAILED, "FAILURE")  # the call as a whole
    with pytest.raises(TranscriptionError):
        answer("/a", [{"error": {"type": "not_audio", "message": "no audio"}}])


def test_other_failures_of_a_worker_keep_their_words() -> None:
    with pytest.raises(TranscriptionError) as caught:
        answer("/a", {"exc_type": "MemoryError", "exc_message": ["no room", 7]}, "FAILURE")
    assert (caught.value.type, caught.value.message) == ("worker_error", "MemoryError: no room 7")


def test_a_call_that_somebody_revoked_is_cancelled() -> None:
    with pytest.raises(CallCancelledError):
        answer("/a", {"exc_type": "TaskRevokedError", "exc_message": ["revoked"]}, "REVOKED")


@given(
    st.sampled_from([["/a"], "/a"]),
    st.fixed_dictionaries({}, optional={"status": st.sampled_from(["SUCCESS", "FAILURE", "?"]), "result": anything}),
)
def test_an_answer_that_cannot_be_read_is_an_error_of_ours(audio: Any, meta: dict[str, Any]) -> None:
    with contextlib.suppress(FleetError, TranscriptionError):
        call_of("transcribe", audio, {}).answer(meta)

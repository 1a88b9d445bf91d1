"""The added columns: names, shapes for one and for several recordings, and figures fit to read."""

import json
from typing import Any

import pytest

from producer.columns import Columns
from producer.errors import UsageError
from producer.rows import with_columns
from workers.messages import ChannelTranscripts, Failure, Segment, Transcript

SPOKEN: dict[str, Any] = Transcript(
    text=" Guten Tag.",
    segments=[Segment(start=0.12345, end=1.99999, text=" Guten Tag.")],
    language="de",
    language_probability=0.987654321,
    duration=2.0004,
    speech_seconds=1.87654,
    model="openai/whisper-base",
    avg_logprob=-0.1234567,
    compression_ratio=1.23456,
    no_speech_prob=0.000049,
    temperature=0.6000000000000001,
    flags=["repetition"],
    attempts=2,
).model_dump()
FAILED: dict[str, Any] = Failure(type="not_audio", message="x.wav: no audio stream").model_dump()
DETAILS = {
    "language": "de",
    "language_probability": 0.9877,
    "duration": 2.0,
    "speech_seconds": 1.877,
    "model": "openai/whisper-base",
    "avg_logprob": -0.1235,
    "compression_ratio": 1.2346,
    "no_speech_prob": 0.0,
    "temperature": 0.6,
    "flags": ["repetition"],
    "attempts": 2,
}
SEGMENTS = [{"start": 0.123, "end": 2.0, "text": " Guten Tag."}]
ALL = Columns("t", timestamps=True, details=True)


def test_names_are_all_that_may_be_added() -> None:
    assert Columns().names() == ("transcription", "transcription_error")
    assert ALL.names() == ("t", "t_segments", "t_error", "t_details")


def test_an_overwrite_removes_what_another_run_may_have_left() -> None:
    assert Columns("t").family() == set(ALL.names())


@pytest.mark.parametrize(
    ("output_key", "media_key", "message"),
    [
        ("", "audio", "is empty"),
        ("audio", "audio", "overwrite the audio column"),
        ("t", "t_segments", "overwrite the audio column"),
        ("language", "audio", "is an option of the rows"),
    ],
)
def test_a_key_that_would_harm_the_rows_is_refused(output_key: str, media_key: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Columns(output_key).check(media_key)
    Columns("t").check("audio")


def test_one_recording_gives_plain_columns() -> None:
    assert Columns("t").values([SPOKEN], plain=True) == {"t": " Guten Tag."}
    assert ALL.values([SPOKEN], plain=True) == {"t": " Guten Tag.", "t_segments": SEGMENTS, "t_details": DETAILS}


def test_a_failed_recording_has_null_columns_and_its_error() -> None:
    assert Columns("t").values([FAILED], plain=True) == {"t": None, "t_error": FAILED}
    assert ALL.values([FAILED], plain=True) == {"t": None, "t_segments": None, "t_error": FAILED, "t_details": None}


def test_several_recordings_give_lists_with_nulls_in_place() -> None:
    assert ALL.values([SPOKEN, FAILED, SPOKEN], plain=False) == {
        "t": [" Guten Tag.", None, " Guten Tag."],
        "t_segments": [SEGMENTS, None, SEGMENTS],
        "t_error": [None, FAILED, None],
        "t_details": [DETAILS, None, DETAILS],
    }
    assert Columns("t").values([SPOKEN, SPOKEN], plain=False) == {"t": [" Guten Tag.", " Guten Tag."]}


def channels(*parts: Transcript | Failure) -> dict[str, Any]:
    return ChannelTranscripts(channels=list(parts)).model_dump()


def test_split_channels_are_lists_in_their_recordings_place() -> None:
    call = channels(Transcript.model_validate(SPOKEN), Failure.model_validate(FAILED))
    texts, errors = [" Guten Tag.", None], [None, FAILED]
    assert Columns("t").values([call], plain=True) == {"t": texts, "t_error": errors}
    assert ALL.values([call], plain=True) == {
        "t": texts,
        "t_segments": [SEGMENTS, None],
        "t_error": errors,
        "t_details": [DETAILS, None],
    }
    assert ALL.values([SPOKEN, call, FAILED], plain=False) == {
        "t": [" Guten Tag.", texts, None],
        "t_segments": [SEGMENTS, [SEGMENTS, None], None],
        "t_error": [None, errors, FAILED],
        "t_details": [DETAILS, [DETAILS, None], None],
    }


def test_channels_that_all_have_text_add_no_error_column() -> None:
    call = channels(Transcript(text="a"), Transcript(text=""))
    assert Columns("t").values([call], plain=True) == {"t": ["a", ""]}


def test_silence_has_text_and_no_segments() -> None:
    silence = Transcript(text="", duration=3.0).model_dump()
    assert Columns("t", timestamps=True).values([silence], plain=True) == {"t": "", "t_segments": []}


def test_figures_that_json_lacks_become_null() -> None:
    odd = SPOKEN | {"avg_logprob": float("-inf"), "no_speech_prob": float("nan"), "temperature": None}
    details = ALL.values([odd], plain=True)["t_details"]
    assert [details[name] for name in ("avg_logprob", "no_speech_prob", "temperature")] == [None, None, None]
    json.dumps(details, allow_nan=False)


@pytest.mark.parametrize("columns", [Columns("t"), Columns("t", timestamps=True), Columns("t", details=True), ALL])
def test_the_columns_of_a_row_give_back_its_answer(columns: Columns) -> None:
    spoken = Transcript.model_validate(SPOKEN)
    call = channels(spoken, Transcript(text=""))
    for items, plain in (([SPOKEN], True), ([call], True), ([SPOKEN, call, SPOKEN], False)):
        row = columns.values(items, plain)
        assert columns.values(columns.items(row, plain), plain) == row


def test_a_row_whose_columns_were_cut_gives_back_what_all_of_them_have() -> None:
    row = Columns("t", timestamps=True).values([SPOKEN, SPOKEN], plain=False)
    for name in row:
        cut = {**row, name: row[name][:1]}
        assert len(Columns("t", timestamps=True).items(cut, plain=False)) == 1


def test_the_errors_of_a_row_name_their_recording() -> None:
    columns = Columns("t")
    call = channels(Transcript.model_validate(SPOKEN), Failure.model_validate(FAILED))
    assert columns.errors(columns.values([FAILED], plain=True), plain=True) == [(0, FAILED)]
    assert columns.errors(columns.values([SPOKEN], plain=True), plain=True) == []
    several = columns.values([SPOKEN, call, FAILED], plain=False)
    assert columns.errors(several, plain=False) == [(0, None), (1, None), (1, FAILED), (2, FAILED)]


@pytest.mark.parametrize("key", ["t", "täxt", 'a "b"', "\\", "surrogate \ud800"])
def test_lines_without_an_error_need_no_parsing(key: str) -> None:
    columns = Columns(key)
    failed = with_columns(b'{"a": 1}', columns.values([FAILED], plain=True))
    assert columns.may_have_failed(failed)
    assert not columns.may_have_failed(with_columns(b'{"a": 1}', columns.values([SPOKEN], plain=True)))
    assert not columns.may_have_failed(with_columns(b'{"a": 1}', {key: f'he said "{key}_error"'}))

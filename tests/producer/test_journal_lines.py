"""What a line of a journal is taken for."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.journal_lines import read_answer, row_of
from workers.messages import Failure, RowResult, Transcript

ROWS = 100
ITEM = {"text": "a", "duration": 1.5}


def sent(row: Any, **more: Any) -> bytes:
    return json.dumps({"row": row, "items": [ITEM], **more}).encode() + b"\n"


def row_by_reading(line: bytes) -> int | None:
    with contextlib.suppress(ValueError):
        return read_answer(line, ROWS).row
    return None


def row_at_a_glance(line: bytes) -> int | None:
    with contextlib.suppress(ValueError):
        return row_of(line, ROWS)
    return None


@given(
    st.integers(-5, ROWS + 5) | st.integers() | st.text() | st.booleans(),
    st.booleans(),
    st.dictionaries(st.sampled_from(["row", "items", "x"]), st.integers() | st.text()),
)
def test_a_glance_finds_the_row_that_reading_finds(row: Any, spaced: bool, more: dict[str, Any]) -> None:
    separators = (", ", ": ") if spaced else (",", ":")
    line = json.dumps({"row": row, "items": [ITEM]}, separators=separators)[:-1]
    line += "".join(f',"{key}":{json.dumps(value)}' for key, value in more.items()) + "}\n"
    # What is no answer never comes into a journal; damage is below.
    wanted = row_by_reading(line.encode())
    assert wanted is None or row_at_a_glance(line.encode()) == wanted


@pytest.mark.parametrize("item", [Transcript(text='"row" \\ }'), Failure(type="not_audio", message='{"row": 3}')])
def test_what_workers_send_is_known_at_a_glance(item: Transcript | Failure) -> None:
    line = RowResult(row=7, items=[item]).model_dump_json().encode() + b"\n"
    assert row_of(line, ROWS) == 7


@pytest.mark.parametrize(
    "line",
    [
        sent(1)[:-9] + b"\n",
        sent(1)[:30] + b"\0" * 8 + b"}\n",
        sent(1)[:-2] + b',"row":2}\n',
        sent(ROWS),
        b'{"row":01,"items":[{"text":"a"}]}\n',
        b"{}\n",
        b"[]\n",
    ],
)
def test_what_is_unusual_is_read_as_a_whole(line: bytes) -> None:
    assert row_at_a_glance(line) == row_by_reading(line)


def test_seconds_of_split_channels_count_once() -> None:
    channels = {"channels": [{"text": "a", "duration": 2.0}, {"text": "b", "duration": 2.0}]}
    line = json.dumps({"row": 0, "items": [channels, ITEM, {"type": "t", "message": "m"}]}).encode()
    assert read_answer(line, ROWS).audio_seconds == 3.5

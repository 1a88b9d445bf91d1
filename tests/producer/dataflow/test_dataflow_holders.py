"""What a table asks for: the same rows mean the same, whatever they stand in."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from job_files import write_rows

from producer.calls import call_of
from producer.dataflow import frames, holders
from producer.dataflow.paths import FORMATS, Table
from producer.errors import UsageError
from producer.rows import record_of
from workers.messages import Failure, Record


def record(row: dict[str, Any], folder: Path) -> Record | Failure:
    return record_of(0, json.dumps(row).encode(), "audio", str(folder))


def asked(name: str, folder: Path) -> list[Record | Failure]:
    """The records of a table."""
    table = Table.first_entry(name)
    rows = holders.requests(holders.load(table, table.format, "audio"), "audio", name)
    return [record(row, folder) for row in rows]


@pytest.mark.parametrize(
    "row",
    [
        {"audio": "a.wav", "language": math.nan, "prompt": math.nan, "start_s": math.nan, "end_s": 2.5},
        {"audio": "a.wav", "language": "German", "prompt": "Ada", "start_s": 1.0, "end_s": math.nan},
    ],
)
def test_what_pandas_writes_for_a_missing_option_is_none_everywhere(folder: Path, row: dict[str, Any]) -> None:
    # Given a row of a DataFrame
    frame = pd.DataFrame([row])
    write_rows(folder / "data.jsonl", [row])
    frame.to_csv(folder / "data.csv", index=False)
    frame.to_parquet(folder / "data.parquet")
    # Then its record is what the options that are there make
    (expected,) = [record({name: value for name, value in row.items() if value == value}, folder)]
    assert isinstance(expected, Record)
    assert record(row, folder) == expected
    for name in ("data.jsonl", "data.csv", "data.parquet"):
        assert asked(name, folder) == [expected], name
    assert call_of("transcribe", row, {}).record == expected.model_copy(update={"row": None})


def test_digits_in_csv_are_text_where_text_is_meant(folder: Path) -> None:
    (folder / "data.csv").write_text("audio,prompt,end_s,id\na.wav,1984,2.5,7\na.wav,,3,8\na.wav,2001,,9\n")
    assert asked("data.csv", folder) == [
        Record(audio=str(folder / "a.wav"), row=0, **options)
        for options in ({"prompt": "1984", "end_s": 2.5}, {"end_s": 3.0}, {"prompt": "2001"})
    ]
    (folder / "data.csv").write_text("audio,prompt\na.wav,1.5\n")
    assert asked("data.csv", folder) == [Record(audio=str(folder / "a.wav"), row=0, prompt="1.5")]
    (folder / "data.csv").write_text("audio,prompt\na.wav,True\n")
    assert asked("data.csv", folder) == [Record(audio=str(folder / "a.wav"), row=0, prompt="True")]


EMBEDDED = {
    "bytes": {"bytes": b"RIFF" * 50_000, "path": "a.wav"},
    "path": {"bytes": None, "path": "a.wav"},
    "array": {"array": np.zeros(50_000), "path": None, "sampling_rate": 16_000},
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("value", EMBEDDED.values(), ids=EMBEDDED)
@pytest.mark.parametrize("in_lists", [False, True])
def test_a_hugging_face_audio_column_is_refused_in_a_few_words(
    folder: Path, kind: str, value: dict[str, object], in_lists: bool
) -> None:
    # Given a table as `datasets` writes it
    pd.DataFrame({"audio": [[value] if in_lists else value]}).to_parquet(folder / "data.parquet")
    table = Table.first_entry("data.parquet")
    # Then whatever it will be written as, the message says what the column is, and is no page of numbers
    with pytest.raises(UsageError, match=r"row 0: column 'audio' holds \{.*: a Hugging Face audio column: ") as caught:
        holders.requests(holders.load(table, kind, "audio"), "audio", "data.parquet")  # type: ignore[arg-type]
    assert len(str(caught.value)) < 450


@pytest.mark.parametrize("value", [*EMBEDDED.values(), b"RIFF" * 50_000, np.array([EMBEDDED["bytes"]]), [["x" * 9999]]])
def test_whatever_a_dataframe_has_in_place_of_paths_is_shown_in_short(value: object) -> None:
    holder = holders.FrameHolder(pd.DataFrame({"audio": pd.Series([value], dtype=object)}), "audio")
    with pytest.raises(UsageError, match="the DataFrame: row 0: column 'audio' holds ") as caught:
        holders.requests(holder, "audio", "the DataFrame")
    assert len(str(caught.value)) < 450


def test_bytes_in_another_column_are_advised_to_become_files() -> None:
    with pytest.raises(UsageError, match="column 'x' holds a bytes, which JSON has no form for: write it to a file"):
        frames.rows_of(pd.DataFrame({"x": [b"1"]}))

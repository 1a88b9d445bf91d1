"""What a table asks for: the same rows mean the same, whatever they stand in."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from job_files import write_rows

from producer.calls import call_of
from producer.dataflow import holders
from producer.dataflow.paths import Table
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

"""Storages of others: DataFlow's own from the registry, its kin, and whatever reads and writes DataFrames."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
from job_files import read_rows, write_rows

from producer.dataflow import WhisperTranscriptionGenerator
from producer.errors import UsageError

ROWS = [
    {"audio": ["a.wav"], "id": "007", "created_at": "2024-01-01", "f": 0.12345678901234568, "n": 2**70},
    {"audio": ["gone.wav"], "id": "1e5", "created_at": "", "f": 1.5},
]


def test_dataflows_file_storage_is_taken_by_its_files(
    generator: WhisperTranscriptionGenerator, folder: Path, real_storage: ModuleType
) -> None:
    # Given the storage of the registry's package, and rows that its own reader would change
    write_rows(folder / "data.jsonl", ROWS)
    storage = real_storage.FileStorage("data.jsonl", cache_path="./cache", file_name_prefix="p", cache_type="jsonl")
    # When two steps are transcribed
    assert generator.run(storage.step()) == "transcription"
    generator.run(storage.step(), task="translate", output_key="english")
    # Then its files are where it looks for them, with every value as it was
    rows = read_rows(folder / "cache" / "p_step2.jsonl")
    assert [{name: row[name] for name in given} for row, given in zip(rows, ROWS, strict=True)] == ROWS
    write_rows(folder / "cache" / "p_step2.jsonl", [{**row, "n": 1} for row in rows])  # it cannot read the large one
    frame = storage.step().read("dataframe")
    assert frame["english"].iloc[0].startswith("stand-in")
    assert frame["english_error"].iloc[1]["type"] == "file_not_found"


def test_an_operator_of_dataflow_fits_between(
    generator: WhisperTranscriptionGenerator, folder: Path, real_storage: ModuleType
) -> None:
    write_rows(folder / "data.jsonl", [{"wav": ["a.wav"]}])
    storage = real_storage.FileStorage("data.jsonl", file_name_prefix="p")
    storage.media_key = "wav"
    generator.run(storage.step())
    between = storage.step()
    between.write(between.read("dataframe").assign(words=lambda frame: frame["transcription"].str.len()))
    generator.run(storage.step(), task="translate", output_key="english")
    (row,) = read_rows(folder / "cache" / "p_step3.jsonl")
    assert list(row) == ["wav", "transcription", "words", "english"]
    assert row["words"] == len(row["transcription"])


def test_a_storage_that_keeps_its_rows_in_memory_is_asked_for_them(
    generator: WhisperTranscriptionGenerator, folder: Path, real_storage: ModuleType
) -> None:
    write_rows(folder / "data.jsonl", [{"audio": ["a.wav"], "x": 1}, {"audio": ["gone.wav"], "x": 2}])
    storage = real_storage.LazyFileStorage("data.jsonl", file_name_prefix="p", save_on_exit=False)
    generator.run(storage.step())
    frame = storage.step().read("dataframe")
    assert frame["x"].tolist() == [1, 2]
    assert frame["transcription"].iloc[0].startswith("stand-in")
    assert not (folder / "cache" / "p_step1.jsonl").exists()
    # And its job can be resumed all the same
    (done,) = (folder / "cache").glob("p_step1.rows/*/rows_step1.jsonl")
    made = done.stat().st_mtime_ns
    storage.reset()
    generator.run(storage.step())
    assert done.stat().st_mtime_ns == made


def test_batches_are_jobs_of_their_own(
    generator: WhisperTranscriptionGenerator, folder: Path, real_storage: ModuleType
) -> None:
    write_rows(folder / "data.jsonl", [{"audio": ["a.wav"], "end_s": 1.0 + number} for number in range(3)])
    storage = real_storage.BatchedFileStorage("data.jsonl", file_name_prefix="p", cache_type="jsonl")
    storage.batch_size = 2
    for storage.batch_step in (0, 1):
        storage.operator_step = -1
        generator.run(storage.step())
    rows = read_rows(folder / "cache" / "p_step1.jsonl")
    assert [row["end_s"] for row in rows] == [1.0, 2.0, 3.0]
    assert len({row["transcription"] for row in rows}) == 3


class Memory:
    """The least that a storage has to have."""

    def __init__(self, frame: Any) -> None:
        self.frame = frame

    def read(self, output_type: str) -> Any:
        assert output_type == "dataframe"
        return self.frame

    def write(self, data: Any) -> None:
        self.frame = data


def test_anything_that_reads_and_writes_dataframes_will_do(
    generator: WhisperTranscriptionGenerator, folder: Path
) -> None:
    frame = pd.DataFrame(
        {"audio": ["a.wav", ["a.wav", None], None], "at": pd.Timestamp("2024-01-01"), "transcription_error": "old"},
        index=["x", "y", "y"],
    )
    storage = Memory(frame)
    generator.run(storage)
    after = storage.frame
    assert after.index.tolist() == ["x", "y", "y"]
    assert after["at"].equals(frame["at"])
    assert after["transcription"].iloc[0].startswith("stand-in")
    assert [text is None for text in after["transcription"].iloc[1]] == [False, True]
    assert after["transcription_error"].iloc[0] is None
    assert after["transcription_error"].iloc[2]["type"] == "no_audio"
    assert [path.name for path in folder.iterdir()] == ["a.wav"]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"wav": ["a.wav"]}, r"the DataFrame: no column 'audio' \(there is: wav\): name the column with media_key"),
        ({"audio": ["a.wav", 7.5]}, r"the DataFrame: row 1: column 'audio' holds 7\.5"),
        ({}, r"the DataFrame: no column 'audio' \(there is: nothing\)"),
    ],
)
def test_wrong_media_columns_are_named(
    generator: WhisperTranscriptionGenerator, columns: dict[str, list[Any]], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        generator.run(Memory(pd.DataFrame(columns, index=range(2) if not columns else None)))


def test_a_column_that_is_there_twice_is_named(generator: WhisperTranscriptionGenerator) -> None:
    twice = pd.DataFrame([["a.wav", "b.wav", 1, 2]], columns=["audio", "audio", "id", "id"])
    with pytest.raises(UsageError, match="the DataFrame has two columns 'audio': rename one"):
        generator.run(Memory(twice))
    storage = Memory(twice.iloc[:, 1:])
    generator.run(storage)
    assert storage.frame["id"].to_numpy().tolist() == [[1, 2]]


def test_an_empty_dataframe_stays_empty(generator: WhisperTranscriptionGenerator) -> None:
    storage = Memory(pd.DataFrame())
    generator.run(storage)
    generator.run(storage, task="translate", output_key="english")
    assert list(storage.frame.columns) == ["transcription", "transcription_error", "english", "english_error"]
    assert len(storage.frame) == 0


def test_options_of_rows_travel_with_them(generator: WhisperTranscriptionGenerator, folder: Path) -> None:
    frame = pd.DataFrame({"audio": "a.wav", "end_s": [1, float("nan")], "language": ["zh", "klingon"]})
    storage = Memory(frame)
    generator.run(storage, details=True)
    errors = storage.frame["transcription_error"].tolist()
    assert errors[0] is None
    assert errors[1]["type"] == "unknown_language"
    assert json.dumps(storage.frame["transcription_details"].iloc[0]["language"]) == '"zh"'

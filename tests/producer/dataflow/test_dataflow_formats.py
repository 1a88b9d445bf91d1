"""Transcriptions of tables that are no jsonl: what was there stays as it was, and the answers are beside it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from producer.dataflow import FileStorage, WhisperTranscriptionGenerator

SOURCES = {
    "json": lambda path: path.write_text('[{"audio": ["a.wav"], "id": "007"}, {"audio": ["gone.wav"], "id": "1e5"}]'),
    "csv": lambda path: path.write_text("audio,id\n['a.wav'],007\ngone.wav,1e5\n"),
    "parquet": lambda path: pd.DataFrame({"audio": [["a.wav"], ["gone.wav"]], "id": ["007", "1e5"]}).to_parquet(path),
    "jsonl": lambda path: path.write_text('{"audio": ["a.wav"], "id": "007"}\n{"audio": ["gone.wav"], "id": "1e5"}\n'),
}


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("json", "json"),
        ("csv", "csv"),
        ("parquet", "parquet"),
        ("jsonl", "pickle"),
        ("csv", "jsonl"),
        ("json", "parquet"),
    ],
)
def test_every_format_is_transcribed(
    generator: WhisperTranscriptionGenerator, folder: Path, source: str, kind: str
) -> None:
    # Given a first entry in one format and steps in another
    SOURCES[source](folder / f"data.{source}")
    storage = FileStorage(f"data.{source}", file_name_prefix="p", cache_type=kind)  # type: ignore[arg-type]
    # When it is transcribed
    generator.run(storage.step(), use_no_time_stamps=False)
    # Then what was there is as it was, and the answers are beside it
    step = storage.step()
    frame = step.read("dataframe")
    assert frame["id"].tolist() == ["007", "1e5"]
    assert frame["transcription"].iloc[0].startswith("stand-in")
    assert pd.isna(frame["transcription"].iloc[1])
    error, segments = frame["transcription_error"].iloc[1], frame["transcription_segments"].iloc[0]
    if kind == "csv":
        error, segments = json.loads(error), json.loads(segments)
    assert error["type"] == "file_not_found"
    assert segments[0]["text"] == frame["transcription"].iloc[0]
    # And the next step of the same format is made of it; the same again is no new job
    if kind in ("csv", "pickle"):
        generator.run(step, task="translate")
        (answers,) = (folder / "cache").rglob("p_step2.rows/rows_step1.jsonl")
        made = answers.stat()
        generator.run(step, task="translate")
        assert (answers.stat().st_mtime_ns, answers.stat().st_ino) == (made.st_mtime_ns, made.st_ino)
        assert storage.step().read()["transcription"].iloc[0] == frame["transcription"].iloc[0]


def test_parquet_keeps_its_types(generator: WhisperTranscriptionGenerator, folder: Path) -> None:
    frame = pd.DataFrame({"audio": [["a.wav"], ["a.wav", "gone.wav"]], "n": pd.array([2**60 + 1, None], dtype="Int64")})
    frame["at"] = pd.Timestamp("2024-01-01T10:00:00.123456789Z")
    frame.to_parquet(folder / "data.parquet")
    generator.run(FileStorage("data.parquet", file_name_prefix="p", cache_type="parquet").step())
    before, after = pq.read_table(folder / "data.parquet"), pq.read_table(folder / "cache" / "p_step1.parquet")
    assert after.select(before.column_names).equals(before)
    assert str(after.schema.field("transcription").type) == "list<element: string>"
    assert [[text is None for text in row] for row in after.column("transcription").to_pylist()] == [
        [False],
        [False, True],
    ]


def test_csv_is_the_same_text_with_more_columns(generator: WhisperTranscriptionGenerator, folder: Path) -> None:
    (folder / "data.csv").write_text('audio,id,note,end_s\na.wav,007,"",2.5\na.wav,1.50,,\n')
    generator.run(FileStorage("data.csv", file_name_prefix="p", cache_type="csv").step())
    lines = (folder / "cache" / "p_step1.csv").read_text().splitlines()
    assert lines[0] == "audio,id,note,end_s,transcription,transcription_error"
    assert lines[1].startswith('a.wav,007,"",2.5,stand-in ')
    assert lines[2].startswith("a.wav,1.50,,,stand-in ")
    texts = [row[4] for row in csv.reader(lines[1:])]
    assert texts[0] != texts[1], "end_s is of its row"

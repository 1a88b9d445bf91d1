"""FileStorage: steps as DataFlow counts them, and tables that come back as they were written."""

from __future__ import annotations

import gzip
import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from job_files import read_rows, write_rows

from producer.cache import Step
from producer.dataflow import FileStorage
from producer.dataflow.frames import frame_of, rows_of
from producer.errors import FleetError, UsageError

KINDS = ("json", "jsonl", "csv", "parquet", "pickle")
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
ROWS = st.lists(st.dictionaries(st.sampled_from(["id", "ü", "a b", "n"]), VALUES), max_size=5)
#: Hypothesis runs the function many times in one folder: every file is written anew.
ONE_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)


def first_step(folder: Path, kind: str = "jsonl", rows: list[Any] | None = None) -> FileStorage:
    source = write_rows(folder / "data.jsonl", [{"audio": "a.wav"}] if rows is None else rows)
    return FileStorage(str(source), str(folder / "cache"), "p", kind).step()  # type: ignore[arg-type]


def next_step(storage: FileStorage) -> FileStorage:
    after = FileStorage(storage.first_entry_file_name, storage.cache_path, storage.file_name_prefix, storage.cache_type)
    after.operator_step = storage.operator_step + 1
    return after


def test_steps_are_counted_as_dataflow_does(folder: Path) -> None:
    # Given a storage that no operator has asked for yet
    storage = FileStorage("data.jsonl", file_name_prefix="whisper_transcription")
    write_rows(folder / "data.jsonl", [{"audio": "a.wav", "step": 0}])
    with pytest.raises(UsageError, match=r"call storage\.step\(\)"):
        storage.read()
    # When two operators read and write in turn
    first = storage.step()
    assert (storage.operator_step, first.operator_step) == (0, 0)
    assert first.read("dict") == [{"audio": "a.wav", "step": 0}]
    written = first.write([{"audio": "a.wav", "step": 1}])
    second = storage.step()
    # Then each has its own step, also the first one's storage
    assert written == str(folder / "cache" / "whisper_transcription_step1.jsonl")
    assert second.read("dict") == [{"audio": "a.wav", "step": 1}]
    assert first.read("dict") == [{"audio": "a.wav", "step": 0}]
    assert second.get_keys_from_dataframe() == ["audio", "step"]
    assert storage.reset() is storage
    assert storage.step().operator_step == 0


def test_the_default_names_are_dataflows(folder: Path) -> None:
    write_rows(folder / "data.jsonl", [])
    assert FileStorage("data.jsonl").step().write([]) == str(folder / "cache" / "dataflow_cache_step_step1.jsonl")


@pytest.mark.parametrize("kind", ["json", "jsonl"])
@ONE_FOLDER
@given(rows=ROWS)
def test_rows_come_back_as_they_were(folder: Path, kind: str, rows: list[dict[str, Any]]) -> None:
    storage = first_step(folder, kind)
    storage.write(rows)
    assert next_step(storage).read("dict") == rows


@pytest.mark.parametrize("kind", ["json", "jsonl"])
@ONE_FOLDER
@given(rows=ROWS)
def test_a_dataframe_keeps_types_nulls_and_what_is_not_there(
    folder: Path, kind: str, rows: list[dict[str, Any]]
) -> None:
    # A DataFrame has one order of columns, so that of the keys in a row is not looked at; nested values are.
    frame = frame_of(rows)
    assert len(frame) == len(rows)
    storage = first_step(folder, kind)
    storage.write(frame)
    back = next_step(storage).read("dict")
    assert back == rows
    assert [{name: type(value) for name, value in row.items()} for row in back] == [
        {name: type(value) for name, value in row.items()} for row in rows
    ]


@ONE_FOLDER
@given(rows=st.lists(st.fixed_dictionaries({"a": TEXT | st.none(), "b": TEXT | st.none()}), min_size=1, max_size=5))
def test_csv_keeps_the_text_of_every_cell_and_null_apart_from_nothing(folder: Path, rows: list[dict[str, Any]]) -> None:
    storage = first_step(folder, "csv")
    storage.write(rows)
    path = Path(folder / "cache" / "p_step1.csv")
    text, again = path.read_bytes(), next_step(storage)
    again.write(again.read("dataframe"))
    assert Path(folder / "cache" / "p_step2.csv").read_bytes() == text
    read = again.read("dict")
    assert [{name: None if value is None else str(value) for name, value in row.items()} for row in read] == rows


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("007", "007"),
        ("7", 7),
        ("1.50", "1.50"),
        ("1.5", 1.5),
        ("1e5", "1e5"),
        ("True", True),
        ("nan", "nan"),
        ("", None),
        ('""', ""),
        ("-0", "-0"),
        ("123456789012345678901", 123456789012345678901),
        ("2024-01-01", "2024-01-01"),
    ],
)
def test_a_cell_is_a_number_only_where_it_would_be_written_so(folder: Path, text: str, value: object) -> None:
    (folder / "t.csv").write_text(f"id,n\n{text},x\n")
    (row,) = FileStorage("t.csv").step().read("dict")
    assert row == {"id": value, "n": "x"}
    assert type(row["id"]) is type(value)


@pytest.mark.parametrize("blank", ["\n", "\r\n", "\ufeff\r\n \t\r\n", "\r"])
@pytest.mark.parametrize("names", ["audio", "audio,id"])
def test_blank_lines_before_the_names_of_csv_columns_are_passed_over(folder: Path, blank: str, names: str) -> None:
    cells = ["a.wav", "b.wav"][: names.count(",") + 1]
    (folder / "t.csv").write_bytes(f"{blank}{names}\n{','.join(cells)}\n".encode())
    assert FileStorage("t.csv").step().read("dict") == [dict(zip(names.split(","), cells, strict=True))]


@pytest.mark.parametrize("text", ["", "\n", "\ufeff\r\n\r\n"])
def test_a_csv_file_with_nothing_in_it_is_an_empty_table(folder: Path, text: str) -> None:
    """pandas writes its empty table as an empty line."""
    (folder / "t.csv").write_bytes(text.encode())
    assert FileStorage("t.csv").step().read("dict") == []


def test_csv_holds_a_row_of_any_length(folder: Path) -> None:
    storage = first_step(folder, "csv")
    rows = [{"audio": "a.wav", "note": "x"}, {"audio": "b.wav", "note": "a word, " * 600_000}]
    storage.write(rows)
    assert next_step(storage).read("dict") == rows


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_survives_a_dataframe(folder: Path, kind: str) -> None:
    rows = [
        {"audio": ["a.wav"], "id": "007", "big": 2**53 + 1, "f": 0.12345678901234568, "t": "ünï\n,x", "none": None},
        {"audio": ["b.wav", "c.wav"], "id": "1e5", "big": -(2**60), "f": 1e-300, "t": "", "none": None},
    ]
    storage = first_step(folder, kind)
    storage.write(pd.DataFrame(rows))
    frame = next_step(storage).read("dataframe")
    back = [{name: frame[name].iloc[number] for name in frame.columns} for number in range(2)]
    if kind == "csv":  # lists are text there, and a transcription reads them again
        assert back[0].pop("audio") == '["a.wav"]'
        assert json.loads(back[1].pop("audio")) == rows[1]["audio"]
        rows = [{name: value for name, value in row.items() if name != "audio"} for row in rows]
    assert back == rows


@pytest.mark.parametrize("kind", ["parquet", "pickle"])
def test_dates_stay_dates_where_the_format_has_them(folder: Path, kind: str) -> None:
    frame = pd.DataFrame({"audio": ["a.wav"], "at": [pd.Timestamp("2024-01-01T10:00:00Z")], "n": [None]})
    storage = first_step(folder, kind)
    storage.write(frame)
    assert next_step(storage).read("dataframe")["at"].iloc[0] == frame["at"].iloc[0]


def test_values_of_pandas_and_numpy_become_json(folder: Path) -> None:
    frame = pd.DataFrame(
        {
            "audio": [np.array(["a.wav", "b.wav"]), float("nan")],
            "n": [np.int64(2**60), pd.NA],
            "at": [datetime(2024, 1, 1, tzinfo=UTC), pd.NaT],
            "path": [Path("x/y"), None],
            "xs": [np.array([1.5, math.nan]), {"k": np.float32(0.5)}],
        }
    )
    storage = first_step(folder)
    storage.write(frame)
    assert next_step(storage).read("dict") == [
        {"audio": ["a.wav", "b.wav"], "n": 2**60, "at": "2024-01-01T00:00:00+00:00", "path": "x/y", "xs": [1.5, None]},
        {"audio": None, "path": None, "xs": {"k": 0.5}},
    ]
    with pytest.raises(UsageError, match="row 0 of column 'x' holds a set"):
        storage.write(pd.DataFrame({"x": [{1}]}))


def test_a_parquet_column_that_mixes_types_is_refused_by_name(folder: Path) -> None:
    storage = first_step(folder, "parquet")
    for data in ([{"x": 1}, {"x": "a"}], pd.DataFrame({"x": [1, "a"]})):
        with pytest.raises(UsageError, match=r"cache_type 'parquet': .*x.*jsonl"):
            storage.write(data)
    assert list((folder / "cache").glob("p_step1*")) == []


@pytest.mark.parametrize("name", ["D.JSONL", "d.ndjson", "d.jsonl.gz", "d.json"])
def test_first_entries_of_other_names_are_read(folder: Path, name: str) -> None:
    data = b'{"audio": "a.wav", "id": "007"}\n'
    (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert FileStorage(name).step().read("dict") == [{"audio": "a.wav", "id": "007"}]


def test_an_empty_name_is_an_empty_table(folder: Path) -> None:
    assert FileStorage("").step().read("dict") == []
    assert len(FileStorage("").step().read()) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"cache_type": "xml"}, "cache_type 'xml': must be one of json, jsonl, csv, parquet, pickle"),
        ({"media_type": "image"}, "media_type 'image'"),
        ({"media_key": ""}, "media_key is empty"),
        ({"file_name_prefix": "a/b"}, "file_name_prefix 'a/b': must be a file name"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words.replace("(", r"\(")):
        FileStorage("data.jsonl", **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("absent.jsonl", "absent.jsonl: no such file"),
        ("hf:openai/gsm8k:main:train", "only files are read"),
        ("table.xlsx", "its name must end with one of"),
        ("table.csv.gz", "its name must end with one of"),
    ],
)
def test_first_entries_that_cannot_be_read_are_named(folder: Path, name: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        FileStorage(name).step().read()


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("t.csv", "a,b\n1,2\n1,2,3\n", r"t\.csv: not valid CSV .*3"),
        ("t.csv", "a,a\n1,2\n", r"t\.csv:1: two columns are named 'a'"),
        ("t.csv", "\n\na,a\n1,2\n", r"t\.csv:3: two columns are named 'a'"),
        ("t.json", '[{"a": 1}, 2]', r"t\.json: row 1: 2 is no object"),
        ("t.json", '[\n{"a": 1},\n}', r"t\.json: not valid JSON .*line 3"),
        ("t.parquet", "no", r"t\.parquet: not a Parquet file"),
        ("t.pickle", "no", r"t\.pickle: not written by a pipeline of yours"),
    ],
)
def test_damaged_tables_are_one_line(folder: Path, name: str, text: str, words: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(UsageError, match=words) as caught:
        FileStorage(name).step().read()
    assert "\n" not in str(caught.value)


def test_a_pickle_of_somebody_else_is_never_loaded(folder: Path) -> None:
    # Given a pickle that would run a program, with the signature of another user's pipeline
    storage = first_step(folder, "pickle")
    storage.write([{"audio": "a.wav"}])
    path = folder / "cache" / "p_step1.pickle"
    assert next_step(storage).read("dict") == [{"audio": "a.wav"}]
    path.write_bytes(b"cposix\nsystem\n(S'touch ran'\ntR.")
    # Then it is not run
    with pytest.raises(UsageError, match="a pickle can run any program"):
        next_step(storage).read()
    assert not (folder / "ran").exists()
    key = folder / "state" / "whisper-fleet" / "pickle.key"
    assert key.stat().st_mode & 0o077 == 0
    assert len(key.read_bytes()) == 32


def test_a_pickle_needs_a_folder_for_its_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = first_step(folder, "pickle")
    for variable in ("HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(variable, raising=False)

    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", nobody)

    with pytest.raises(FleetError, match="there is no home folder: set XDG_STATE_HOME"):
        storage.write([{"audio": "a.wav"}])
    assert not list((folder / "cache").glob("*.pickle"))


def test_writing_over_the_input_is_refused(folder: Path) -> None:
    source = write_rows(folder / "x_step1.jsonl", [{"audio": "a.wav"}])
    storage = FileStorage(str(source), str(folder), "x").step()
    with pytest.raises(UsageError, match="would overwrite the input"):
        storage.write([{"audio": "b.wav"}])
    assert read_rows(source) == [{"audio": "a.wav"}]


def test_a_running_transcription_is_not_moved_away(folder: Path) -> None:
    storage = first_step(folder)
    step = Step(folder / "cache", "p", 1)
    step.cache_path.mkdir()
    step.create_job_folder()
    with step.lock("producer") as lock:
        assert lock.acquire()
        with pytest.raises(UsageError, match="is working on it"):
            storage.write([{"audio": "b.wav"}])
    storage.write([{"audio": "b.wav"}])
    assert (folder / "cache" / "p_step1.before1.job").is_dir()


def test_missing_values_of_every_kind_are_left_out() -> None:
    frame = pd.DataFrame({"f": [1.5, math.nan], "i": pd.array([2**60, None], dtype="Int64"), "s": ["a", None]})
    frame["n"] = pd.Series([None, 0], dtype=object)
    assert rows_of(frame)[0] == {"f": 1.5, "i": 2**60, "s": "a", "n": None}
    assert rows_of(frame)[1] in ({"s": None, "n": 0}, {"n": 0})  # pandas 3 turns None among texts into NaN

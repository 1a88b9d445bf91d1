"""Lists of recordings in cells of CSV: what was written as JSON, or by Python or numpy, and what only looks like it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.dataflow import holders
from producer.dataflow.csv_text import listed
from producer.dataflow.paths import FORMATS, Table
from producer.errors import UsageError

NAMES = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("'\"\\ \n[],"), max_size=12), max_size=6
)


def media(folder: Path, *cells: str) -> list[object]:
    """What a transcription makes of these cells of a media column."""
    with (folder / "t.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows([["audio", "id"], *([cell, "1"] for cell in cells)])
    table = Table.first_entry("t.csv")
    rows = holders.requests(holders.load(table, "csv", "audio"), "audio", table.path)
    return [row["audio"] for row in rows]


@given(names=NAMES)
def test_lists_of_json_python_and_numpy_are_the_texts_they_show(names: list[str]) -> None:
    for text in (json.dumps(names), json.dumps(names, ensure_ascii=False), str(names)):
        assert listed(text, "here") == names
    for array in (np.array(names, dtype=object), np.array(names, dtype=np.dtypes.StringDType())):
        assert listed(str(array), "here") == names


@pytest.mark.parametrize(
    ("cell", "meant"),
    [
        ("['a.wav' 'b.wav']", ["a.wav", "b.wav"]),
        ("['a.wav'\n 'b.wav'\r\n \"c's.wav\"]", ["a.wav", "b.wav", "c's.wav"]),
        ("['' 'a.wav' None]", ["", "a.wav", None]),
        ("[None 'a, b.wav']", [None, "a, b.wav"]),
        ("[ 'it\\'s \"x\"\\n.wav'\t'a\\\\b.wav' ]", ['it\'s "x"\n.wav', "a\\b.wav"]),
    ],
)
def test_an_array_as_numpy_prints_it_is_a_list(folder: Path, cell: str, meant: list[object]) -> None:
    assert media(folder, cell) == [meant]


def test_arrays_as_pandas_writes_them_are_lists(folder: Path) -> None:
    # Given lists of texts that were Parquet, of which some are longer than numpy's lines
    lists = [
        ["a.wav", "b.wav"],
        ["it's here.wav", 'say "x".wav', "both ' and \".wav", "back\\slash.wav", "new\nline.wav", "a' 'b.wav"],
        [f"/data/recordings/call {number}.wav" for number in range(40)],
        ["a.wav", None],
        ["a.wav"],
        [],
    ]
    pd.DataFrame({"audio": lists}).to_parquet(folder / "t.parquet")
    # When pandas writes them as CSV
    pd.read_parquet(folder / "t.parquet").to_csv(folder / "t.csv", index=False)
    assert "['a.wav' 'b.wav']" in (folder / "t.csv").read_text()
    # Then a transcription hears each of them
    table = Table.first_entry("t.csv")
    for kind in FORMATS:
        rows = holders.requests(holders.load(table, kind, "audio"), "audio", table.path)
        assert [row["audio"] for row in rows] == lists


@pytest.mark.parametrize(
    "cell",
    [
        "['a.wav' 'b.wav', 'c.wav']",
        "['a.wav', 'b.wav' 'c.wav']",
        "['a.wav'\r'b.wav', 'c.wav']",
        "['a.wav' # one\n 'b.wav', 'c.wav']",
        "['it''s.wav']",
        "[r'a.wav' 'b.wav']",
        "[['a.wav' 'b.wav']]",
        str(np.array([f"{number}.wav" for number in range(2000)], dtype=object)),
    ],
)
def test_a_list_that_is_not_clear_is_refused_with_its_row(folder: Path, cell: str) -> None:
    with pytest.raises(UsageError, match=r"t\.csv: row 1: column 'audio' holds .*write it as JSON, \[") as caught:
        media(folder, "['a.wav']", cell)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 450


@pytest.mark.parametrize(
    ("cell", "meant"),
    [
        ('["a.wav", null]', ["a.wav", None]),
        ("['a.wav', None]", ["a.wav", None]),
        ("['a.wav',\n 'b.wav',\r\n 'c.wav',]", ["a.wav", "b.wav", "c.wav"]),
        ("['''a''', \"b' 'c\"]", ["a", "b' 'c"]),
        ("['a.wav' ]", ["a.wav"]),
    ],
)
def test_lists_with_commas_are_read_as_ever(folder: Path, cell: str, meant: list[object]) -> None:
    assert media(folder, cell) == [meant]


@pytest.mark.parametrize(
    "name",
    [
        "[live] a.wav",
        "['Live' 'Take 2'] a.wav",
        "['Live'] a.wav",
        "[a.wav b.wav]",
        "[None None]",
        "[1 2].wav",
        "['a.wav' b.wav]",
        "['a.wav' 'b.wav'",
        "'a.wav' 'b.wav'",
        "('a.wav' 'b.wav')",
        "['a\\x.wav' 'b.wav']",
        " ['a.wav' 'b.wav']",
        "[",
    ],
)
def test_names_that_look_like_lists_stay_names(folder: Path, name: str) -> None:
    assert media(folder, name) == [name]

"""Tables as CSV. It has no types, so what is kept is the text of every cell.

Written: null is an empty cell, an empty text is ``""``, a list or object its JSON. Read: a column becomes numbers only
where each of them would be written as the very text that stands there ("007", "1.50" and "1e5" stay text).
"""

from __future__ import annotations

import ast
import csv
import io
import json
import math
import re
import tokenize
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

from producer.dataflow import optional
from producer.dataflow.frames import Row, column_names, is_missing, plain
from producer.errors import UsageError

_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,4000}")
_SPECIAL = re.compile(r'[",\r\n]|^\s|\s$')
#: An entry of an array of texts as numpy prints it, also for null, and for the many that it leaves out of a long one.
_ENTRY = re.compile(r"""'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*"|None|\.\.\.""")
#: Two entries or more with nothing but space between, one of them a text. An array of one is printed as a list is.
_PRINTED = re.compile(rf"""\[(?=[^\]]*['"])\s*(?:{_ENTRY.pattern})(?:\s+(?:{_ENTRY.pattern}))+\s*\]""")
#: What pyarrow counts in 32 bits.
_MOST_BLOCK_BYTES = 2**31 - 1


def read(path: Path) -> list[Row]:
    """The rows of a CSV file, whole in memory. Raises UsageError for one that is damaged."""
    names, blank_lines = _header(path)
    if not names:
        return []
    pa, pacsv = optional.pyarrow("csv"), optional.pyarrow_csv()
    try:
        table = pacsv.read_csv(
            path,
            # No row may be longer than two blocks, and a transcript's segments are one cell: the file is one block.
            read_options=pacsv.ReadOptions(
                skip_rows=blank_lines, block_size=min(_MOST_BLOCK_BYTES, max(1, path.stat().st_size))
            ),
            # A null in a table of one column is an empty line.
            parse_options=pacsv.ParseOptions(newlines_in_values=True, ignore_empty_lines=len(names) > 1),
            convert_options=pacsv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
                null_values=[""],
            ),
        )
    except pa.ArrowInvalid as error:
        raise UsageError(f"{path}: not valid CSV ({str(error).splitlines()[0]}): make the file again") from None
    columns = [_typed(table.column(name).to_pylist()) for name in names]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def chunks(rows: list[Row], names: list[str] | None = None) -> Iterator[bytes]:
    """The file's bytes, line by line. Raises UsageError for text that is not valid in UTF-8."""
    names = names or column_names(rows)
    if not names:
        return
    yield _line(names, "the header")
    for number, row in enumerate(rows):
        yield _line([row.get(name) for name in names], f"row {number}")


def listed(value: Any, where: str) -> Any:
    """A media cell as it was meant: a list that was written as JSON, or as Python or numpy shows one, is a list again.

    Raises UsageError, which begins with ``where``, for a list that lacks commas or entries.
    """
    if not isinstance(value, str) or not value.startswith("["):
        return value
    for parse in (json.loads, _printed, ast.literal_eval):
        try:
            found = parse(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, list):
            if ... in found or (parse is ast.literal_eval and _lacks_commas(value)):
                raise UsageError(
                    f"{where} holds {repr(value)[:200]}, a list that lacks commas or entries: "
                    'write it as JSON, ["a.wav", "b.wav"]'
                )
            return found
    return value


def number_of(value: Any) -> Any:
    """The number that a cell's text says, or the cell as it is."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def text_of(value: Any) -> Any:
    """The text of a cell that was read as a number or truth value, or the cell as it is."""
    return repr(value) if isinstance(value, int | float) else value


def _header(path: Path) -> tuple[list[str], int]:
    """The names of the columns, and how many blank lines are before them. No names: there is nothing else."""
    names: list[str] = []
    blank_lines = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            for line in handle:
                if line.strip(" \t\r\n"):
                    names = next(csv.reader(chain([line], handle)))
                    break
                blank_lines += 1
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not valid UTF-8: save the file as UTF-8") from None
    except csv.Error as error:
        raise UsageError(f"{path}:{blank_lines + 1}: not valid CSV ({error})") from None
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{path}:{blank_lines + 1}: two columns are named {twice!r}: rename one")
    return names, blank_lines


def _printed(text: str) -> list[Any]:
    """The texts of a numpy array as it was printed. Raises ValueError and SyntaxError for what is none."""
    if not _PRINTED.fullmatch(text):
        raise ValueError
    return [ast.literal_eval(found[0]) for found in _ENTRY.finditer(text)]


def _lacks_commas(text: str) -> bool:
    """Whether Python would make one text of two that stand side by side. ``text`` is valid in Python."""
    tokens = tokenize.generate_tokens(io.StringIO(text, newline=None).readline)
    kinds = [token.type for token in tokens if token.type not in (tokenize.NL, tokenize.COMMENT)]
    return (tokenize.STRING, tokenize.STRING) in pairwise(kinds)


def _typed(texts: list[str | None]) -> list[Any]:
    found = [text for text in texts if text is not None]
    for kind in (_boolean, _number):
        if found and all(kind(text) is not None for text in found):
            return [None if text is None else kind(text) for text in texts]
    return texts


def _boolean(text: str) -> bool | None:
    return {"True": True, "False": False}.get(text)


def _number(text: str) -> int | float | None:
    if _INTEGER.fullmatch(text):
        return int(text)
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and repr(number) == text else None


def _line(cells: Sequence[Any], where: str) -> bytes:
    line = ",".join(_cell(value, where) for value in cells) + "\n"
    try:
        return line.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError(f"{where}: half a character (a lone surrogate), which CSV cannot hold") from None


def _cell(value: Any, where: str) -> str:
    if is_missing(value):
        return ""
    value = plain(value, where)
    write: Callable[[Any], str] = repr if isinstance(value, float) else str
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else write(value)
    return '"' + text.replace('"', '""') + '"' if not text or _SPECIAL.search(text) else text

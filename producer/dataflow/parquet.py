"""Tables as Parquet: one type a column, and no column that only some rows have."""

from __future__ import annotations

from operator import is_
from pathlib import Path
from typing import Any, BinaryIO

from producer.columns import DETAILS, Columns
from producer.dataflow import optional
from producer.dataflow.frames import Row, column_names, nulled
from producer.errors import UsageError

_ADVICE = "a Parquet column has one type: make it one, or take cache_type='jsonl'"


def read(path: Path) -> Any:
    """The pyarrow Table in a file, whole in memory. Raises UsageError for one that is none."""
    pa, pq = optional.pyarrow("parquet"), optional.pyarrow_parquet()
    try:
        with pq.ParquetFile(path) as file:
            return file.read()
    except pa.ArrowException as error:
        raise UsageError(f"{path}: not a Parquet file ({str(error).splitlines()[0]}): make the file again") from None


def write(table: Any, handle: BinaryIO) -> None:
    """Write a pyarrow Table to an open file."""
    optional.pyarrow_parquet().write_table(table, handle)


def frame_of(table: Any) -> Any:
    """A DataFrame of the table: whole numbers stay whole beside nulls, and lists are Python's."""
    pa, pd = optional.pyarrow("parquet"), optional.pandas()
    frame = table.to_pandas(integer_object_nulls=True)
    for at, field in enumerate(table.schema):
        if pa.types.is_nested(field.type) and field.name in frame.columns:
            frame[field.name] = pd.Series(table.column(at).to_pylist(), index=frame.index, dtype=object)
    return frame


def of_frame(frame: Any) -> Any:
    """A pyarrow Table with the columns of a DataFrame."""
    pa, pd = optional.pyarrow("parquet"), optional.pandas()
    frame = frame.copy(deep=False)  # the columns change, not the caller's table
    for at, kind in enumerate(frame.dtypes):
        if pd.api.types.is_object_dtype(kind):
            column = frame.iloc[:, at]
            values = [nulled(value) for value in column]
            if not all(map(is_, values, column)):
                frame.isetitem(at, pd.Series(values, index=frame.index, dtype=object))
    try:
        return pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise UsageError(f"cache_type 'parquet': {_first_line(error)}: {_ADVICE}") from None


def of_rows(rows: list[Row]) -> Any:
    """A pyarrow Table with the values of ``rows``; a key that a row does not have is null."""
    pa = optional.pyarrow("parquet")
    columns = {}
    for name in column_names(rows):
        values = [nulled(row.get(name)) for row in rows]
        try:
            columns[name] = pa.array(values, from_pandas=True)  # in arrays too NaN is null
        except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
            raise UsageError(f"cache_type 'parquet': column {name!r}: {_first_line(error)}: {_ADVICE}") from None
    return pa.table(columns)


def with_answers(table: Any, answers: dict[str, list[Any]], columns: Columns) -> Any:
    """``table`` with the columns of a transcription. Where a row has a list of answers, all rows have one."""
    pa = optional.pyarrow("parquet")
    kept = table.drop_columns([name for name in table.column_names if name in columns.family()])
    lists = any(isinstance(value, list) for value in answers[columns.output_key])
    types = _types(columns)
    texts = answers[columns.output_key]
    for name, values in answers.items():
        kind = types[name]
        if lists:
            kind = pa.list_(kind)
            values = [value if isinstance(text, list) else [value] for value, text in zip(values, texts, strict=True)]
        kept = kept.append_column(name, pa.array(values, type=kind))
    return kept


def _types(columns: Columns) -> dict[str, Any]:
    pa = optional.pyarrow("parquet")
    text, number = pa.string(), pa.float64()
    others = {"language": text, "model": text, "flags": pa.list_(text), "attempts": pa.int64()}
    return {
        columns.output_key: text,
        f"{columns.output_key}_segments": pa.list_(pa.struct({"start": number, "end": number, "text": text})),
        columns.error_column: pa.struct({"type": text, "message": text}),
        f"{columns.output_key}_details": pa.struct({name: others.get(name, number) for name in DETAILS}),
    }


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__

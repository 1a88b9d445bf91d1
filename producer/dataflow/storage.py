"""DataFlow's FileStorage: a table on disk that every operator reads and writes one step further."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any, Literal

from producer.cache import Step, check_writable
from producer.dataflow import frames, optional, tables
from producer.dataflow.paths import FORMATS, Format, Table, set_aside
from producer.dataflow.words import arguments_named
from producer.errors import UsageError


class FileStorage:
    """The steps of one pipeline. A storage of step *k* reads step *k* and writes step *k* + 1.

    Step 0 is the file ``first_entry_file_name``, which is never written; step *n* is
    ``{cache_path}/{file_name_prefix}_step{n}.{cache_type}``. Relative paths, in the rows too, start at the working
    directory. ``step()`` counts: call it once for each operator, as DataFlow's pipelines do.

    ``read`` and ``write`` are for operators between transcriptions and hold the whole table in memory; transcriptions
    of ``jsonl`` do not use them. With ``jsonl`` and ``json`` all values survive as they are. CSV keeps text, Parquet
    has one type a column, and a pickle is only read where this user wrote it.

    ``media_key`` names the column with the recordings; ``media_type`` has to be "audio". Raises UsageError for
    arguments that no pipeline can have.
    """

    def __init__(
        self,
        first_entry_file_name: str,
        cache_path: str = "./cache",
        file_name_prefix: str = "dataflow_cache_step",
        cache_type: Format = "jsonl",
        media_key: str = "audio",
        media_type: str = "audio",
    ) -> None:
        if cache_type not in FORMATS:
            raise UsageError(f"cache_type {cache_type!r}: must be one of {', '.join(FORMATS)}")
        if media_type != "audio":
            raise UsageError(f"media_type {media_type!r}: only 'audio' is transcribed")
        if not media_key:
            raise UsageError("media_key is empty: name the column that holds the audio paths")
        self.first_entry_file_name = os.fspath(first_entry_file_name)
        self.cache_path = os.fspath(cache_path)
        self.file_name_prefix = file_name_prefix
        self.cache_type: Format = cache_type
        self.media_key = media_key
        self.media_type = media_type
        self.operator_step = -1
        with arguments_named():
            Step(Path(self.cache_path), file_name_prefix, 1)

    def step(self) -> FileStorage:
        """Count one operator further; the storage of that operator's step, which stays at it."""
        self.operator_step += 1
        return copy.copy(self)

    def reset(self) -> FileStorage:
        """Count from the beginning again."""
        self.operator_step = -1
        return self

    def table(self) -> Table | None:
        """The table that this step reads, None for the empty one (``first_entry_file_name=""``).

        Raises UsageError where it is missing, or `step` was never called.
        """
        if self.operator_step < 0:
            raise UsageError("call storage.step() once for each operator, before it reads or writes")
        if self.operator_step == 0:
            return Table.first_entry(self.first_entry_file_name) if self.first_entry_file_name else None
        return Table(str(self._path(self.operator_step)), self.cache_type).check_there()

    def target(self) -> Path:
        """The file that this step writes. Raises UsageError where that is the pipeline's own input."""
        if self.operator_step < 0:
            raise UsageError("call storage.step() once for each operator, before it reads or writes")
        path = self._path(self.operator_step + 1)
        if self.first_entry_file_name and path.resolve() == Path(self.first_entry_file_name).resolve():
            raise UsageError(
                f"{path}: step {self.operator_step + 1} would overwrite the input: choose another file_name_prefix"
            )
        return path

    def read(self, output_type: Literal["dataframe", "dict"] = "dataframe") -> Any:
        """The whole table of this step, as a DataFrame (needs pandas) or a list of dicts.

        In a DataFrame, null is None and a key that a row does not have is NaN. Raises UsageError for a damaged line,
        with its number, and for a table that is not there.
        """
        if output_type not in ("dataframe", "dict"):
            raise UsageError(f"output_type {output_type!r}: must be 'dataframe' or 'dict'")
        if output_type == "dataframe":
            optional.pandas()
        table = self.table()
        if table is None:
            return frames.frame_of([]) if output_type == "dataframe" else []
        return tables.read_frame(table) if output_type == "dataframe" else tables.read_rows(table, self.media_key)

    def write(self, data: Any) -> str:
        """Write a DataFrame or a list of dicts as the next step, at once; the path of its file.

        NaN, NaT and NA leave their key out (null in the media column and in lists); None is null. Times become text in
        ISO 8601 where the format has none. A transcription that is there already is moved away, to
        ``{prefix}_step{n}.before1``, and never overwritten. Raises UsageError for data that is no table, or that the
        format cannot hold.
        """
        path = self.target()
        with arguments_named():
            check_writable(path.parent)
            with set_aside(path):
                self._write(path, data)
        return str(path)

    def get_keys_from_dataframe(self) -> list[str]:
        """The columns of this step's table."""
        return [str(name) for name in self.read("dataframe").columns]

    def __repr__(self) -> str:
        return (
            f"FileStorage({self.first_entry_file_name!r}, {self.cache_path!r}, {self.file_name_prefix!r}, "
            f"{self.cache_type!r}, operator_step={self.operator_step})"
        )

    def _write(self, path: Path, data: Any) -> None:
        if isinstance(data, list):
            wrong = next((row for row in data if not isinstance(row, dict)), None)
            if wrong is not None:
                raise UsageError(f"storage.write: a list of dicts or a DataFrame, not of {type(wrong).__name__}")
            tables.write_given(path, self.cache_type, data, self.media_key)
        elif hasattr(data, "iloc") and hasattr(data, "columns"):
            tables.write_frame(path, self.cache_type, data, self.media_key)
        else:
            raise UsageError(f"storage.write: a list of dicts or a DataFrame, not {type(data).__name__}")

    def _path(self, number: int) -> Path:
        return Path(self.cache_path).absolute() / f"{self.file_name_prefix}_step{number}.{self.cache_type}"

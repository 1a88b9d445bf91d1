"""A pipeline of one step, here and as a program of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from job_files import read_rows, write_rows

from fleet import Fleet
from producer.dataflow import FileStorage

#: A pipeline of one step as a program.
PROGRAM = """
from producer.dataflow import *
storage = FileStorage("data.jsonl", file_name_prefix="p")
WhisperTranscriptionGenerator(LocalModelLLMServing_vllm()).run(storage.step())
"""


def storage_of(folder: Path, *rows: object, kind: str = "jsonl") -> FileStorage:
    write_rows(folder / "data.jsonl", rows)
    return FileStorage("data.jsonl", file_name_prefix="p", cache_type=kind).step()  # type: ignore[arg-type]


def result(folder: Path, step: int = 1) -> list[dict[str, Any]]:
    return read_rows(folder / "cache" / f"p_step{step}.jsonl")


def program(folder: Path, fleet: Fleet, **changes: str) -> subprocess.Popen[str]:
    environment = fleet.environment(**changes)
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM], env=environment, cwd=folder, text=True, stdout=-1, stderr=-1
    )

"""`make demo`: the main job on the samples, on a fleet of its own; and the same with two tensor-parallel ranks."""

from __future__ import annotations

import re
import shlex
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from fleet import clean_environment, run_cli
from rows import SAMPLES, read_rows
from scoring import word_error_rate
from workers.dtype import computes_int8

ROOT = SAMPLES.parent.parent


class Outcome(NamedTuple):
    rows: list[dict[str, Any]]
    stdout: str
    stderr: str
    folder: Path
    left: list[str]  #: of its sockets and folders in the temporary folder


def demo_arguments() -> list[str]:
    """What `make demo` runs, read from the Makefile."""
    (line,) = re.findall(r"^\t\.venv/bin/whisper-fleet (run .*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return shlex.split(line)


def run_demo(folder: Path, *extra: str, **environment: str) -> Outcome:
    arguments = [*demo_arguments(), "--cache-path", str(folder / "cache"), *extra]
    # Not inside `folder`: a socket's path has to be short.
    with tempfile.TemporaryDirectory() as temporary:
        environment["TMPDIR"] = temporary
        done = run_cli(*arguments, environment=clean_environment(**environment), cwd=ROOT, timeout=500)
        # Libraries keep caches and notes of their own there; what the fleet and its processes talk through has to go.
        found = Path(temporary).rglob("*")
        left = [path.name for path in found if path.is_socket() or path.name.startswith(("wf-", "whisper-fleet"))]
    assert done.returncode == 0, done.stderr
    step = Path(done.stdout.splitlines()[-1])
    return Outcome(read_rows(step), done.stdout, done.stderr, folder, left)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return run_demo(tmp_path_factory.mktemp("demo"))


def test_demo_prints_a_table_and_then_the_step_files_path(demo: Outcome) -> None:
    *table, last = demo.stdout.splitlines()
    assert last == str(demo.folder / "cache" / "samples_step1.jsonl")
    for row in demo.rows:
        assert any(row["audio"][0] in line for line in table)
    assert "10 rows, 0 failed" in demo.stderr


def test_demo_hears_what_was_said_in_every_language(demo: Outcome) -> None:
    spoken = [row for row in demo.rows if row["spoken_text"]]
    assert [row["transcription_details"]["language"] for row in spoken] == [row["spoken_language"] for row in spoken]
    english = [row for row in spoken if row["spoken_language"] == "en"]
    assert word_error_rate([row["spoken_text"] for row in english], [row["transcription"] for row in english]) < 0.15
    others = [row for row in spoken if row["spoken_language"] in ("de", "es", "fr")]
    assert word_error_rate([row["spoken_text"] for row in others], [row["transcription"] for row in others]) < 0.4
    (mandarin,) = [row for row in spoken if row["spoken_language"] == "zh"]
    assert "今天" in mandarin["transcription"]


def test_demo_keeps_a_long_recording_whole(demo: Outcome) -> None:
    (row,) = [row for row in demo.rows if row["transcription_details"]["duration"] > 60]
    words = row["transcription"].lower()
    # Said in the first, a middle and the last window.
    assert words.startswith("good morning and welcome")
    assert "school class" in words
    assert words.endswith("good night.")


def test_demo_writes_nothing_over_silence(demo: Outcome) -> None:
    (silent,) = [row for row in demo.rows if row["spoken_text"] == ""]
    assert silent["transcription"] == ""
    assert silent["transcription_details"]["flags"] == ["no_speech"]


def test_demo_passes_the_other_columns_through(demo: Outcome) -> None:
    given = read_rows(SAMPLES / "samples.jsonl")
    assert [{key: row[key] for key in given[0]} for row in demo.rows] == given


def test_demo_leaves_no_process_behind(demo: Outcome) -> None:
    left = [
        process.cmdline()
        for process in psutil.process_iter()
        if str(demo.folder) in " ".join(_arguments_and_folder(process))
    ]
    assert left == []


def test_demo_leaves_no_socket_or_folder_behind(demo: Outcome) -> None:
    assert demo.left == []


def test_two_tensor_parallel_ranks_hear_nearly_the_same_on_a_machine_without_a_compiler(
    demo: Outcome, tmp_path: Path
) -> None:
    """A fresh one has none, and nothing that was compiled before."""
    compiled = tmp_path / "compiled"
    nothing = {"CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(compiled)}
    both = run_demo(tmp_path, "--tensor-parallel-size", "2", **nothing)
    assert both.left == []
    assert not list(compiled.rglob("*.so"))
    # Sums over two ranks are rounded on their own: in bfloat16 that decides between words that are as likely.
    texts = [[row["transcription"] for row in outcome.rows] for outcome in (demo, both)]
    assert word_error_rate(*texts) < 0.1


def test_eight_bit_layers_hear_nearly_the_same_or_are_refused(demo: Outcome, tmp_path: Path) -> None:
    if not computes_int8():  # such a CPU would get them wrong (tests/workers/test_int8_kernel.py)
        with pytest.raises(
            AssertionError, match="WHISPER_QUANTIZATION is int8, which this CPU computes neither exactly"
        ):
            run_demo(tmp_path, WHISPER_QUANTIZATION="int8", WHISPER_MODEL_CACHE=str(tmp_path))
        return
    rounded = run_demo(tmp_path, WHISPER_QUANTIZATION="int8", WHISPER_MODEL_CACHE=str(tmp_path))
    assert list((tmp_path / "whisper-fleet" / "models").glob("whisper-base-*-int8"))
    texts = [[row["transcription"] for row in outcome.rows] for outcome in (demo, rounded)]
    assert word_error_rate(*texts) < 0.1


def _arguments_and_folder(process: psutil.Process) -> list[str]:
    try:
        files = (file.path for file in process.open_files())  # the log: who has a title of its own shows no environment
        return [*process.cmdline(), process.cwd(), *process.environ().values(), *files]
    except psutil.Error:
        return []

"""The examples of the README and of producer/examples do what they say, on fleets of their own and on a shared one."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from job_files import processes_at, read_rows, wait_for_none, write_rows

import producer
from fleet import Fleet, clean_environment, free_port
from producer import FleetError, FleetUnavailableError, Transcript, TranscriptionError, UsageError

README = Path(__file__).parents[2] / "README.md"
EXAMPLES = Path(producer.__file__).parent / "examples"


#: An application's own checks of what `submit_many` gives: for texts and paths, as for `transcribe`, a Transcript.
TYPED = """
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, assert_type

from producer import AsyncClient, Client, FleetError, Transcript, TranscriptionError
from producer.calls import Outcome

One = Transcript | TranscriptionError | FleetError

def calls(client: Client, paths: Iterator[Path], mixed: list[str | Path], rows: list[dict[str, Any]]) -> None:
    for path, one in client.submit_many(paths, channels="mix", language="en", window=3):
        assert_type((path, one), tuple[Path, One])
    for either, one in client.submit_many(mixed):
        assert_type((either, one), tuple[str | Path, One])
    for text, outcome in client.submit_many(["call.wav"], channels="split"):
        assert_type((text, outcome), tuple[str, Outcome])
    for row, outcome in client.submit_many(rows):
        assert_type((row, outcome), tuple[dict[str, Any], Outcome])
    for several, outcome in client.submit_many([["a.wav", "b.wav"]]):
        assert_type((several, outcome), tuple[list[str], Outcome])

async def calls_of_asyncio(client: AsyncClient, paths: AsyncIterator[Path], rows: list[dict[str, Any]]) -> None:
    async for path, one in client.submit_many(paths, task="translate"):
        assert_type((path, one), tuple[Path, One])
    async for text, one in client.submit_many(["call.wav"], channels="mix", timestamps=True):
        assert_type((text, one), tuple[str, One])
    async for text, outcome in client.submit_many(["call.wav"], channels="split"):
        assert_type((text, outcome), tuple[str, Outcome])
    async for row, outcome in client.submit_many(rows):
        assert_type((row, outcome), tuple[dict[str, Any], Outcome])
"""


def python_of_readme() -> str:
    section = README.read_text(encoding="utf-8").partition("### Enqueueing from other applications\n")[2]
    found = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_readme_s_python_runs_on_a_fleet_of_its_own(alone: dict[str, str], samples: Path, tmp_path: Path) -> None:
    shutil.copy(samples / "en_train.flac", tmp_path / "call.wav")
    write_rows(tmp_path / "data.jsonl", [{"audio": "call.wav", "id": 1}])

    done = subprocess.run(
        [sys.executable, "-c", python_of_readme()],
        env=alone,
        cwd=tmp_path,
        text=True,
        capture_output=True,
        timeout=300,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    first, *others, path = done.stdout.splitlines()
    text = re.match(r"stand-in \w{8}", first)
    assert text is not None
    assert "[Segment(start=" in first
    assert sorted(others) == [f"call.wav {text[0]}", f"missing.wav {tmp_path}/missing.wav: no such file on this worker"]
    assert Path(path) == tmp_path / "cache" / "data_step1.jsonl"
    assert [row["transcription"] for row in read_rows(Path(path))] == [text[0]]
    wait_for_none(lambda: processes_at(Path(alone["TMPDIR"])))
    assert list(Path(alone["TMPDIR"]).glob("whisper-fleet-*")) == []


def test_the_readme_s_python_and_what_many_calls_give_have_types(tmp_path: Path) -> None:
    files = [tmp_path / "readme.py", tmp_path / "typed.py"]
    for file, text in zip(files, (python_of_readme(), TYPED), strict=True):
        file.write_text(text)

    # From the repository's root: with the settings of its own check, and what that has found out already.
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", *map(str, files)],
        cwd=README.parent,
        text=True,
        capture_output=True,
        timeout=300,
        check=False,
    )

    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_script_writes_a_line_a_recording(standin_fleet: Fleet, samples: Path) -> None:
    sources = [str(samples / "en_train.flac"), str(samples / "no_such.wav"), str(samples / "silence.flac")]

    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "script.py"), *sources],
        env=standin_fleet.environment(),
        text=True,
        capture_output=True,
        timeout=300,
        check=False,
    )

    assert done.returncode == 1, done.stderr
    texts = {line.split("\t")[0]: line.split("\t")[2] for line in done.stdout.splitlines()}
    assert set(texts) == {sources[0], sources[2]}
    assert texts[sources[0]].startswith("stand-in ")
    assert texts[sources[2]] == ""
    assert done.stderr.startswith(f"{sources[1]}: file_not_found: ")


def test_the_script_says_in_a_line_that_there_is_no_fleet() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "script.py"), "call.wav"],
        env=clean_environment(REDIS_URL=f"redis://127.0.0.1:{free_port()}"),
        text=True,
        capture_output=True,
        timeout=300,
        check=False,
    )

    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "does not answer" in line


def fastapi_app(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of that example."""
    spec = importlib.util.spec_from_file_location("fastapi_app", EXAMPLES / "fastapi_app.py")
    assert spec is not None
    assert spec.loader is not None
    monkeypatch.setitem(sys.modules, "fastapi_app", module := importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    return module


def test_the_web_service_answers_with_transcripts_and_errors(
    standin_fleet: Fleet, samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in standin_fleet.environment().items():
        monkeypatch.setenv(name, value)
    module = fastapi_app(monkeypatch)

    async def run() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=module.app)
        async with (
            module.app.router.lifespan_context(module.app),
            httpx.AsyncClient(transport=transport, base_url="http://service") as web,
        ):
            bodies = [
                {"audio": str(samples / "en_train.flac"), "timestamps": True, "language": "German"},
                {"audio": str(samples / "no_such.wav")},
                {"audio": "/a.wav", "language": "Klingon"},
                {"file": "/a.wav"},
            ]
            return await asyncio.gather(*(web.post("/transcribe", json=body, timeout=300) for body in bodies))

    good, missing, refused, malformed = asyncio.run(run())
    assert good.status_code == 200
    transcript = Transcript.model_validate_json(good.text)
    assert (transcript.language, bool(transcript.segments)) == ("de", True)
    assert (missing.status_code, missing.json()["type"]) == (422, "file_not_found")
    assert (refused.status_code, refused.json()["type"]) == (422, "unknown_language")
    assert malformed.status_code == 422
    assert json.loads(malformed.text)["detail"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (TranscriptionError("engine_timeout", "a.wav: no answer"), 503),
        (TranscriptionError("worker_error", "MemoryError: "), 503),
        (TranscriptionError("not_audio", "a.wav: no audio"), 422),
        (UsageError("start_s: must be a finite number of seconds"), 422),
        (FleetUnavailableError("redis://here does not answer"), 503),
    ],
)
def test_the_web_service_says_whose_fault_it_is(
    monkeypatch: pytest.MonkeyPatch, error: TranscriptionError | FleetError, status: int
) -> None:
    answer = asyncio.run(fastapi_app(monkeypatch).explain(None, error))
    assert (answer.status_code, json.loads(answer.body)["type"]) == (status, error.type)

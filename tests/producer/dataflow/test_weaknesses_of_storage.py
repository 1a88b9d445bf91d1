"""What goes wrong in DataFlow's FileStorage and its ways to resume, and does not here: tests named after the faults."""

from __future__ import annotations

import signal
from pathlib import Path

import pandas as pd
import pytest
from job_files import speech_rows, write_rows
from one_step import program, result, storage_of

from fleet import Fleet, ended, wait_for
from producer.cache import Step
from producer.dataflow import FileStorage, LocalModelLLMServing_vllm, WhisperTranscriptionGenerator
from producer.errors import UsageError
from producer.journal import Journal


def test_a_crash_loses_rows_or_doubles_them(slow_fleet: Fleet, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a pipeline that was killed in the middle
    rows = 60
    speech_rows(folder, rows)
    step = Step(folder / "cache", "p", 1)

    def answered() -> int:
        found = Journal.read_answered(step.journal_path, rows)
        return sum(row in found for row in range(rows))

    with ended(program(folder, slow_fleet, WHISPER_WINDOW_ROWS="4", WHISPER_CHUNK_ROWS="1")) as process:
        wait_for(lambda: answered() >= 4)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    assert answered() < rows
    assert not step.path.exists(), "no half of a file"
    # When the same pipeline runs again
    monkeypatch.setenv("REDIS_URL", slow_fleet.url)
    before = step.journal_path.read_bytes()
    storage = FileStorage("data.jsonl", file_name_prefix="p").step()
    generator = WhisperTranscriptionGenerator(LocalModelLLMServing_vllm())
    generator.run(storage)
    # Then every row is there once, and nothing that was answered was lost
    assert before
    assert [row["id"] for row in result(folder)] == list(range(rows))
    assert all(row["transcription"].startswith("stand-in") for row in result(folder))


def test_a_finished_run_is_skipped_in_silence(
    generator: WhisperTranscriptionGenerator, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    storage = storage_of(folder, {"audio": "a.wav"})
    assert generator.run(storage) == "transcription"
    before = (folder / "cache" / "p_step1.jsonl").stat()
    capfd.readouterr()
    assert generator.run(storage) == "transcription"
    assert f"{folder / 'cache' / 'p_step1.jsonl'} is complete already" in capfd.readouterr().err
    assert (folder / "cache" / "p_step1.jsonl").stat().st_mtime_ns == before.st_mtime_ns


def test_another_input_or_option_is_mixed_into_the_old_output(
    generator: WhisperTranscriptionGenerator, folder: Path
) -> None:
    generator.run(storage_of(folder, {"audio": "a.wav"}))
    with pytest.raises(UsageError, match=r"the input has changed .*1 rows then, 2 now"):
        generator.run(storage_of(folder, {"audio": "a.wav"}, {"audio": "a.wav"}))
    with pytest.raises(UsageError, match="language was 'en', now 'zh'"):
        generator.run(storage_of(folder, {"audio": "a.wav"}), language="mandarin")
    assert len(result(folder)) == 1


def test_two_processes_on_one_prefix_overwrite_each_other(slow_fleet: Fleet, folder: Path) -> None:
    # Given two programs that make the same step at the same time
    speech_rows(folder, 12)
    with ended(program(folder, slow_fleet)) as first, ended(program(folder, slow_fleet)) as second:
        said = [process.communicate(timeout=120)[1] for process in (first, second)]
    # Then one of them did it, the other waited for it or found it done, and every row was done once
    assert (first.returncode, second.returncode) == (0, 0), said
    assert [row["id"] for row in result(folder)] == list(range(12))


def test_the_reader_changes_ids_dates_and_floats(generator: WhisperTranscriptionGenerator, folder: Path) -> None:
    row = {
        "id": "007",
        "n": "1.50",
        "e": "1e5",
        "date": "2024-01-01",
        "f": 0.12345678901234568,
        "big": 2**80,
        "u": "ü/ö",
    }
    storage = storage_of(folder, {"audio": "a.wav", **row}, {"audio": "a.wav"})
    frame = storage.read()
    assert {name: frame[name].iloc[0] for name in row} == row
    storage.write(frame)
    text = (folder / "cache" / "p_step1.jsonl").read_text()
    assert "ü/ö" in text, "neither escaped nor with a backslash"
    assert result(folder) == [{"audio": "a.wav", **row}, {"audio": "a.wav"}], "what is not there stays away"
    generator.run(storage, force=True)
    (first, second) = result(folder)
    assert {name: first[name] for name in row} == row
    assert list(second) == ["audio", "transcription"]


def test_a_malformed_line_is_skipped_or_nobody_says_which(
    generator: WhisperTranscriptionGenerator, folder: Path
) -> None:
    (folder / "data.jsonl").write_text('{"audio": "a.wav"}\n\n{"audio": \n{"audio": "a.wav"}\n')
    storage = FileStorage("data.jsonl").step()
    for read in (storage.read, lambda: generator.run(storage)):
        with pytest.raises(UsageError, match=r"data\.jsonl:3: not valid JSON"):
            read()
    assert not (folder / "cache").exists()


def test_the_source_file_is_overwritten(generator: WhisperTranscriptionGenerator, folder: Path) -> None:
    source = write_rows(folder / "p_step1.jsonl", [{"audio": "a.wav"}])
    before = source.read_bytes()
    storage = FileStorage("p_step1.jsonl", cache_path=".", file_name_prefix="p").step()
    for write in (lambda: storage.write([{"audio": "b.wav"}]), lambda: generator.run(storage, force=True)):
        with pytest.raises(UsageError, match="would overwrite the input"):
            write()
    assert source.read_bytes() == before


def test_empty_tables_cannot_be_written_or_read_again(generator: WhisperTranscriptionGenerator, folder: Path) -> None:
    for kind in ("jsonl", "json"):
        write_rows(folder / "data.jsonl", [])
        for data in ([], pd.DataFrame()):
            storage = FileStorage("data.jsonl", file_name_prefix=kind, cache_type=kind)  # type: ignore[arg-type]
            storage.step().write(data)
            assert storage.step().read("dict") == []
    generator.run(FileStorage("data.jsonl", file_name_prefix="p").step())
    assert result(folder) == []


def test_half_characters_break_the_file(folder: Path) -> None:
    storage = storage_of(folder, {"audio": "a.wav"})
    storage.write([{"audio": "a.wav", "text": "half \ud83d"}, {"audio": "b.wav"}])
    assert result(folder) == [{"audio": "a.wav", "text": "half \ud83d"}, {"audio": "b.wav"}]
    storage.operator_step = 1
    storage.write(storage.read())
    assert result(folder, 2) == result(folder)


def test_lists_become_text_in_csv(generator: WhisperTranscriptionGenerator, folder: Path) -> None:
    storage = storage_of(folder, {"audio": ["a.wav"]}, kind="csv")
    generator.run(storage)
    again = FileStorage("data.jsonl", file_name_prefix="p", cache_type="csv")
    again.operator_step = 1
    generator.run(again, task="translate", output_key="english")
    again.operator_step = 2
    (row,) = again.read("dict")
    assert row["english"] == row["transcription"]
    assert row["english"].startswith("stand-in")


def test_an_empty_cache_path_is_an_error(folder: Path) -> None:
    write_rows(folder / "data.jsonl", [])
    assert FileStorage("data.jsonl", "", "p").step().write([]) == str(folder / "p_step1.jsonl")


def test_capitals_in_a_suffix_are_an_unknown_type(folder: Path) -> None:
    write_rows(folder / "DATA.JSONL", [{"audio": "a.wav"}])
    assert FileStorage("DATA.JSONL").step().read("dict") == [{"audio": "a.wav"}]

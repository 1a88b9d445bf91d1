"""What goes wrong in DataFlow's own speech operators and storages, and does not here: each test is named after a fault.

The faults are those of OpenDCAI's DataFlow and DataFlow-MM in 2026: their operators for audio, their FileStorage and
their vLLM servings. What else a fault says (throughput, word error rates) is measured in `benchmarks`.
"""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from job_files import speech_rows, write_rows
from one_step import result, storage_of

from fleet import Fleet, clean_environment
from producer.cache import Step
from producer.dataflow import FileStorage, LocalModelLLMServing_vllm, WhisperTranscriptionGenerator
from producer.errors import UsageError
from rows import SAMPLES

# --- 1. the published interface does not exist -----------------------------------------------------------------------


def test_the_published_arguments_do_not_exist() -> None:
    storage = inspect.signature(FileStorage).parameters
    serving = inspect.signature(LocalModelLLMServing_vllm).parameters
    run = inspect.signature(WhisperTranscriptionGenerator.run).parameters
    places = ["first_entry_file_name", "cache_path", "file_name_prefix", "cache_type", "media_key", "media_type"]
    assert list(storage) == places
    assert {"hf_model_name_or_path", "vllm_gpu_memory_utilization", "vllm_max_tokens"} <= set(serving)
    assert serving["vllm_tensor_parallel_size"].default == 1
    assert serving["vllm_max_tokens"].default is None
    assert list(run)[1:6] == ["storage", "task", "language", "use_no_time_stamps", "output_key"]
    assert [run[name].default for name in ("language", "use_no_time_stamps")] == ["english", True]


def test_media_key_is_not_implemented(generator: WhisperTranscriptionGenerator, folder: Path) -> None:
    write_rows(folder / "data.jsonl", [{"wav": ["a.wav"], "audio": "something else"}])
    generator.run(FileStorage("data.jsonl", file_name_prefix="p", media_key="wav").step())
    assert result(folder)[0]["transcription"].startswith("stand-in")


# --- 2. one bad, missing or long recording --------------------------------------------------------------------------


def test_one_bad_recording_ends_the_run_and_nothing_is_written(
    generator: WhisperTranscriptionGenerator, folder: Path
) -> None:
    (folder / "notes.wav").write_text("this is no audio")
    (folder / "long.wav").write_bytes(b"RIFF")
    sources: list[object] = [["a.wav"], ["gone.wav"], ["notes.wav"], ["long.wav"], [None], None, [], ["a.wav"]]
    generator.run(storage_of(folder, *({"audio": source, "id": str(at)} for at, source in enumerate(sources))))
    rows = result(folder)
    assert [row["id"] for row in rows] == [str(at) for at in range(len(sources))]
    errors = [row.get("transcription_error", {}).get("type") for row in rows]
    assert errors == [None, "file_not_found", "not_audio", "not_audio", "no_audio", "no_audio", "no_audio", None]
    assert rows[0]["transcription"] == rows[-1]["transcription"] != ""
    assert not any("Error" in str(row["transcription"]) for row in rows), "an error is no text"


def test_recordings_beyond_30_seconds_are_cut_off(generator: WhisperTranscriptionGenerator, folder: Path) -> None:
    recording = SAMPLES / "audio" / "en_news_long.ogg"
    generator.run(storage_of(folder, {"audio": [str(recording)]}), use_no_time_stamps=False, details=True)
    (row,) = result(folder)
    assert row["transcription_details"]["duration"] > 60
    assert row["transcription_segments"][-1]["end"] > 60
    assert len(row["transcription"].split("stand-in")) > 3, "a text of every window"


def test_rows_without_a_conversation_fail_the_whole_table(
    generator: WhisperTranscriptionGenerator, folder: Path
) -> None:
    rows = [
        {"audio": ["a.wav"]},
        {"audio": ["a.wav"], "conversation": [{"from": "human", "value": "<audio>"}]},
        {"audio": ["a.wav"], "conversation": [{"from": "human", "value": ""}]},
    ]
    generator.run(storage_of(folder, *rows))
    found = result(folder)
    texts = [row.pop("transcription") for row in found]
    assert found == rows
    assert len(set(texts)) == 1
    assert texts[0].startswith("stand-in")


def test_a_row_with_two_recordings_fails_or_loses_one(generator: WhisperTranscriptionGenerator, folder: Path) -> None:
    other = str(SAMPLES / "audio" / "en_train.flac")
    generator.run(storage_of(folder, {"audio": ["a.wav", other]}, {"audio": "a.wav"}, {"audio": [other]}))
    rows = result(folder)
    assert rows[0]["transcription"] == [rows[1]["transcription"], rows[2]["transcription"]]
    assert rows[1]["transcription"] != rows[2]["transcription"]


def test_a_missing_cell_is_taken_for_audio(generator: WhisperTranscriptionGenerator, folder: Path) -> None:
    import pandas as pd

    storage = storage_of(folder, {"audio": ["a.wav"]})
    storage.write(pd.DataFrame({"audio": [["a.wav"], float("nan"), None], "n": [1, 2, 3]}))
    storage.operator_step = 1
    generator.run(storage)
    assert [row.get("transcription_error", {}).get("type") for row in result(folder, 2)] == [
        None,
        "no_audio",
        "no_audio",
    ]


def test_a_row_without_audio_gets_the_text_of_the_one_before(
    generator: WhisperTranscriptionGenerator, folder: Path
) -> None:
    generator.run(storage_of(folder, {"audio": ["a.wav"]}, {"audio": []}))
    assert [row["transcription"] is None for row in result(folder)] == [False, True]


def test_task_and_timestamps_are_ignored_without_a_language(
    generator: WhisperTranscriptionGenerator, folder: Path
) -> None:
    generator.run(storage_of(folder, {"audio": "a.wav"}), task="translate", language="auto", use_no_time_stamps=False)
    job = json.loads((Step(folder / "cache", "p", 1).header_path).read_text())
    assert (job["task"], job["options"]["language"], job["options"]["timestamps"]) == ("translate", "auto", True)
    assert result(folder)[0]["transcription_segments"]


def test_an_unknown_task_is_not_noticed(generator: WhisperTranscriptionGenerator, folder: Path) -> None:
    for language in ("auto", "english"):
        with pytest.raises(UsageError, match="task 'bogus'"):
            generator.run(storage_of(folder, {"audio": "a.wav"}), task="bogus", language=language)


def test_codes_and_capitals_of_languages_are_key_errors(generator: WhisperTranscriptionGenerator, folder: Path) -> None:
    for number, language in enumerate(("en", "English", "Mandarin", "zh-CN")):
        storage = FileStorage("data.jsonl", file_name_prefix=f"p{number}").step()
        write_rows(folder / "data.jsonl", [])
        generator.run(storage, language=language)


# --- 3. everything in memory, one process ---------------------------------------------------------------------------


def test_all_recordings_are_decoded_into_memory_in_the_main_process(standin_fleet: Fleet, folder: Path) -> None:
    # Given far more audio than the program may have memory for beside what it needs itself
    audio = str(SAMPLES / "audio" / "en_news_long.ogg")
    write_rows(folder / "data.jsonl", [{"audio": [audio], "start_s": number / 10} for number in range(12)])
    code = (
        "import resource, sys\n"
        "from producer.dataflow import *\n"
        "serving = LocalModelLLMServing_vllm()\n"
        "serving.start_serving()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "WhisperTranscriptionGenerator(serving).run(FileStorage('data.jsonl', file_name_prefix='p').step())\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
        "print([name for name in ('numpy', 'pandas', 'soundfile', 'av', 'torch') if name in sys.modules])\n"
    )
    # When it transcribes: 12 recordings of over a minute are 60 MB of samples
    environment = {**os.environ, "REDIS_URL": standin_fleet.url}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=folder, capture_output=True, text=True)
    # Then it has not decoded any of it
    assert done.returncode == 0, done.stderr
    grown_kib, loaded = done.stdout.splitlines()
    assert loaded == "[]"
    assert int(grown_kib) < 30 * 1024
    assert all(row["transcription"] for row in result(folder))


def test_rows_are_not_shared_by_several_engines(fleet: Fleet, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", fleet.url)
    for _ in range(2):
        fleet.start_worker("--concurrency", "1", wait=False, WHISPER_STANDIN_STEP_MS="20", WHISPER_DECODE_PROCESSES="1")
    fleet.wait_for_workers(2)
    speech_rows(folder, 16)
    WhisperTranscriptionGenerator(LocalModelLLMServing_vllm()).run(
        FileStorage("data.jsonl", file_name_prefix="p").step()
    )
    shares = [fleet.log_path(number).read_text().count("] received") for number in (1, 2)]
    assert all(shares), shares
    assert len(result(folder)) == 16


# --- 5. what is lost on the way -------------------------------------------------------------------------------------


def test_ids_offsets_language_and_confidence_are_lost(generator: WhisperTranscriptionGenerator, folder: Path) -> None:
    given = {"id": "x", "audio": ["a.wav"], "text": "its own text", "start_s": 1.0}
    generator.run(storage_of(folder, given), use_no_time_stamps=False, details=True)
    (row,) = result(folder)
    assert {name: row[name] for name in given} == given
    assert row["transcription_segments"][0]["start"] >= 1.0, "on the recording's own clock"
    details = row["transcription_details"]
    assert {"language", "duration", "avg_logprob", "no_speech_prob", "compression_ratio", "flags", "model"} <= set(
        details
    )


# --- 6. loading ------------------------------------------------------------------------------------------------------


def test_a_model_needs_a_folder_of_a_certain_name() -> None:
    for name in ("openai/whisper-large-v3", "my_whisper", "./snapshots/0123abcd", "distil-whisper/distil-large-v3"):
        assert LocalModelLLMServing_vllm(hf_model_name_or_path=name)._environment()["WHISPER_MODEL"] == name


def test_making_a_serving_loads_the_model_or_asks_the_network(folder: Path) -> None:
    code = (
        "import socket, subprocess, sys\n"
        "def refuse(*arguments, **options): raise SystemExit('something was started or asked for')\n"
        "socket.socket.connect = subprocess.Popen = refuse\n"
        "from producer.dataflow import *\n"
        "serving = LocalModelLLMServing_vllm('openai/whisper-large-v3', vllm_tensor_parallel_size=8)\n"
        "WhisperTranscriptionGenerator(serving)\n"
    )
    subprocess.run([sys.executable, "-c", code], env=clean_environment(), cwd=folder, check=True)


def test_cleanup_cannot_be_called_twice_or_before_anything_was_loaded(joined: Fleet) -> None:
    children = len(psutil.Process().children())
    serving = LocalModelLLMServing_vllm()
    for _ in range(2):
        serving.cleanup()
    assert len(psutil.Process().children()) == children
    assert joined.workers[0].poll() is None, "the shared fleet is not its own"


def test_whatever_was_asked_for_is_translated_into_another_language(
    generator: WhisperTranscriptionGenerator, folder: Path, joined: Fleet
) -> None:
    generator.run(storage_of(folder, {"audio": "a.wav"}), task="translate", language="french", output_key="english")
    assert "whisper.translate[p_step1-" in joined.log_path().read_text()
    job = json.loads(Step(folder / "cache", "p", 1).header_path.read_text())
    assert (job["task"], job["options"]["language"]) == ("translate", "fr")

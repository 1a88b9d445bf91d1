"""The serving: started when it is needed, ended by cleanup, and honest about a fleet that is not what was asked for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from job_files import processes_at, read_rows, wait_for_none, write_rows

from fleet import Fleet, clean_environment, still_running, wait_for
from producer.dataflow import FileStorage, LocalModelLLMServing_vllm, WhisperTranscriptionGenerator
from producer.dataflow.serving import _check_figure
from producer.errors import FleetError, FleetUnavailableError, UsageError
from workers import keys
from workers.presence import Presence
from workers.publisher import publish

ROOT = Path(__file__).parents[3]


def own_processes() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


@pytest.fixture
def serving(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalModelLLMServing_vllm]:
    """A serving that starts a fleet of its own, which is gone when the test ends."""
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setenv("WHISPER_ENGINE", "standin")
    before = own_processes()
    (folder / "models").mkdir()
    made = LocalModelLLMServing_vllm("./models", vllm_tensor_parallel_size=2, vllm_max_tokens=100)
    yield made
    made.cleanup()
    wait_for_none(lambda: list(own_processes() - before))


def test_one_fleet_serves_all_steps_until_cleanup_which_works_twice(
    serving: LocalModelLLMServing_vllm, folder: Path
) -> None:
    # Given a serving that was only made
    write_rows(folder / "data.jsonl", [{"audio": "a.wav"}])
    generator, storage = WhisperTranscriptionGenerator(serving), FileStorage("data.jsonl", file_name_prefix="p")
    others = own_processes()
    serving.cleanup()
    assert own_processes() == others
    # When two steps run
    generator.run(storage.step())
    started = own_processes() - others
    generator.run(storage.step(), task="translate", output_key="english")
    # Then the same processes did both
    assert started
    assert own_processes() - others == started
    # And cleanup ends them, as often as one likes, and the next step starts others
    serving.cleanup()
    serving.cleanup()
    wait_for(lambda: not still_running(started))
    generator.run(storage.step(), output_key="again")
    assert own_processes() - others
    assert list(read_rows(folder / "cache" / "p_step3.jsonl")[0]) == ["audio", "transcription", "english", "again"]


def test_a_forked_child_has_no_fleet_yet(serving: LocalModelLLMServing_vllm) -> None:
    """That of its parent has a thread there and none here: nobody would notice when it ends."""
    serving.start_serving()
    assert serving.own_url() is not None
    serving._own.pid += 1  # as it is in a child
    assert serving.own_url() is None
    assert serving._own.current is None
    serving._own.pid -= 1


def test_arguments_are_settings_of_the_own_worker(serving: LocalModelLLMServing_vllm, folder: Path) -> None:
    assert serving._environment() == {
        "WHISPER_MODEL": str(folder / "models"),
        "WHISPER_TENSOR_PARALLEL_SIZE": "2",
        "WHISPER_MAX_TOKENS": "100",
    }
    assert LocalModelLLMServing_vllm()._environment() == {}
    other = LocalModelLLMServing_vllm("org/name", hf_cache_dir="/models", vllm_gpu_memory_utilization=0.7)
    assert other._environment() == {
        "WHISPER_MODEL": "org/name",
        "HF_HUB_CACHE": "/models",
        "WHISPER_GPU_MEMORY_UTILIZATION": "0.7",
    }


def test_a_model_that_cannot_load_is_one_line_and_can_be_tried_again(
    serving: LocalModelLLMServing_vllm, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHISPER_ENGINE", "vllm")
    with pytest.raises(FleetError, match=f"the local worker ended with code 1: .*{folder / 'models'}"):
        serving.start_serving()
    monkeypatch.setenv("WHISPER_ENGINE", "standin")
    serving.start_serving()


def test_the_readmes_pipeline_runs_on_a_fleet_of_its_own(folder: Path) -> None:
    # Given the README's code and a dataset
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("### The DataFlow way\n")[2]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert code is not None
    write_rows(folder / "data.jsonl", [{"audio": "a.wav"}])
    # When it runs
    environment = clean_environment(WHISPER_ENGINE="standin", TMPDIR=str(folder))
    done = subprocess.run([sys.executable, "-c", code[1]], env=environment, cwd=folder, capture_output=True, text=True)
    # Then its steps are there, and nothing else is left of it
    assert done.returncode == 0, done.stderr
    (row,) = read_rows(folder / "cache" / "talks_step2.jsonl")
    assert list(row) == ["audio", "transcription", "english"]
    assert processes_at(folder) == []
    assert list(folder.glob("whisper-fleet-*")) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"hf_local_dir": "x"}, "hf_local_dir='x' is not possible: name the folder as hf_model_name_or_path"),
        ({"vllm_temperature": 0.7}, "vllm_temperature=0.7 is not possible: .*WHISPER_TEMPERATURES"),
        ({"vllm_repetition_penalty": 1.2}, "vllm_repetition_penalty=1.2 is not possible"),
        ({"vllm_max_model_len": 4096}, "vllm_max_model_len=4096 is not possible: Whisper's decoder has 448"),
        ({"vllm_tensor_parallel_size": 0}, "vllm_tensor_parallel_size='?0"),
        ({"vllm_gpu_memory_utilization": 1.5}, "vllm_gpu_memory_utilization='?1.5"),
        ({"vllm_max_tokens": 1024}, "vllm_max_tokens='?1024"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        LocalModelLLMServing_vllm(**arguments)  # type: ignore[arg-type]


def test_what_changes_nothing_is_accepted() -> None:
    LocalModelLLMServing_vllm(
        hf_model_name_or_path="openai/whisper-large-v3",
        hf_cache_dir="/models",
        vllm_temperature=0.0,
        vllm_top_p=0.9,
        vllm_top_k=40,
        vllm_repetition_penalty=1.0,
        vllm_seed=42,
        vllm_max_model_len=448,
    )


def presence(model: str, **figures: int) -> Presence:
    return Presence.model_validate(
        {
            **{"name": f"{model}@here", "queues": ["transcribe"], "model": model, "revision": "1", "device": "cuda"},
            **{"version": "1", "tasks": ["transcribe"], "languages": ["en"], "max_num_seqs": 8, "threads": 4},
            **figures,
        }
    )


def test_a_shared_fleet_without_the_model_is_an_error_that_says_both(
    fleet: Fleet, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a broker on which two models are live
    monkeypatch.setenv("REDIS_URL", fleet.url)
    for model in ("openai/whisper-small", "whisper-base"):
        one = presence(model, tensor_parallel_size=2)
        publish(fleet.redis, keys.WORKERS, keys.worker(one.name, "1"), one.model_dump_json())
    # Then another model is refused, and those are found by any of their names
    wanted = LocalModelLLMServing_vllm(hf_model_name_or_path="openai/whisper-large-v3")
    with pytest.raises(UsageError) as caught:
        wanted.start_serving()
    said = str(caught.value)
    assert "hf_model_name_or_path is openai/whisper-large-v3, but the workers of REDIS_URL redis://127.0.0.1" in said
    assert "have openai/whisper-small, whisper-base" in said
    assert LocalModelLLMServing_vllm("whisper-small").model_of_jobs() == "whisper-small"
    assert LocalModelLLMServing_vllm().model_of_jobs() is None
    LocalModelLLMServing_vllm("whisper-base", vllm_tensor_parallel_size=2).start_serving()
    with pytest.raises(UsageError, match=r"vllm_tensor_parallel_size is 4, but the workers of .* have 2"):
        LocalModelLLMServing_vllm("whisper-base", vllm_tensor_parallel_size=4).start_serving()


def test_a_worker_that_does_not_say_agrees_with_any_figure() -> None:
    _check_figure("max_tokens", 100, [presence("a", max_tokens=224), presence("b")], "redis://here")
    with pytest.raises(UsageError, match=r"vllm_max_tokens is 100, but the workers of .* have 224"):
        _check_figure("max_tokens", 100, [presence("a", max_tokens=224)], "redis://here")


def test_a_broker_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://:secret@127.0.0.1:1/0")
    with pytest.raises(FleetUnavailableError, match=r"REDIS_URL redis://127\.0\.0\.1:1/0: does not answer") as caught:
        LocalModelLLMServing_vllm().start_serving()
    assert "secret" not in str(caught.value)
    assert os.environ["REDIS_URL"]


def test_a_broker_that_does_not_let_one_in_is_named(
    fleet: Fleet, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = fleet.redis.connection_pool.connection_kwargs["password"]
    monkeypatch.setenv("REDIS_URL", fleet.url.replace(right, "wrong"))
    write_rows(folder / "data.jsonl", [{"audio": "a.wav"}])
    generator = WhisperTranscriptionGenerator(LocalModelLLMServing_vllm())
    with pytest.raises(UsageError, match=r"REDIS_URL redis://127\S+: refuses this user or password"):
        generator.run(FileStorage("data.jsonl", file_name_prefix="p").step())

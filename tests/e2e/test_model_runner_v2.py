"""The decode rules in vLLM's V2 model runner, its default on CUDA, with real weights and without a GPU.

That runner's own kernels are Triton's, of which vLLM's CPU build has no compiler: Triton's interpreter runs them here,
half a second a token. A worker takes the V1 runner unless it is told otherwise (`workers.vllm_options`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cpu_build import only_on_a_cpu
from fleet import Fleet
from rows import SAMPLES, read_rows
from scoring import word_error_rate

AUDIO = SAMPLES / "audio"
#: Loaded by every Python process that has its folder on PYTHONPATH. vLLM takes the V2 runner where it finds a driver
#: for Triton; the interpreter asks it for nothing. A dot in the file STEPS for each step that our rules are asked in.
INTERPRETED_TRITON = """
import importlib.machinery, os, sys
from types import SimpleNamespace

def give_driver():
    import triton
    from triton.backends import backends
    class Driver:
        def is_active(self=None):
            return True
    backends["cpu"] = SimpleNamespace(driver=Driver, compiler=None)
    triton.runtime.driver.set_active(Driver())

def count_steps(module):
    apply = module.WhisperRulesV2.apply
    def counted(self, logits, context):
        with open(os.environ["STEPS"], "a") as file:
            file.write(".")
        return apply(self, logits, context)
    module.WhisperRulesV2.apply = counted

BEFORE = {"vllm.triton_utils.importing": give_driver}
AFTER = {"workers.logits_processor_v2": count_steps}

class Patched(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name not in BEFORE and name not in AFTER:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        load = spec.loader.exec_module
        def exec_module(module):
            if name in BEFORE:
                BEFORE[name]()
            load(module)
            if name in AFTER:
                AFTER[name](module)
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Patched)
"""


@pytest.fixture
def v2_fleet(tmp_path: Path) -> Iterator[Fleet]:
    """A broker and a worker on the V2 runner. Two windows at a time, so that its slots are given out again."""
    patched = tmp_path / "patched"
    patched.mkdir()
    (patched / "sitecustomize.py").write_text(INTERPRETED_TRITON)
    environment = {
        "WHISPER_MODEL": "whisper-base",
        "WHISPER_MAX_NUM_SEQS": "2",
        "WHISPER_GOLDEN_CHECK": "0",
        "VLLM_USE_V2_MODEL_RUNNER": "1",
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": str(patched),
        "STEPS": str(tmp_path / "steps"),
    }
    with Fleet(tmp_path / "v2", environment) as running:
        running.start_worker()
        yield running


@only_on_a_cpu
def test_the_v2_runner_hears_what_the_v1_runner_hears(
    real_fleet: Fleet, v2_fleet: Fleet, jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    # Given recordings with and without a language and a prompt, more than the engine takes at once
    path = jsonl(
        [
            {"audio": str(AUDIO / "en_weather.wav"), "language": "en"},
            {"audio": str(AUDIO / "de_berlin.flac")},
            {"audio": str(AUDIO / "fr_coffee.mp3"), "language": "fr", "prompt": "Au café."},
        ]
    )

    def heard(fleet: Fleet, name: str) -> list[dict]:
        done = fleet.cli("run", str(path), "--cache-path", str(tmp_path / name), "--timestamps", "--details")
        assert done.returncode == 0, done.stderr
        return read_rows(done.stdout.splitlines()[-1])

    # When workers on both runners hear them
    v1, v2 = heard(real_fleet, "v1"), heard(v2_fleet, "v2")

    # Then both say the same, but for what is as likely as another word or time
    assert (tmp_path / "steps").stat().st_size > 20
    texts = [[row["transcription"] for row in rows] for rows in (v1, v2)]
    assert word_error_rate(*texts) < 0.05, texts
    for one, other in zip(v1, v2, strict=True):
        assert other["transcription_details"]["language"] == one["transcription_details"]["language"]
        assert other["transcription_details"]["avg_logprob"] == pytest.approx(
            one["transcription_details"]["avg_logprob"], abs=0.05
        )
        starts, times = ([segment["start"] for segment in row["transcription_segments"]] for row in (one, other))
        assert times == pytest.approx(starts, abs=0.3), json.dumps([one, other])

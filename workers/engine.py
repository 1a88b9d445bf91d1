"""vLLM. Only this file and the logits processor know it.

`AsyncLLM` belongs to one event loop: it lives on one loop in one thread that lasts as long as the process, and any
thread may submit windows to it. The thread also owns the engine's child processes: the signal that ends them with
their parent is bound to the thread that started them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import uuid
from concurrent.futures import Future
from importlib import metadata
from typing import Any

from workers import decoding
from workers.device import ENCODE_BATCH, Device, cpu_binding, device_kind, max_num_seqs, usable_cores
from workers.errors import EngineLostError, ModelLoadError, TranscriptionError
from workers.interface import SAMPLE_RATE_HZ, WINDOW_SAMPLES, EngineFacts, WindowRequest, WindowResult
from workers.models import ResolvedModel, model_facts_from, resolve_model
from workers.settings import Settings

log = logging.getLogger(__name__)

#: Encoder positions of one window; vLLM's budget per step counts them (vLLM `encoder_cache_manager.py`).
ENCODER_POSITIONS = 1500
#: A loop is ended after so many repeats of a pattern of at most so many tokens.
LOOP_PATTERN_TOKENS, LOOP_REPEATS = 32, 8
#: A request that ended so has no transcript: the engine was told to stop, or failed.
UNFINISHED = {"abort", "error", None}


class VllmEngine:
    """A Whisper model in one vLLM engine. Loading takes 35 to 60 s on a CPU; raises ModelLoadError."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._closing = False
        device = device_kind()
        model = resolve_model(settings.model, device, settings.model_cache)
        self._max_num_seqs = max_num_seqs(settings)
        _prepare_environment(settings, device)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="vllm-loop", daemon=True).start()
        try:
            self._llm = self._run(self._start(model, device)).result()
        except ModelLoadError:
            raise
        except Exception as error:
            raise ModelLoadError(f"cannot load the model {model.name}: {_first_line(error)}") from error
        self._tokenizer = self._llm.get_tokenizer()
        self._tokens = self._find_tokens()
        self._facts = self._describe(model, device)
        # The first request initialises kernels lazily; no user's record should wait for that.
        self._warm_up()

    @property
    def facts(self) -> EngineFacts:
        """What the loaded model is and can do."""
        return self._facts

    def submit(self, request: WindowRequest) -> Future[WindowResult]:
        """Start one window. Log-mel is computed here, in the caller's thread; decoding joins the engine's batch."""
        if not 0 < len(request.samples) <= WINDOW_SAMPLES:
            raise ValueError(f"a window has 1 to {WINDOW_SAMPLES} samples, not {len(request.samples)}")
        if self._closing:
            raise EngineLostError("the engine is shutting down")
        ids = decoding.prompt_ids(request, self._tokens, self._encode)
        return self._run(self._decode(request, self._render(request, ids), self._sampling(request, len(ids))))

    def healthy(self) -> bool:
        """Whether the engine's processes are alive."""
        return not self._closing and not self._llm.errored

    def close(self) -> None:
        """End the engine and its processes."""
        self._closing = True
        with contextlib.suppress(Exception):
            self._llm.shutdown()
        del self._llm  # left to the interpreter's end, its finaliser complains
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _run(self, coroutine: Any) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    async def _start(self, model: ResolvedModel, device: Device) -> Any:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        settings = self._settings
        encode_batch = settings.encode_batch or ENCODE_BATCH[device]
        eager = settings.enforce_eager if settings.enforce_eager is not None else device == "cpu"
        dtype = "bfloat16" if settings.dtype == "auto" and device == "cpu" else settings.dtype
        return AsyncLLM.from_engine_args(
            AsyncEngineArgs(
                model=model.path_or_id,
                dtype=dtype,
                tensor_parallel_size=settings.tensor_parallel_size,
                gpu_memory_utilization=settings.gpu_memory_utilization,
                max_num_seqs=self._max_num_seqs,
                max_num_batched_tokens=ENCODER_POSITIONS * encode_batch,
                enforce_eager=eager,
                limit_mm_per_prompt={"audio": 1},
                logits_processors=["workers.logits_processor:WhisperRules"],
                disable_log_stats=True,
            )
        )

    def _find_tokens(self) -> decoding.Tokens:
        from vllm.transformers_utils.config import try_get_generation_config

        config = self._llm.model_config
        generation = try_get_generation_config(config.model, trust_remote_code=False, revision=config.revision)
        suppressed = getattr(generation, "suppress_tokens", None) or ()
        at_begin = getattr(generation, "begin_suppress_tokens", None) or ()
        return decoding.Tokens.of(
            self._tokenizer.get_vocab(), suppressed=tuple(suppressed), suppressed_at_begin=tuple(at_begin)
        )

    def _describe(self, model: ResolvedModel, device: Device) -> EngineFacts:
        facts = model_facts_from(self._llm.model_config.hf_config.to_dict(), self._tokenizer.get_vocab())
        return EngineFacts(
            model=model.name,
            revision=model.revision,
            device=device,
            version=metadata.version("whisper-fleet"),
            tasks=facts.tasks,
            languages=facts.languages,
            max_num_seqs=self._max_num_seqs,
        )

    def _warm_up(self) -> None:
        import numpy as np

        noise = np.random.default_rng(0).normal(0, 0.01, SAMPLE_RATE_HZ).astype(np.float32)
        self.submit(WindowRequest(noise, task="transcribe", language=self._facts.languages[0])).result()

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _decode_text(self, ids: Any) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def _render(self, request: WindowRequest, ids: list[int]) -> Any:
        from vllm.renderers.inputs.preprocess import parse_model_prompt

        prompt = {
            "encoder_prompt": {"prompt": "", "multi_modal_data": {"audio": (request.samples, SAMPLE_RATE_HZ)}},
            "decoder_prompt": {"prompt_token_ids": ids},
        }
        (rendered,) = self._llm.renderer.render_cmpl([parse_model_prompt(self._llm.model_config, prompt)])
        # vLLM puts a start-of-transcript before a prompt that does not begin with one.
        rendered["decoder_prompt"]["prompt_token_ids"] = list(ids)
        return rendered

    def _sampling(self, request: WindowRequest, prompt_length: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RepetitionDetectionParams, RequestOutputKind

        rules = decoding.rules_of(request, self._tokens)
        room = decoding.DECODER_POSITIONS - prompt_length
        wanted = rules.forced_steps + min(self._settings.max_tokens, decoding.most_tokens(request))
        return SamplingParams(
            temperature=request.temperature,
            seed=request.seed if request.temperature else None,
            max_tokens=min(room, wanted),
            logprob_token_ids=[self._tokens.no_speech],
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            repetition_detection=RepetitionDetectionParams(
                max_pattern_size=LOOP_PATTERN_TOKENS, min_pattern_size=1, min_count=LOOP_REPEATS
            ),
            extra_args={"whisper": rules.as_dict()},
        )

    async def _decode(self, request: WindowRequest, rendered: Any, sampling: Any) -> WindowResult:
        from vllm.exceptions import VLLMValidationError
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        output: Any = None
        try:
            async with asyncio.timeout(self._settings.request_timeout_seconds):
                async for part in self._llm.generate(rendered, sampling, uuid.uuid4().hex):
                    output = part  # the last one is final
        except TimeoutError:
            seconds = self._settings.request_timeout_seconds
            raise EngineLostError(f"the engine did not answer a window within {seconds:.0f} s") from None
        except VLLMValidationError as error:
            raise TranscriptionError("bad_argument", _first_line(error)) from error
        except (EngineDeadError, EngineGenerateError) as error:
            raise EngineLostError(_first_line(error)) from error
        result = output.outputs[0] if output is not None else None
        if result is None or result.finish_reason in UNFINISHED:
            raise EngineLostError(f"the engine stopped in the middle of a window ({result and result.finish_reason})")
        logprobs = [{id: entry.logprob for id, entry in step.items()} for step in result.logprobs]
        flags = ("repetition",) if result.finish_reason == "repetition" else ()
        return decoding.parse_output(result.token_ids, logprobs, request, self._tokens, self._decode_text, flags)


def _prepare_environment(settings: Settings, device: Device) -> None:
    """What vLLM reads from the environment; has to stand there before it is imported."""
    defaults = {
        # A worker has threads; a forked engine can inherit a lock that is held for ever.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if device == "cpu":
        binding = settings.cpu_threads_bind or cpu_binding(usable_cores(), settings.tensor_parallel_size)
        defaults["VLLM_CPU_OMP_THREADS_BIND"] = binding
        defaults["VLLM_CPU_KVCACHE_SPACE"] = str(settings.cpu_kv_cache_gib)
    else:
        # The second model runner takes another kind of logits processor.
        defaults["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:500]

"""Every vLLM name that the engine, the logits processors and the benchmarks use, in the vLLM that is installed.

The real engine's tests would find most of these, too; this says by name what another vLLM has changed.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest
from vllm import SamplingParams, envs
from vllm import exceptions as vllm_exceptions
from vllm.distributed.device_communicators import cuda_communicator
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.model_executor.layers.attention import cross_attention
from vllm.model_executor.models.whisper import WhisperForConditionalGeneration
from vllm.renderers.base import BaseRenderer
from vllm.renderers.inputs.preprocess import parse_model_prompt
from vllm.sampling_params import RepetitionDetectionParams, RequestOutputKind
from vllm.transformers_utils.config import try_get_generation_config
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.core.encoder_cache_manager import EncoderDecoderCacheManager
from vllm.v1.core.sched.request_queue import SchedulingPolicy, create_request_queue
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.engine import exceptions as engine_exceptions
from vllm.v1.engine import utils as engine_utils
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core_client import AsyncMPClient
from vllm.v1.engine.utils import CoreEngineProcManager
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.request import Request
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.sample.ops import topk_topp_sampler
from vllm.v1.sample.sampler import Sampler
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from cpu_build import only_on_a_cpu
from workers import int8_kernel
from workers.cpu_ranks import CpuRanks
from workers.interface import turn_s
from workers.logits_processor import WhisperRules
from workers.ranks import GATHER_PARAMETERS, Ranks
from workers.settings import load_settings
from workers.vllm_options import engine_arguments
from workers.vllm_requests import LOOP_PATTERN_TOKENS, LOOP_REPEATS


def parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


def test_the_engine_takes_every_argument() -> None:
    names = {field.name for field in dataclasses.fields(AsyncEngineArgs)}

    # Benchmarks without weights set `load_format`.
    assert {*engine_arguments("a-model", load_settings()), "load_format"} <= names


def test_vllm_knows_what_a_gpu_engine_is_told_not_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of it is said to an engine on a CPU, whose start would tell."""
    assert "attention_backend" in {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    assert AttentionBackendEnum["FLASH_ATTN"]
    monkeypatch.setenv("VLLM_USE_FLASHINFER_SAMPLER", "0")
    assert envs.environment_variables["VLLM_USE_FLASHINFER_SAMPLER"]() is False
    assert "VLLM_USE_FLASHINFER_SAMPLER" in inspect.getsource(topk_topp_sampler)
    monkeypatch.setenv("VLLM_ALLREDUCE_USE_FLASHINFER", "0")
    assert envs.environment_variables["VLLM_ALLREDUCE_USE_FLASHINFER"]() is False
    assert "VLLM_ALLREDUCE_USE_FLASHINFER" in inspect.getsource(cuda_communicator)


def test_the_engines_process_is_started_in_the_way_that_is_replaced() -> None:
    assert "get_mp_context" in CoreEngineProcManager.__init__.__code__.co_names
    assert CoreEngineProcManager.__init__.__globals__ is vars(engine_utils)


def test_what_is_urgent_does_not_wait_behind_the_usual_of_a_minute() -> None:
    waiting = create_request_queue(SchedulingPolicy(engine_arguments("a-model", load_settings())["scheduling_policy"]))
    came = [("a", 0.0, False), ("e", 5.0, False), ("b", 10.0, False), ("c", 30.0, True), ("f", 30.5, True)]

    for name, at, urgent in (*came, ("d", 61.0, True)):
        priority = int(turn_s(urgent, at))
        waiting.add_request(Request(name, [1], SamplingParams(), None, arrival_time=at, priority=priority))

    # The last one comes a minute after the first, which has waited long enough.
    assert [waiting.pop_request().request_id for _ in range(6)] == ["c", "f", "a", "d", "e", "b"]


def test_requests_take_every_sampling_parameter() -> None:
    sampling = SamplingParams(
        temperature=0.2,
        seed=7,
        max_tokens=5,
        ignore_eos=True,
        logprob_token_ids=[50_362],
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        repetition_detection=RepetitionDetectionParams(
            max_pattern_size=LOOP_PATTERN_TOKENS, min_pattern_size=1, min_count=LOOP_REPEATS
        ),
        extra_args={"whisper": {}},
    )

    assert (sampling.max_tokens, sampling.logprob_token_ids, sampling.extra_args) == (5, [50_362], {"whisper": {}})


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        (AsyncLLM.from_engine_args, {"engine_args"}),
        (AsyncLLM.generate, {"prompt", "sampling_params", "request_id", "priority"}),
        (AsyncLLM.shutdown, {"self"}),
        (AsyncLLM.collective_rpc, {"method", "args"}),
        (AsyncLLM.get_tokenizer, {"self"}),
        (BaseRenderer.render_cmpl, {"prompts"}),
        (BaseRenderer.render_cmpl_async, {"prompts"}),
        (parse_model_prompt, {"model_config", "prompt"}),
        (try_get_generation_config, {"model", "trust_remote_code", "revision"}),
        (LogitsProcessor.__init__, {"vllm_config", "device", "is_pin_memory"}),
        (process_dict_updates, {"req_entries", "batch_update", "new_state"}),
    ],
)
def test_functions_take_what_they_are_given(function: Any, wanted: set[str]) -> None:
    assert wanted <= parameters(function)


def test_the_rules_are_a_whole_logits_processor() -> None:
    assert issubclass(WhisperRules, LogitsProcessor)
    assert not inspect.isabstract(WhisperRules)
    assert {"batch_size", "removed", "added", "moved"} <= parameters(BatchUpdate)


def test_the_order_of_encodings_is_made_where_the_runner_looks_for_it() -> None:
    from vllm.v1.worker.gpu_worker import Worker

    assert "self._execute_mm_encoder(scheduler_output)" in inspect.getsource(GPUModelRunner._preprocess)
    encoding = inspect.getsource(GPUModelRunner._batch_mm_inputs_from_scheduler)
    assert "in scheduled_encoder_inputs.items()" in encoding
    # And the encodings are given out by row.
    assert "for req_index in active_indices" in inspect.getsource(cross_attention._get_cross_slot_mapping)
    assert not {name for name in dir(Ranks) if not name.startswith("__")} & set(dir(Worker))


def test_what_windows_ask_for_is_gathered_where_it_was_replaced() -> None:
    # An instance's own attribute: the sampler is a module, and looks its method up anew.
    assert tuple(inspect.signature(Sampler().gather_specific_token_logprobs).parameters) == GATHER_PARAMETERS
    assert "self.gather_specific_token_logprobs(" in inspect.getsource(Sampler.forward)
    assert "self.sampler = Sampler(" in inspect.getsource(GPUModelRunner.__init__)


@only_on_a_cpu
def test_the_ranks_encode_where_the_cache_stands() -> None:
    from vllm.v1.worker.cpu_worker import CPUWorker

    # Looked up at the model for each batch, as the only way to encode one.
    assert "model.embed_multimodal(**mm_kwargs_batch)" in inspect.getsource(GPUModelRunner._execute_mm_encoder)
    assert 'kwargs.pop("input_features"' in inspect.getsource(WhisperForConditionalGeneration)
    # vLLM refuses an extension whose names its worker has already.
    own = {name for name in dir(CpuRanks) if not name.startswith("__")}
    assert own
    assert not own & set(dir(CPUWorker))
    # It keeps none itself.
    assert EncoderDecoderCacheManager(cache_size=3000).check_and_update_cache(None, 0) is False


@only_on_a_cpu
def test_the_kernel_of_eight_bits_is_chosen_and_called_where_it_was_mended() -> None:
    from vllm.model_executor.kernels.linear.scaled_mm import cpu

    int8_kernel.mend()
    kernel = cpu.CPUInt8ScaledMMLinearKernel
    assert "check_cpu_sgl_kernel(N, K, dtype)" in inspect.getsource(kernel.process_weights_after_loading)
    assert "self.linear_method = self._apply_weights_sgl" in inspect.getsource(kernel.process_weights_after_loading)
    assert kernel._apply_weights_sgl.__module__ == "workers.int8_kernel"
    assert cpu.check_cpu_sgl_kernel.__class__.__module__ == "workers.int8_kernel"


def test_what_the_engine_process_sends_is_where_it_is_listened_to() -> None:
    # `workers.engine._note_outputs` takes the place of the client's method; the handler has to look it up anew.
    assert inspect.iscoroutinefunction(AsyncMPClient.get_output_async)
    assert "engine_core.get_output_async()" in inspect.getsource(AsyncLLM._run_output_handler)
    assert {"outputs", "scheduler_stats"} <= set(EngineCoreOutputs.__struct_fields__)
    assert "new_token_ids" in EngineCoreOutput.__struct_fields__
    assert {"num_running_reqs", "num_waiting_reqs"} <= {field.name for field in dataclasses.fields(SchedulerStats)}


def test_ends_and_failures_have_the_names_that_the_engine_tells_apart() -> None:
    assert {"stop", "length", "abort", "repetition"} <= {str(reason) for reason in FinishReason}
    for module, name in (
        (vllm_exceptions, "VLLMValidationError"),
        (engine_exceptions, "EngineDeadError"),
        (engine_exceptions, "EngineGenerateError"),
    ):
        assert issubclass(getattr(module, name), Exception)
    assert isinstance(AsyncLLM.errored, property)
    # Closing an engine, `workers.engine` stops it first.
    assert "self.output_handler" in inspect.getsource(AsyncLLM.__init__)

"""What a window's request tells vLLM: the tokens of the checkpoint, and how to sample. vLLM is imported when needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workers import decoding
from workers.interface import SAMPLE_RATE_HZ, WindowRequest

#: A loop is ended after so many repeats of a pattern of at most so many tokens.
LOOP_PATTERN_TOKENS, LOOP_REPEATS = 32, 8


def find_tokens(model_config: Any, tokenizer: Any) -> decoding.Tokens:
    """The special tokens of the checkpoint that vLLM has loaded."""
    from vllm.transformers_utils.config import try_get_generation_config

    generation = try_get_generation_config(model_config.model, trust_remote_code=False, revision=model_config.revision)
    suppressed = getattr(generation, "suppress_tokens", None) or ()
    at_begin = getattr(generation, "begin_suppress_tokens", None) or ()
    marks = [
        list(tokenizer.encode(space + mark, add_special_tokens=False))
        for mark in decoding.PUNCTUATION
        for space in ("", " ")
    ]
    return decoding.Tokens.of(
        tokenizer.get_vocab(),
        suppressed=tuple(suppressed),
        suppressed_at_begin=tuple(at_begin),
        punctuation=sorted({ids[0] for ids in marks if len(ids) == 1}),
    )


def prompt_of(request: WindowRequest, ids: list[int]) -> dict[str, Any]:
    """The window's audio and its decoder prompt ``ids`` as vLLM takes them."""
    return {
        "encoder_prompt": {"prompt": "", "multi_modal_data": {"audio": (request.samples, SAMPLE_RATE_HZ)}},
        "decoder_prompt": {"prompt_token_ids": ids},
    }


def sampling_of(
    request: WindowRequest,
    tokens: decoding.Tokens,
    max_tokens: int,
    prompt_length: int,
    overrides: Mapping[str, Any] | None = None,
) -> Any:
    """`SamplingParams` for a window whose decoder prompt has ``prompt_length`` tokens; ``overrides`` win."""
    from vllm import SamplingParams
    from vllm.sampling_params import RepetitionDetectionParams, RequestOutputKind

    rules = decoding.rules_of(request, tokens)
    room = decoding.DECODER_POSITIONS - prompt_length
    wanted = rules.forced_steps + min(max_tokens, decoding.most_tokens(request))
    arguments: dict[str, Any] = {
        "temperature": request.temperature,
        "seed": request.seed if request.temperature else None,
        "max_tokens": min(room, wanted),
        "logprob_token_ids": [tokens.no_speech],
        "detokenize": False,
        "output_kind": RequestOutputKind.FINAL_ONLY,
        "repetition_detection": RepetitionDetectionParams(
            max_pattern_size=LOOP_PATTERN_TOKENS, min_pattern_size=1, min_count=LOOP_REPEATS
        ),
        "extra_args": {"whisper": rules.as_dict()},
    }
    return SamplingParams(**(arguments | dict(overrides or {})))

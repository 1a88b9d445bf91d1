"""What a window's request tells vLLM: its features, the tokens of the checkpoint, and how to sample.

vLLM is imported when needed.
"""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import Mapping
from typing import Any

from workers import decoding
from workers.errors import ModelLoadError
from workers.interface import SAMPLE_RATE_HZ, WindowRequest
from workers.log_mel import LogMel

#: A loop is ended after so many repeats of a pattern of at most so many tokens.
LOOP_PATTERN_TOKENS, LOOP_REPEATS = 32, 8
#: Features of the same second differ less than this between two ways to compute them (1e-6 was seen).
MOST_DIFFERENCE = 1e-4


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


class Inputs:
    """Makes of windows what vLLM's renderer would, without it: most of its time goes into padding. Any thread may.

    The renderer makes one input when the model is loaded, and each window's differs from it in features and tokens.
    Raises ModelLoadError where a checkpoint wants other features than Whisper's.
    """

    def __init__(self, llm: Any, ids: list[int]) -> None:
        """``llm``: the loaded engine; ``ids``: any decoder prompt."""
        import numpy as np
        import torch
        from vllm.renderers.inputs.preprocess import parse_model_prompt

        noise = np.random.default_rng(0).normal(0, 0.1, SAMPLE_RATE_HZ).astype(np.float32)
        prompt = parse_model_prompt(llm.model_config, prompt_of(WindowRequest(noise, "transcribe"), ids))
        (self._template,) = llm.renderer.render_cmpl([prompt])
        ((self._features, field),) = self._template["decoder_prompt"]["mm_kwargs"]["audio"][0].items()
        #: The model's own: vLLM's renderer rounds features to it.
        self._dtype = field.data.dtype
        refused = ModelLoadError("the model wants features (preprocessor_config.json) that are not Whisper's log-mel")
        try:
            self._log_mel = LogMel(llm.renderer.get_mm_processor().info.get_feature_extractor().mel_filters)
        except ValueError:
            raise refused from None
        ours, theirs = self._log_mel(noise).to(self._dtype), field.data
        # Beyond the difference, the nearest of two neighbours may be either; features are below 2.
        most = MOST_DIFFERENCE + 2 * torch.finfo(self._dtype).eps
        if ours.shape != theirs.shape or float((ours - theirs).abs().max()) > most:
            raise refused

    def of(self, request: WindowRequest, ids: list[int]) -> dict[str, Any]:
        """A window, with the decoder prompt ``ids``, as `AsyncLLM.generate` takes it."""
        decoder = self._template["decoder_prompt"]
        items = decoder["mm_kwargs"]
        (item,) = items["audio"]
        field = dataclasses.replace(item[self._features], data=self._log_mel(request.samples).to(self._dtype))
        own = {
            # Not to be prepended by a start-of-transcript, which vLLM's renderer does to a prompt without one.
            "prompt_token_ids": list(ids),
            "mm_kwargs": type(items)({"audio": [type(item)({self._features: field})]}),
            # Nothing is looked up by it: the same audio in two requests is two windows.
            "mm_hashes": {"audio": [uuid.uuid4().hex]},
        }
        return {**self._template, "decoder_prompt": {**decoder, **own}, "arrival_time": time.time()}


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

"""Whisper's decode rules inside vLLM's sampler: vLLM itself applies none of them.

Loaded by name in vLLM's engine processes (V1 model runner). `constrain` is the rules themselves, without vLLM.
Source: openai/whisper `decoding.py` (SuppressBlank, SuppressTokens, ApplyTimestampRules).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from workers.decoding import MAX_INITIAL_STEPS, Rules

#: Where a request's rules travel in its sampling parameters.
EXTRA_ARGUMENT = "whisper"


class WhisperRules(AdapterLogitsProcessor):
    """Applies each request's `workers.decoding.Rules`."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse rules that are not the plain form of `Rules`."""
        plain = (sampling_params.extra_args or {}).get(EXTRA_ARGUMENT)
        if plain is not None:
            _rules(plain)

    def is_argmax_invariant(self) -> bool:
        """The rules change which token is best."""
        return False

    def new_req_logits_processor(
        self, params: SamplingParams
    ) -> Callable[[list[int], torch.Tensor], torch.Tensor] | None:
        """The function of one request, or None for a request without rules."""
        plain = (params.extra_args or {}).get(EXTRA_ARGUMENT)
        if plain is None:
            return None
        rules = _rules(plain)

        def apply(output_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
            return constrain(logits, output_ids, rules)

        return apply


def constrain(logits: torch.Tensor, generated: Sequence[int], rules: Rules) -> torch.Tensor:
    """Mask what Whisper may not say next, in place.

    ``logits``: float[vocabulary] of one request. ``generated``: the tokens so far, forced steps included.
    """
    step = len(generated)
    if step < len(rules.forced):
        allowed = _ids(rules.forced[step], logits.device)
        kept = logits[allowed]
        logits.fill_(-torch.inf)
        logits[allowed] = kept
        return logits
    said = generated[len(rules.forced) :]
    if rules.suppressed:
        logits[_ids(rules.suppressed, logits.device)] = -torch.inf
    if not said and rules.suppressed_at_begin:
        logits[_ids(rules.suppressed_at_begin, logits.device)] = -torch.inf
    # Nothing but text, timestamps and the end may follow the forced steps.
    logits[rules.end_of_text + 1 : rules.no_timestamps + 1] = -torch.inf
    if rules.timestamp_begin is None:
        logits[rules.no_timestamps + 1 :] = -torch.inf
    else:
        _constrain_timestamps(logits, said, rules.timestamp_begin, rules.end_of_text)
    return logits


def _constrain_timestamps(logits: torch.Tensor, said: Sequence[int], begin: int, end_of_text: int) -> None:
    """Timestamps come in pairs, never go back, start within a second, and win where they are likelier than any text."""
    last_is_stamp = bool(said) and said[-1] >= begin
    before_is_stamp = len(said) < 2 or said[-2] >= begin
    if last_is_stamp:
        if before_is_stamp:
            logits[begin:] = -torch.inf  # a pair is complete: text follows
        else:
            logits[:end_of_text] = -torch.inf  # a segment has ended: the next starts, or the end
    stamps = [id for id in said if id >= begin]
    if stamps:
        # A segment may not be empty, but the next one may start where the last ended.
        floor = stamps[-1] if last_is_stamp and not before_is_stamp else stamps[-1] + 1
        logits[begin:floor] = -torch.inf
    if not said:
        logits[:begin] = -torch.inf
        logits[begin + MAX_INITIAL_STEPS + 1 :] = -torch.inf
    scores = torch.log_softmax(logits.float(), dim=-1)
    if torch.logsumexp(scores[begin:], dim=-1) > scores[:begin].max():
        logits[:begin] = -torch.inf


def _rules(plain: Any) -> Rules:
    """The rules from their plain form, with lists back to tuples."""
    values = dict(plain)
    values["forced"] = tuple(tuple(step) for step in values["forced"])
    values["suppressed"] = tuple(values["suppressed"])
    values["suppressed_at_begin"] = tuple(values["suppressed_at_begin"])
    return Rules(**values)


@lru_cache(maxsize=64)
def _ids(ids: tuple[int, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor(ids, dtype=torch.long, device=device)

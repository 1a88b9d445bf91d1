"""Whisper's decode rules inside vLLM's V1 model runner: vLLM itself applies none of them.

Loaded by name in vLLM's engine processes. The rules themselves are in `workers.rules`; here is only who is in which
row, and what it has said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from workers.decoding import ANY_LANGUAGE, Rules
from workers.rules import Rows, Table, constrain, pause_mask, to_device

if TYPE_CHECKING:
    from vllm.config import VllmConfig

#: Where a request's rules travel in its sampling parameters.
EXTRA_ARGUMENT = "whisper"


class Request:
    """One request's rules and, by reference, the tokens that it has said."""

    __slots__ = ("_seen", "_stamp", "pauses", "rules", "said")

    def __init__(self, rules: Rules, said: Sequence[int], device: torch.device) -> None:
        self.rules = rules
        self.said = said
        self.pauses = to_device(pause_mask(rules.pauses), device)
        self._seen = 0
        self._stamp = -1

    @property
    def stamp(self) -> int:
        """The latest timestamp said, -1 for none."""
        if self._seen > len(self.said):  # the request starts over
            self._seen, self._stamp = 0, -1
        for id in self.said[self._seen :]:
            if id > self.rules.no_timestamps:
                self._stamp = id
        self._seen = len(self.said)
        return self._stamp


class WhisperRules(LogitsProcessor):
    """Applies each request's `workers.decoding.Rules`, all rows of a batch at once."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse rules that are not the plain form of `Rules`."""
        rules_in(sampling_params)

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._device = device
        self._requests: dict[int, Request] = {}
        # The pauses of the requests as they stand in the batch, None where none has any; and whether it has changed.
        self._pauses: torch.Tensor | None = None
        self._changed = True

    def is_argmax_invariant(self) -> bool:
        """The rules change which token is best."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the requests through the rows of the batch."""
        if process_dict_updates(self._requests, batch_update, self._request):
            self._changed = True

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Mask what the requests with rules may not say next."""
        if not self._requests:
            return logits
        # vLLM puts a request that moved to another row at the end. In the order of rows a full batch needs no indices.
        indices, requests = zip(*sorted(self._requests.items()), strict=True)
        table = table_of(requests[0].rules, logits.device)
        if self._changed:
            have_pauses = any(request.rules.pauses for request in requests)
            self._pauses = torch.stack([request.pauses for request in requests]) if have_pauses else None
            self._changed = False
        rows = replace(rows_of(requests, logits.device), pauses=self._pauses)
        timed = any(request.rules.timestamps for request in requests)
        if len(indices) == logits.shape[0]:
            return constrain(logits, rows, table, any_timestamps=timed)
        at = to_device(torch.tensor(indices), logits.device)
        logits[at] = constrain(logits[at], rows, table, any_timestamps=timed)
        return logits

    def _request(self, params: SamplingParams, _: list[int] | None, said: list[int]) -> Request | None:
        rules = rules_in(params)
        return None if rules is None else Request(rules, said, self._device)


def rules_in(params: SamplingParams) -> Rules | None:
    """The rules of a request, None for one without. Raises ValueError for another form."""
    plain = (params.extra_args or {}).get(EXTRA_ARGUMENT)
    if plain is None:
        return None
    try:
        return Rules.of_dict(plain)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"extra_args[{EXTRA_ARGUMENT!r}] are no decode rules: {error}") from error


def rows_of(requests: Sequence[Request], device: torch.device) -> Rows:
    """What the rules have to know of each request, one copy to the device."""
    values = [
        (
            request.rules.language,
            request.rules.task,
            request.rules.timestamps,
            len(request.said),
            request.said[-1] if request.said else -1,
            request.said[-2] if len(request.said) > 1 else -1,
            request.stamp,
        )
        for request in requests
    ]
    columns = to_device(torch.tensor(values, dtype=torch.long), device).unbind(1)
    language, task, timestamps, step, last, before, stamp = columns
    return Rows(language, task, timestamps.bool(), step, last, before, stamp)


def table_of(rules: Rules, device: torch.device) -> Table:
    """The checkpoint's table, made once."""
    return _table(replace(rules, language=ANY_LANGUAGE, task=-1, timestamps=False, pauses=()), device)


_table = lru_cache(maxsize=4)(Table.of)

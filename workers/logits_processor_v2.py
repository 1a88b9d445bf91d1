"""Whisper's decode rules inside vLLM's V2 model runner, its default on CUDA: same rules, state kept on the device.

Not used before it has run on a GPU: `workers.engine` pins the V1 runner. The tokens said are read from the runner's
own buffers, so that no step waits for the host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcessor, LogitsProcRequestState

from workers.decoding import Rules
from workers.logits_processor import rules_in, table_of
from workers.rules import STAMPS, Rows, constrain, pause_mask

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class WhisperRulesV2(LogitsProcessor):
    """Applies each request's `workers.decoding.Rules`, all rows of a batch at once."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse rules that are not the plain form of `Rules`."""
        rules_in(sampling_params)

    def __init__(self, vllm_config: VllmConfig, req_states: LogitsProcRequestState) -> None:
        self._states = req_states
        slots = req_states.max_num_reqs
        # Per slot: has rules, language, task, timestamps.
        self._host = torch.zeros((slots, 4), dtype=torch.long)
        self._device = self._host.to(req_states.device)
        self._host_pauses = torch.zeros((slots, STAMPS), dtype=torch.bool)
        self._pauses = self._host_pauses.to(req_states.device)
        self._changed = False
        self._rules: Rules | None = None

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Remember what a slot's new request asks for."""
        rules = rules_in(sampling_params)
        self._changed = True
        if rules is None:
            self._host[req_idx] = 0
            return False
        self._rules = rules
        self._host[req_idx] = torch.tensor([1, rules.language, rules.task, int(rules.timestamps)])
        self._host_pauses[req_idx] = pause_mask(rules.pauses)
        return True

    def apply_staged_writes(self) -> None:
        """Copy what `add_request` changed."""
        if self._changed:
            self._device.copy_(self._host, non_blocking=True)
            self._pauses.copy_(self._host_pauses, non_blocking=True)
            self._changed = False

    def apply(self, logits: torch.Tensor, ctx: LogitsContext) -> torch.Tensor:
        """Mask what the requests with rules may not say next."""
        if self._rules is None or not bool(self._host[ctx.idx_mapping_np, 0].any()):
            return logits
        table = table_of(self._rules, logits.shape[-1], logits.device)
        slots = ctx.expanded_idx_mapping.long()
        has_rules, language, task, timestamps = self._device[slots].unbind(1)
        rows = self._rows(slots, language, task, timestamps.bool(), self._rules.no_timestamps + 1)
        timed = bool(self._host[ctx.idx_mapping_np, 3].any())
        plain = logits.clone() if not bool(self._host[ctx.idx_mapping_np, 0].all()) else logits
        constrained = constrain(logits, rows, table, any_timestamps=timed)
        return constrained if plain is logits else torch.where(has_rules.bool()[:, None], constrained, plain)

    def _rows(self, slots: torch.Tensor, language: Any, task: Any, timestamps: Any, begin: int) -> Rows:
        """Read what each row's request has said from the runner's buffers."""
        tokens = self._states.all_token_ids.gpu[slots].long()
        prompt = self._states.prompt_len.gpu[slots].long()
        total = self._states.total_len.gpu[slots].long()
        at = torch.arange(tokens.shape[1], device=tokens.device)[None]
        said = (at >= prompt[:, None]) & (at < total[:, None])
        stamps = torch.where(said & (tokens >= begin), tokens, -1)

        def back(steps: int) -> torch.Tensor:
            found = tokens.gather(1, (total - steps).clamp(min=0)[:, None])[:, 0]
            return torch.where(total - prompt >= steps, found, -1)

        # Timestamps never go back, so the latest is the greatest.
        stamp = stamps.max(dim=1).values
        return Rows(language, task, timestamps, total - prompt, back(1), back(2), stamp, self._pauses[slots])

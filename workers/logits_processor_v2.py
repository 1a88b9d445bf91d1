"""Whisper's decode rules inside vLLM's V2 model runner, its default on CUDA: same rules, state kept on the device.

Needs vLLM 0.31 (before, the V2 runner takes no custom logits processors). It has run in that runner on a CPU only
(tests/e2e/test_model_runner_v2.py), and so `workers.vllm_options` pins the V1 runner on a GPU. The tokens said are read
from the runner's own buffers, and nothing here waits for the device: V2 prepares a step while the one before is still
running.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcessor, LogitsProcRequestState

from workers.decoding import Rules
from workers.logits_processor import rules_in, table_of
from workers.rules import STAMPS, Rows, constrain, pause_mask

if TYPE_CHECKING:
    from vllm.config import VllmConfig

#: What is kept of a slot's request: whether it has rules, and what they ask for.
HAS_RULES, LANGUAGE, TASK, TIMESTAMPS, HAS_PAUSES = range(5)


class WhisperRulesV2(LogitsProcessor):
    """Applies each request's `workers.decoding.Rules`, all rows of a batch at once. Knows no speculative decoding."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse rules that are not the plain form of `Rules`."""
        rules_in(sampling_params)

    def __init__(self, vllm_config: VllmConfig, req_states: LogitsProcRequestState) -> None:
        self._states = req_states
        slots = req_states.max_num_reqs
        self._host = torch.zeros((slots, 5), dtype=torch.long)
        self._device = self._host.to(req_states.device)
        self._host_pauses = torch.zeros((slots, STAMPS), dtype=torch.bool)
        self._pauses = self._host_pauses.to(req_states.device)
        self._changed = self._changed_pauses = False
        self._rules: Rules | None = None

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Remember what a slot's new request asks for."""
        rules = rules_in(sampling_params)
        self._changed = True
        if rules is None:
            self._host[req_idx] = 0
            return False
        self._rules = rules
        asked = [1, rules.language, rules.task, int(rules.timestamps), int(bool(rules.pauses))]
        self._host[req_idx] = torch.tensor(asked)
        if rules.pauses:
            self._host_pauses[req_idx] = pause_mask(rules.pauses)
            self._changed_pauses = True
        return True

    def apply_staged_writes(self) -> None:
        """Copy what `add_request` changed."""
        if self._changed:
            _upload(self._host, self._device)
        if self._changed_pauses:
            _upload(self._host_pauses, self._pauses)
        self._changed = self._changed_pauses = False

    def apply(self, logits: torch.Tensor, ctx: LogitsContext) -> torch.Tensor:
        """Mask what the requests with rules may not say next."""
        in_batch = self._host[ctx.idx_mapping_np]
        if self._rules is None or not bool(in_batch[:, HAS_RULES].any()):
            return logits
        table = table_of(self._rules, logits.device)
        slots = ctx.expanded_idx_mapping.long()
        asked = self._device[slots]
        # A slot's pauses stay behind when its next request has none.
        has_pauses = bool(in_batch[:, HAS_PAUSES].any())
        pauses = self._pauses[slots] & asked[:, HAS_PAUSES, None].bool() if has_pauses else None
        rows = self._rows(slots, asked, pauses, self._rules.no_timestamps + 1)
        plain = None if bool(in_batch[:, HAS_RULES].all()) else logits.clone()
        constrained = constrain(logits, rows, table, any_timestamps=bool(in_batch[:, TIMESTAMPS].any()))
        return constrained if plain is None else torch.where(asked[:, HAS_RULES, None].bool(), constrained, plain)

    def _rows(self, slots: torch.Tensor, asked: torch.Tensor, pauses: torch.Tensor | None, begin: int) -> Rows:
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

        return Rows(
            language=asked[:, LANGUAGE],
            task=asked[:, TASK],
            timestamps=asked[:, TIMESTAMPS].bool(),
            step=total - prompt,
            last=back(1),
            before=back(2),
            # Timestamps never go back, so the latest is the greatest.
            stamp=stamps.max(dim=1).values,
            pauses=pauses,
        )


def _upload(source: torch.Tensor, target: torch.Tensor) -> None:
    """Copy to the device without waiting for it. From pageable memory CUDA would wait; torch keeps a pinned copy
    until it is read, so ``source`` may change at once.
    """
    staged = source.pin_memory() if target.is_cuda else source
    target.copy_(staged, non_blocking=True)

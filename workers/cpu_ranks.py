"""What a CPU engine's ranks do besides: vLLM loads `CpuRanks` by its name into its worker processes.

Importing this has effects (`workers.int8_kernel`): vLLM does so before it loads a model.
"""

from __future__ import annotations

import inspect
import logging
from typing import Any

from workers import int8_kernel
from workers.encoder_cache import EncoderCache
from workers.ranks import Ranks

int8_kernel.mend()

log = logging.getLogger(__name__)

#: How the runner has a step's tokens chosen (vLLM 0.26 to 0.32).
SAMPLE_PARAMETERS = ("logits", "sampling_metadata", "logprobs_mode_override")


class CpuRanks(Ranks):
    """`Ranks` of an engine on a CPU."""

    def keep_encodings(self, windows: int) -> None:
        """Have the loaded model remember what it makes of the last so many windows."""
        model = self.model_runner.model
        model.embed_multimodal = EncoderCache(model.embed_multimodal, windows)

    def sample_only_what_is_tried_again(self) -> None:
        """Have tokens drawn for those windows alone that want it, later tries, and not for the others beside them.

        vLLM's first model runner divides and draws for all rows of a batch as soon as one wants it (`sampler.py`
        `sample`; 0.32), and keeps the likeliest token of the others: 1.5 ms a step with 16 rows. Each row's draw is
        what it was, as it depends on its own seed. Whatever else a batch asks for is left to vLLM.
        """
        sampler = getattr(self.model_runner, "sampler", None)
        sample = getattr(sampler, "sample", None)
        if sampler is None or sample is None:
            return
        if tuple(inspect.signature(sample).parameters) != SAMPLE_PARAMETERS:
            log.warning("This vLLM samples in another way: it is left as it is, for all rows.")
            return

        def sampled(logits: Any, metadata: Any, mode: Any = None) -> Any:
            rows = _drawn_alone(metadata, mode or sampler.logprobs_mode)
            if rows is None:
                return sample(logits, metadata, mode)
            chosen = sampler.greedy_sample(logits)
            warm = logits[rows] / metadata.temperature[rows, None]
            generators = {place: metadata.generators[row] for place, row in enumerate(rows)}
            drawn, _ = sampler.topk_topp_sampler(warm, generators, None, None)
            chosen[rows] = drawn.to(chosen.dtype)
            return chosen, None

        sampler.sample = sampled


def _drawn_alone(metadata: Any, logprobs_mode: str) -> list[int] | None:
    """The rows that want a temperature, where that and a seed is all they want; None where vLLM is to see to it."""
    if metadata.all_greedy or metadata.all_random or metadata.top_k is not None or metadata.top_p is not None:
        return None
    if not logprobs_mode.startswith("raw_") or any(
        getattr(one, "min_p_count", None) != 0 for one in metadata.logitsprocs.argmax_invariant
    ):
        return None
    rows: list[int] = (metadata.temperature > 0.0).nonzero()[:, 0].tolist()
    return rows if set(rows) == set(metadata.generators) else None

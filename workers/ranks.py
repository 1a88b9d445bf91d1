"""What an engine's ranks do besides: vLLM loads `Ranks` by its name into its worker processes."""

from __future__ import annotations

import inspect
import logging
from typing import Any

log = logging.getLogger(__name__)

#: How the first runner's sampler is asked for the log-probabilities of tokens that a request names (vLLM 0.26 to 0.32).
GATHER_PARAMETERS = ("logprobs", "logprob_token_ids", "sampled")


class Ranks:
    """Methods that vLLM adds to its worker class and calls in every rank (`AsyncLLM.collective_rpc`)."""

    model_runner: Any

    def order_encodings(self) -> None:
        """Have windows of one step encoded in the order of their rows in the batch.

        vLLM's first model runner encodes them in the order in which they were scheduled, and cross-attention gives the
        encodings out by row (`gpu_model_runner.py` `_batch_mm_inputs_from_scheduler`, `cross_attention.py`
        `_get_cross_slot_mapping`; 0.32). A window that was preempted is scheduled before new ones and gets a row behind
        them: each would be written down as the other. The second runner orders them by itself.
        """
        runner = self.model_runner
        encode = getattr(runner, "_execute_mm_encoder", None)
        if encode is None:
            return

        def in_order(scheduled: Any) -> Any:
            windows, rows = scheduled.scheduled_encoder_inputs, runner.input_batch.req_id_to_index
            scheduled.scheduled_encoder_inputs = {id: windows[id] for id in sorted(windows, key=rows.__getitem__)}
            return encode(scheduled)

        runner._execute_mm_encoder = in_order

    def gather_rows_together(self) -> None:
        """Have the log-probability that every window asks for gathered for all rows at once.

        vLLM's first model runner goes through the rows one by one in Python, at each step, although all ask for the
        same (`sampler.py` `gather_specific_token_logprobs`; 0.32): 4 ms of a core at 128 rows. Its own way is left to
        it for any other batch. The second runner has no such loop.
        """
        sampler = getattr(self.model_runner, "sampler", None)
        gather = getattr(sampler, "gather_specific_token_logprobs", None)
        if sampler is None or gather is None:
            return
        if tuple(inspect.signature(gather).parameters) != GATHER_PARAMETERS:
            log.warning("This vLLM gathers log-probabilities in another way: it is left as it is, row by row.")
            return

        def gathered(logprobs: Any, logprob_token_ids: dict[int, list[int]], sampled: Any) -> Any:
            ids = logprob_token_ids.get(0)
            if logprob_token_ids.keys() != set(range(len(logprobs))) or any(
                others != ids for others in logprob_token_ids.values()
            ):
                return gather(logprobs, logprob_token_ids, sampled)
            # As if only the first row had asked: what the others lack is what it has.
            whole = gather(logprobs, {0: ids}, sampled)
            names = whole.logprob_token_ids[0, 1:]
            whole.logprob_token_ids[1:, 1:] = names
            whole.logprobs[:, 1:] = logprobs.index_select(1, names.long())
            return whole

        sampler.gather_specific_token_logprobs = gathered

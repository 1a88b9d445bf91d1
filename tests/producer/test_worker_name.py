"""What workers are called that are started without a name."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterator

from fleet import CLI, Fleet, wait_for
from producer.embedded import end, start_guarded
from producer.worker_name import free_name
from workers.presence import live_workers

URL = "redis://one:secret@broker.test:6379/0"


def test_each_has_a_name_of_its_own_and_the_first_free_one() -> None:
    with contextlib.ExitStack() as stack:
        first = contextlib.ExitStack()
        assert first.enter_context(free_name(URL)) == "worker@%h"
        assert stack.enter_context(free_name(URL)) == "worker2@%h"
        # Whoever reaches the same broker by another user is among them, and who reaches another is not
        assert stack.enter_context(free_name("redis://two:secret@broker.test:6379/0")) == "worker3@%h"
        assert stack.enter_context(free_name("redis://other.test:6379/0")) == "worker@%h"
        first.close()
        assert stack.enter_context(free_name(URL)) == "worker@%h"


def names(fleet: Fleet) -> list[str]:
    return sorted(one.name.partition("@")[0] for one in live_workers(fleet.redis))


@contextlib.contextmanager
def default_worker(fleet: Fleet, number: int) -> Iterator[subprocess.Popen[bytes]]:
    """As the README starts it."""
    process = start_guarded([*CLI, "worker"], fleet.environment(), fleet.log_path(number))
    try:
        yield process
    finally:
        end(process, 20.0)


def test_two_workers_by_the_default_command_are_two(fleet: Fleet) -> None:
    """They count as two, and one that ends takes only itself away."""
    with default_worker(fleet, 1) as first, default_worker(fleet, 2):
        wait_for(lambda: names(fleet) == ["worker", "worker2"], 120.0)
        assert fleet.cli("workers", "--name", "worker2@%h").returncode == 0
        left = "worker" if first_is_second(fleet) else "worker2"
        first.send_signal(signal.SIGTERM)
        assert first.wait(60) == 0
        assert names(fleet) == [left]


def first_is_second(fleet: Fleet) -> bool:
    """By the first worker's log: which of the two was faster is nobody's choice."""
    return "worker2@" in fleet.log_path(1).read_text()

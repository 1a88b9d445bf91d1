"""Work that follows on answers, and the end of it: whoever waits is told, and closing always comes to its end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from workers.errors import EngineLostError
from workers.interface import WindowResult
from workers.later import Later

SECONDS = 30.0


@pytest.fixture
def go_on() -> Iterator[threading.Event]:
    """Until it is set, whoever waits for it keeps a thread."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def later(go_on: threading.Event) -> Later:
    """All its threads are at work."""
    made = Later("later")
    for _ in range(2):
        made.run(Future(), lambda: go_on.wait(SECONDS) and None)
    return made


def test_closing_ends_where_a_failed_answer_leads_to_more_work(later: Later) -> None:
    """As the second hearing of a window that repeats its prompt does."""
    first: Future[WindowResult] = Future()
    second: Future[WindowResult] = Future()
    later.run(first, lambda: None)
    first.add_done_callback(lambda _: later.run(second, lambda: None))

    closing = threading.Thread(target=later.close, daemon=True)
    closing.start()
    closing.join(SECONDS)

    assert not closing.is_alive()
    assert all(isinstance(one.exception(0), EngineLostError) for one in (first, second))


def test_work_that_comes_to_a_thread_only_after_closing_is_not_begun(later: Later, go_on: threading.Event) -> None:
    answer: Future[WindowResult] = Future()
    begun: list[None] = []
    later.run(answer, lambda: begun.append(None))
    later._waiting.clear()  # as if it had been handed over at the same moment
    later.close()
    go_on.set()
    assert isinstance(answer.exception(SECONDS), EngineLostError)
    assert begun == []

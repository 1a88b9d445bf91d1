"""Work beside a loop: what it gives, what it raises, and how it ends when nobody wants it any more."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from producer.aside import ROWS_BETWEEN_LOOKS, Piece, Stopped, StoppedError, never, while_wanted


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def until_stopped(stopped: Stopped) -> str:
    while not stopped():
        time.sleep(0.01)
    raise StoppedError


def test_a_piece_gives_what_its_work_gives_or_raises(threads: ThreadPoolExecutor) -> None:
    good, bad = Piece(threads, lambda stopped: 3), Piece(threads, lambda stopped: 1 // 0)
    Piece.wait_all([good, bad], 30)
    assert good.result() == 3
    with pytest.raises(ZeroDivisionError):
        bad.result()
    assert (good.end(), bad.end()) == (3, None)


def test_a_piece_takes_as_long_as_it_took_and_not_as_long_as_it_waited(threads: ThreadPoolExecutor) -> None:
    long, short = Piece(threads, lambda stopped: time.sleep(0.3)), Piece(threads, lambda stopped: 1 // 0)
    Piece.wait_all([long, short], 30)
    assert long.seconds >= 0.3
    assert 0 < short.seconds < long.seconds


def test_what_nobody_wants_ends(threads: ThreadPoolExecutor) -> None:
    running = Piece(threads, until_stopped)
    queued = Piece(threads, lambda stopped: "never begun")
    assert not running.wait()
    assert (queued.end(), running.end()) == (None, None)
    assert (queued.wait(), running.wait()) == (True, True)


def test_rows_are_wanted_until_they_are_not() -> None:
    rows = range(3 * ROWS_BETWEEN_LOOKS)
    assert list(while_wanted(rows, never)) == list(rows)
    stop = threading.Event()
    wanted = while_wanted(rows, stop.is_set)
    assert [next(wanted) for _ in range(10)] == list(range(10))
    stop.set()
    left: list[int] = []
    with pytest.raises(StoppedError):
        left.extend(wanted)
    assert len(left) < ROWS_BETWEEN_LOOKS, "soon no more"

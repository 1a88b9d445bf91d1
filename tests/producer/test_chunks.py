"""How many rows a message has: work for every thread, full engines, and little to wait for at the end."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.chunks import FULL, MOST_WINDOW_ROWS, Chunk, ChunkLimits, window_rows_for
from workers.messages import (
    MAX_MESSAGE_BYTES,
    MAX_PROMPT_CHARACTERS,
    MAX_SOURCE_CHARACTERS,
    MAX_SOURCES_CHARACTERS,
    Record,
)
from workers.presence import Presence


def worker(threads: int, max_num_seqs: int) -> Presence:
    return Presence(
        name="w",
        queues=["transcribe"],
        model="m",
        revision="r",
        device="d",
        version="v",
        tasks=["transcribe"],
        languages=["en"],
        max_num_seqs=max_num_seqs,
        threads=threads,
    )


workers = st.lists(st.builds(worker, st.integers(1, 64), st.integers(1, 256)), max_size=100)


@given(st.integers(0, 10**8), workers)
def test_chunks_leave_work_for_every_thread(rows: int, present: list[Presence]) -> None:
    size = ChunkLimits.of(rows, present).rows
    threads = sum(one.threads for one in present) or 8
    seats = sum(one.max_num_seqs for one in present) or 16
    assert 1 <= size <= 64
    assert size == 1 or rows >= threads * size, "every thread gets a message"
    if size > math.ceil(FULL * seats / threads):
        assert rows >= 8 * threads * size, "large ones leave several to every thread"


@given(st.integers(1, 10**8), st.integers(1, 100), st.integers(1, 64), st.floats(1, 4))
def test_the_engines_are_full_as_soon_as_there_are_rows(rows: int, count: int, threads: int, ratio: float) -> None:
    # Given: workers as they come, with fewer threads than windows that their engines decode at once.
    seats = round(threads * ratio)
    size = ChunkLimits.of(rows, [worker(threads, seats)] * count).rows
    at_once = min(rows, MOST_WINDOW_ROWS)
    assert count * threads * size >= min(at_once - count * threads, FULL * count * seats)


@pytest.mark.parametrize(
    ("rows", "present", "expected"),
    [
        (3, [worker(4, 8)], 1),
        (4 * 64 - 1, [worker(64, 128)] * 4, 1),
        (8 * 64, [worker(64, 128)] * 4, 2),
        (10_000, [worker(64, 128)] * 4, 4),
        (10**6, [worker(64, 128)], 64),
        (10**7, [worker(64, 128)] * 100, 4),
        (10**6, [], 64),
    ],
)
def test_sizes_of_messages(rows: int, present: list[Presence], expected: int) -> None:
    assert ChunkLimits.of(rows, present).rows == expected


def test_a_users_own_size_holds_whatever_the_audio() -> None:
    assert ChunkLimits.of(10**6, [], rows=5) == ChunkLimits(5, math.inf)


@given(st.integers(1, 10**8), workers, st.integers(1, 10**5))
def test_messages_are_small_enough_for_a_users_own_window(rows: int, present: list[Presence], window: int) -> None:
    size = ChunkLimits.of(rows, present, window_rows=window).rows
    assert size == 1 or size * (sum(one.threads for one in present) or 8) <= window


def test_long_rows_make_small_messages_but_no_idle_engine() -> None:
    eight = ChunkLimits.of(10**6, [worker(8, 8)])
    assert (eight.seconds_with(2), eight.seconds_with(3)) == (60, 60)
    # One thread that has to fill an engine of eight windows may have sixteen of them.
    one = ChunkLimits.of(10**6, [worker(1, 8)])
    assert (one.seconds_with(16), one.seconds_with(17)) == (480, 60)
    assert [len(rows) for rows in chunks(one, [30.0] * 40)] == [16, 16, 8]
    # and of short rows as many as make a minute, if that is more.
    assert [len(rows) for rows in chunks(one, [2.0] * 70)] == [30, 30, 10]
    assert [len(rows) for rows in chunks(one, [20.0] * 40)] == [16, 16, 8]


@given(st.integers(1, 10**8), workers)
def test_the_window_has_room_for_all_threads_twice(rows: int, present: list[Presence]) -> None:
    limits = ChunkLimits.of(rows, present)
    window_rows = window_rows_for(present, limits)
    threads = sum(one.threads for one in present) or 8
    assert 2000 <= window_rows <= MOST_WINDOW_ROWS
    assert window_rows >= min(2 * threads * limits.rows, MOST_WINDOW_ROWS)
    fill = math.ceil(FULL * (sum(one.max_num_seqs for one in present) or 16) / threads)
    assert limits.rows <= fill or window_rows >= 2 * threads * limits.rows, "large messages never close it"


def chunks(limits: ChunkLimits, lengths: list[float]) -> list[list[int]]:
    """The row numbers of the messages that rows of these lengths make."""
    made, chunk = [], Chunk(limits)
    for row, seconds in enumerate(lengths):
        if not chunk.has_room(seconds):
            made.append(chunk.take())
        chunk.add(Record(audio="a", row=row), seconds)
        if chunk.is_full:
            made.append(chunk.take())
    return [[record.row or 0 for record in one] for one in (*made, chunk.take()) if one]


@given(st.integers(1, 64), st.floats(1, 100), st.lists(st.floats(0, 200)))
def test_messages_keep_to_both_limits(rows: int, seconds: float, lengths: list[float]) -> None:
    made = chunks(ChunkLimits(rows, seconds), lengths)
    assert [row for one in made for row in one] == list(range(len(lengths))), "every row once, in order"
    for one in made:
        assert len(one) <= rows
        assert len(one) == 1 or sum(lengths[row] for row in one) <= seconds * (1 + 1e-9)


def test_a_message_is_closed_where_the_next_row_is_too_long() -> None:
    limits = ChunkLimits(4, 60)
    assert chunks(limits, [20, 30, 15, 500, 1, 1, 1, 1, 1]) == [[0, 1], [2], [3], [4, 5, 6, 7], [8]]


@given(st.integers(0, 10**6), st.integers(1, 64), st.integers(1, 256), st.integers(1, 16))
def test_the_last_quarter_goes_in_smaller_and_smaller_messages(rows: int, threads: int, seats: int, count: int) -> None:
    limits = ChunkLimits.of(rows, [worker(threads, seats)] * count)
    sizes, left = [], rows
    while left:
        sizes.append(min(left, limits.towards_end(left).rows))
        left -= sizes[-1]
        # Whoever takes it, no more than half of a thread's part of what was left is behind it: or it fills the engines
        assert sizes[-1] <= max(limits.fill, (left + sizes[-1]) // (2 * threads * count))
    assert sizes == sorted(sizes, reverse=True)
    assert all(size <= limits.rows for size in sizes)


def test_no_message_is_too_large_for_a_worker() -> None:
    # Given rows as long as they may be, in characters that take the most bytes
    sources = ["\U0001f3a4" * MAX_SOURCE_CHARACTERS] * (MAX_SOURCES_CHARACTERS // MAX_SOURCE_CHARACTERS)
    records = [Record(audio=sources, prompt="\U0001f3a4" * MAX_PROMPT_CHARACTERS, row=row) for row in range(3)]
    short = Record(audio="a", row=3)
    chunk = Chunk(ChunkLimits(64))
    chunk.add(short, 1)
    while not chunk.is_full:
        chunk.add(records.pop(), 1)
    body = json.dumps([[one.model_dump(exclude_defaults=True) for one in chunk.take()]])
    assert len(body) < MAX_MESSAGE_BYTES
    chunk.add(short, 1)
    assert not chunk.is_full, "the next one begins with nothing"


def test_long_prompts_close_a_message() -> None:
    chunk = Chunk(ChunkLimits(64))
    while not chunk.is_full:
        chunk.add(Record(audio="a", prompt="p" * MAX_PROMPT_CHARACTERS, row=0), 1)
    assert len(chunk.take()) == math.ceil(MAX_SOURCES_CHARACTERS / (MAX_PROMPT_CHARACTERS + 1))


def test_the_users_own_size_stays() -> None:
    limits = ChunkLimits.of(1000, [worker(4, 8)], rows=7)
    assert limits.towards_end(8) == limits

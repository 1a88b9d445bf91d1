"""A window of calls: how far items are read, in which order they are given, and what becomes of the rest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producer.connection import Connection
from producer.errors import ClientClosedError, FleetUnavailableError, UsageError
from producer.handle import Handle
from producer.many import many, many_async
from workers.errors import TranscriptionError


@dataclass
class Sent:
    """What was sent. Answered, the last first, when so many are under way, or when there are no more items."""

    at_once: int = 10**9
    read: int = 0
    futures: dict[int, Future[Any]] = field(default_factory=dict)
    cancelled: list[str] = field(default_factory=list)
    most_under_way: int = 0

    def items(self, count: int) -> Iterator[int]:
        for number in range(count):
            self.read += 1
            yield number
        self.answer_all()

    async def items_async(self, count: int) -> AsyncIterator[int]:
        for number in self.items(count):
            await asyncio.sleep(0)
            yield number

    def send(self, item: int) -> Handle[Any]:
        if item < 0:
            raise UsageError(f"{item}: bad")
        future: Future[Any] = Future()
        self.futures[item] = future
        waiting = [one for one, future in self.futures.items() if not future.done()]
        self.most_under_way = max(self.most_under_way, len(waiting))
        if len(waiting) >= self.at_once:
            self.answer_all()
        return Handle(str(item), future, cast("Connection", None))

    async def send_async(self, item: int) -> Handle[Any]:
        return self.send(item)

    def cancel(self, ids: Iterable[str]) -> None:
        self.cancelled.extend(ids)

    async def cancel_async(self, ids: Iterable[str]) -> None:
        self.cancel(ids)

    def answer_all(self) -> None:
        for one in reversed([one for one, future in self.futures.items() if not future.done()]):
            self.answer(one)

    def answer(self, item: int) -> None:
        if item % 7 == 3:
            self.futures[item].set_exception(TranscriptionError("not_audio", str(item)))
        else:
            self.futures[item].set_result(item * 10)


def flat(pair: tuple[int, Any]) -> tuple[int, Any]:
    item, outcome = pair
    return item, str(outcome) if isinstance(outcome, Exception) else outcome


def expected(item: int) -> tuple[int, Any]:
    return item, f"not_audio: {item}" if item % 7 == 3 else item * 10


@settings(max_examples=30)
@given(st.integers(0, 40), st.integers(1, 10), st.integers(1, 10))
def test_every_item_is_given_once_with_what_came_of_it(count: int, window: int, at_once: int) -> None:
    sent = Sent(at_once=min(at_once, window))
    given = []
    for pair in many(sent.items(count), sent.send, sent.cancel, window):
        given.append(flat(pair))
        assert sent.read - len(given) < window
    assert sorted(given) == [expected(item) for item in range(count)]
    assert sent.most_under_way <= window
    assert sent.cancelled == []


@settings(max_examples=30)
@given(st.integers(0, 40), st.integers(1, 10), st.integers(1, 10), st.booleans())
def test_asyncio_gives_the_same(count: int, window: int, at_once: int, is_async: bool) -> None:
    sent = Sent(at_once=min(at_once, window))

    async def run() -> list[tuple[int, Any]]:
        given = []
        items = sent.items_async(count) if is_async else sent.items(count)
        async for pair in many_async(items, sent.send_async, sent.cancel_async, window):
            given.append(flat(pair))
            assert sent.read - len(given) <= window
        return given

    assert sorted(asyncio.run(run())) == [expected(item) for item in range(count)]
    assert sent.most_under_way <= window
    assert sent.cancelled == []


def test_an_answer_is_given_before_more_is_read() -> None:
    sent = Sent(at_once=2)
    given = many(sent.items(10), sent.send, sent.cancel, 5)
    assert [next(given) for _ in range(2)] == [(0, 0), (1, 10)]
    assert sent.read == 2


def test_closing_reads_no_more_and_cancels_what_is_under_way() -> None:
    sent = Sent(at_once=3)
    given = many(sent.items(1000), sent.send, sent.cancel, 3)
    next(given)
    given.close()
    assert sent.read == 3
    assert sorted(sent.cancelled) == ["0", "2"]


def test_closing_cancels_with_asyncio_too() -> None:
    sent = Sent()

    async def run() -> None:
        given = many_async(sent.items(1000), sent.send_async, sent.cancel_async, 4)
        first = asyncio.ensure_future(anext(given))
        while len(sent.futures) < 4:
            await asyncio.sleep(0)
        sent.answer(2)
        assert await first == (2, 20)
        await given.aclose()

    asyncio.run(run())
    assert sorted(sent.cancelled) == ["0", "1", "3"]
    assert sent.read == 4


def test_an_item_that_cannot_be_sent_has_its_error() -> None:
    sent = Sent(at_once=1)
    given = [flat(pair) for pair in many([1, -1, 2], sent.send, sent.cancel, 5)]
    assert given == [(1, 10), (-1, "-1: bad"), (2, 20)]


def test_what_concerns_all_is_raised_and_the_rest_cancelled() -> None:
    sent = Sent()

    def send(item: int) -> Handle[Any]:
        if item == 2:
            raise FleetUnavailableError("Redis is away")
        return sent.send(item)

    with pytest.raises(FleetUnavailableError):
        list(many(sent.items(5), send, sent.cancel, 5))
    assert sent.cancelled == ["0", "1"]


def test_a_client_that_is_closed_meanwhile_ends_it() -> None:
    sent = Sent()

    def closed() -> Iterator[int]:
        yield 0
        yield 1
        sent.futures[1].set_exception(ClientClosedError("closed"))
        yield 2

    given = many(closed(), sent.send, sent.cancel, 3)
    with pytest.raises(ClientClosedError):
        next(given)
    assert sorted(sent.cancelled) == ["0", "2"]


def test_answers_come_while_the_next_item_is_waited_for() -> None:
    sent = Sent(at_once=1)

    async def slow() -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()

    async def run() -> None:
        given = many_async(slow(), sent.send_async, sent.cancel_async, 5)
        assert await asyncio.wait_for(anext(given), 60) == (1, 10)
        await given.aclose()

    asyncio.run(run())

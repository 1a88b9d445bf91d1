"""Many calls, a window of them under way at a time: as many more are made as have been answered."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Generator, Iterable
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

from producer.calls import Outcome
from producer.errors import CallCancelledError, UsageError
from producer.handle import Handle
from workers.errors import TranscriptionError

X = TypeVar("X")

#: What is wrong with one item, and not with the fleet.
_ITS_OWN = (TranscriptionError, UsageError, CallCancelledError)
_NO_MORE: Any = object()


def many(
    items: Iterable[X],
    send: Callable[[X], Handle[Any]],
    cancel: Callable[[Iterable[str]], object],
    window: int,
) -> Generator[tuple[X, Outcome], None, None]:
    """Each item with what came of it, at most ``window`` of them read and not given (see `producer.Client`)."""
    rest = iter(items)
    answered: SimpleQueue[str] = SimpleQueue()
    under_way: dict[str, tuple[X, Handle[Any]]] = {}
    more = True
    try:
        while more or under_way:
            if not more or len(under_way) == window or not answered.empty():
                if answered.empty():
                    next(iter(under_way.values()))[1].check_process()
                item, handle = under_way.pop(answered.get())
                yield item, _outcome(handle)
                continue
            item = next(rest, _NO_MORE)
            if item is _NO_MORE:
                more = False
                continue
            try:
                handle = send(item)
            except _ITS_OWN as error:
                yield item, error
                continue
            under_way[handle.id] = item, handle
            handle.when_done(partial(answered.put, handle.id))
    finally:
        cancel(under_way)


async def many_async(
    items: Iterable[X] | AsyncIterable[X],
    send: Callable[[X], Awaitable[Handle[Any]]],
    cancel: Callable[[Iterable[str]], Awaitable[object]],
    window: int,
) -> AsyncGenerator[tuple[X, Outcome], None]:
    """`many` for asyncio: answers are given also while the next item is waited for."""
    loop = asyncio.get_running_loop()
    rest = aiter(items) if isinstance(items, AsyncIterable) else _each(items)
    answered: asyncio.Queue[str] = asyncio.Queue()
    under_way: dict[str, tuple[X, Handle[Any]]] = {}
    reading: asyncio.Task[X] | None = None
    waiting: asyncio.Task[str] | None = None
    more = True

    def tell(id: str) -> None:  # by the thread that brings the answer
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(answered.put_nowait, id)

    try:
        while more or under_way:
            if more and reading is None and len(under_way) < window:
                reading = asyncio.create_task(_next(rest))
            if under_way and waiting is None:
                waiting = asyncio.create_task(answered.get())
            await asyncio.wait([task for task in (reading, waiting) if task], return_when=asyncio.FIRST_COMPLETED)
            if waiting is not None and waiting.done():
                item, handle = under_way.pop(waiting.result())
                waiting = None
                yield item, _outcome(handle)
            if reading is not None and reading.done():
                item, reading = reading.result(), None
                if item is _NO_MORE:
                    more = False
                    continue
                try:
                    handle = await send(item)
                except _ITS_OWN as error:
                    yield item, error
                    continue
                under_way[handle.id] = item, handle
                handle.when_done(partial(tell, handle.id))
    finally:
        for task in (reading, waiting):
            if task is not None:
                task.cancel()
        await cancel(under_way)


def _outcome(handle: Handle[Any]) -> Outcome:
    """What came of a call that is done. Raises what concerns all calls."""
    try:
        return handle.result()  # type: ignore[no-any-return]
    except _ITS_OWN as error:
        return error


async def _each(items: Iterable[X]) -> AsyncIterator[X]:
    for item in items:
        yield item


async def _next(items: AsyncIterator[X]) -> X:
    return await anext(items, _NO_MORE)

"""`producer.Client` for asyncio: the same names, and nothing that blocks the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, Unpack, overload

from producer.calls import Audio, AudioList, CallOptions, ManyOptions, Outcome, Result, call_of
from producer.client import WINDOW, Client, check_many
from producer.errors import FleetError
from producer.handle import Handle
from producer.many import many_async
from workers.errors import TranscriptionError
from workers.messages import ChannelMode, Item, Task, Transcript

if TYPE_CHECKING:
    from producer.step import JobOptions

#: Celery has no asyncio, so calls are sent by threads: a few, each send being a round trip to Redis. Answers need none
#: (`producer.answers`).
SENDERS = 4

T = TypeVar("T")
X = TypeVar("X", bound=Audio | AudioList)
P = TypeVar("P", bound=str | os.PathLike[str])


class _Senders:
    """The threads. A forked process has others: an executor would count on those that it had before, and wait."""

    def __init__(self) -> None:
        self._start()

    def submit(self, call: Callable[..., T], *arguments: Any) -> Future[T]:
        """Have ``call`` made by a thread."""
        if self._pid != os.getpid():
            self._start()
        return self._executor.submit(call, *arguments)

    async def run(self, call: Callable[..., T], *arguments: Any) -> T:
        """What ``call`` returns or raises."""
        return await asyncio.wrap_future(self.submit(call, *arguments))

    def _start(self) -> None:
        self._executor, self._pid = ThreadPoolExecutor(SENDERS, thread_name_prefix="send"), os.getpid()


@dataclass(frozen=True, slots=True, eq=False)
class AsyncHandle(Generic[T]):
    """One call (see `producer.Handle`). Tasks of any event loop may wait for it; their end does not cancel it."""

    _handle: Handle[T]
    _askers: _Senders

    @property
    def id(self) -> str:
        """That of its task, as Flower shows it."""
        return self._handle.id

    async def result(self, timeout: float | None = None) -> T:
        """Wait for the answer, at most ``timeout`` seconds; raises as `Handle.result` does."""
        self._handle.check_process()
        waiting = asyncio.wrap_future(self._handle.future)
        try:
            await asyncio.wait([waiting], timeout=timeout)
            if waiting.done():
                return waiting.result()
        finally:
            waiting.cancel()  # it is the waiting that ends here
        raise await self._askers.run(self._handle.timed_out, timeout)

    def done(self) -> bool:
        """Whether there is an answer."""
        return self._handle.done()

    async def cancel(self) -> bool:
        """Give the call up; False where it has its answer already (see `Handle.cancel`)."""
        return await self._askers.run(self._handle.cancel)


class AsyncClient:
    """Sends recordings to a fleet, as `Client` does, which see. Use as an asynchronous context manager."""

    def __init__(self, url: str | None = None) -> None:
        self._set_up(Client(url))

    @classmethod
    def embedded(
        cls,
        model: str | None = None,
        *,
        workers: int = 1,
        tensor_parallel_size: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> AsyncClient:
        """A client with a fleet of its own (see `Client.embedded`)."""
        made = cls.__new__(cls)
        made._set_up(
            Client.embedded(model, workers=workers, tensor_parallel_size=tensor_parallel_size, environment=environment)
        )
        return made

    def _set_up(self, client: Client) -> None:
        self._client = client
        self._connection = client._connection
        self._senders = _Senders()
        #: For questions that are soon over, also where Redis is silent and the senders wait for it.
        self._askers = _Senders()

    async def open(self) -> AsyncClient:
        """Open now, and not at the first call."""
        await asyncio.to_thread(self._client.open)
        return self

    async def close(self) -> None:
        """End it (see `Client.close`)."""
        # The threads stay, idle, until the client is forgotten: handles ask them what is the matter.
        await asyncio.to_thread(self._client.close)

    async def __aenter__(self) -> AsyncClient:
        try:
            return await self.open()
        except asyncio.CancelledError:
            # Nobody else would: an own fleet would come up, and who ends the loop wait for its model.
            threading.Thread(target=self._client.close, name="close", daemon=True).start()
            raise

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @overload
    async def transcribe(
        self, audio: str | os.PathLike[str], *, channels: Literal["mix"] = ..., **options: Unpack[CallOptions]
    ) -> AsyncHandle[Transcript]: ...
    @overload
    async def transcribe(
        self, audio: str | os.PathLike[str], *, channels: Literal["split"], **options: Unpack[CallOptions]
    ) -> AsyncHandle[Result]: ...
    @overload
    async def transcribe(
        self, audio: Mapping[str, Any], *, channels: Literal["mix"] = ..., **options: Unpack[CallOptions]
    ) -> AsyncHandle[Transcript | list[Item]]: ...
    @overload
    async def transcribe(
        self, audio: Mapping[str, Any], *, channels: Literal["split"], **options: Unpack[CallOptions]
    ) -> AsyncHandle[Result | list[Item]]: ...
    @overload
    async def transcribe(
        self, audio: AudioList, *, channels: ChannelMode = ..., **options: Unpack[CallOptions]
    ) -> AsyncHandle[list[Item]]: ...
    async def transcribe(
        self, audio: Audio | AudioList, *, channels: ChannelMode = "mix", **options: Unpack[CallOptions]
    ) -> AsyncHandle[Any]:
        """Send a recording to be written down in the language spoken (see `Client.transcribe`)."""
        return await self._submit("transcribe", audio, {"channels": channels, **options})

    @overload
    async def translate(
        self, audio: str | os.PathLike[str], *, channels: Literal["mix"] = ..., **options: Unpack[CallOptions]
    ) -> AsyncHandle[Transcript]: ...
    @overload
    async def translate(
        self, audio: str | os.PathLike[str], *, channels: Literal["split"], **options: Unpack[CallOptions]
    ) -> AsyncHandle[Result]: ...
    @overload
    async def translate(
        self, audio: Mapping[str, Any], *, channels: Literal["mix"] = ..., **options: Unpack[CallOptions]
    ) -> AsyncHandle[Transcript | list[Item]]: ...
    @overload
    async def translate(
        self, audio: Mapping[str, Any], *, channels: Literal["split"], **options: Unpack[CallOptions]
    ) -> AsyncHandle[Result | list[Item]]: ...
    @overload
    async def translate(
        self, audio: AudioList, *, channels: ChannelMode = ..., **options: Unpack[CallOptions]
    ) -> AsyncHandle[list[Item]]: ...
    async def translate(
        self, audio: Audio | AudioList, *, channels: ChannelMode = "mix", **options: Unpack[CallOptions]
    ) -> AsyncHandle[Any]:
        """Send a recording to be translated into English (see `Client.transcribe`)."""
        return await self._submit("translate", audio, {"channels": channels, **options})

    @overload
    def submit_many(
        self,
        items: Iterable[P] | AsyncIterable[P],
        *,
        task: Task = ...,
        window: int = ...,
        channels: Literal["mix"] = ...,
        **options: Unpack[CallOptions],
    ) -> AsyncGenerator[tuple[P, Transcript | TranscriptionError | FleetError], None]: ...
    @overload
    def submit_many(
        self,
        items: Iterable[X] | AsyncIterable[X],
        *,
        task: Task = ...,
        window: int = ...,
        **options: Unpack[ManyOptions],
    ) -> AsyncGenerator[tuple[X, Outcome], None]: ...
    async def submit_many(
        self,
        items: Iterable[Any] | AsyncIterable[Any],
        *,
        task: Task = "transcribe",
        window: int = WINDOW,
        **options: Unpack[ManyOptions],
    ) -> AsyncGenerator[tuple[Any, Any], None]:
        """Send ``items`` and give each with what came of it (see `Client.submit_many`).

        An asynchronous iterable is waited for while answers are given; an ordinary one must not block.
        """
        await self._senders.run(check_many, self._connection, task, window, options)

        async def send(item: Any) -> Handle[Any]:
            return (await self._submit(task, item, options))._handle

        async def cancel(ids: Iterable[str]) -> None:
            await self._askers.run(self._connection.cancel, list(ids))

        given = many_async(items, send, cancel, window)
        try:
            async for pair in given:
                yield pair
        finally:
            await given.aclose()

    async def run_job(
        self,
        *inputs: str | os.PathLike[str],
        max_failed: str | None = None,
        progress: bool = False,
        **options: Unpack[JobOptions],
    ) -> Path:
        """Transcribe the rows of JSONL files into the next step file (see `Client.run_job`), in a thread of its own.

        Cancelled, it goes on to its end.
        """
        return await asyncio.to_thread(
            self._client.run_job, *inputs, max_failed=max_failed, progress=progress, **options
        )

    async def _submit(self, task: Task, audio: Audio | AudioList, options: Mapping[str, Any]) -> AsyncHandle[Any]:
        call = call_of(task, audio, options)
        sending = self._senders.submit(self._connection.submit, call)
        try:
            handle = await asyncio.wrap_future(sending)
        except asyncio.CancelledError:  # nobody has the handle of what may be sent all the same
            with contextlib.suppress(RuntimeError):  # the interpreter ends
                self._senders.submit(_cancel_sent, sending)
            raise
        return AsyncHandle(handle, self._askers)


def _cancel_sent(sending: Future[Handle[Any]]) -> None:
    """In a thread: Redis is waited for. ``sending`` is before it in the threads' queue."""
    wait([sending])
    if not sending.cancelled() and sending.exception() is None:
        sending.result().cancel()

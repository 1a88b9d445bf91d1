"""The Python API for other applications: calls to a fleet, answered by handles. Knows no files of a job."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack, overload

from producer.calls import Audio, AudioList, CallOptions, ManyOptions, Outcome, Result, call_of
from producer.connection import Connection, OwnFleet
from producer.errors import FleetError, UsageError
from producer.handle import Handle
from producer.many import many
from workers.errors import SettingsError, TranscriptionError
from workers.messages import ChannelMode, Item, Task, Transcript
from workers.settings import Settings, load_settings, variables

if TYPE_CHECKING:
    from producer.step import JobOptions

#: Calls that `submit_many` has under way: enough for the engines of a few workers.
WINDOW = 64

X = TypeVar("X", bound=Audio | AudioList)
P = TypeVar("P", bound=str | os.PathLike[str])


class Client:
    """Sends recordings to the fleet of ``url`` or ``REDIS_URL``; without either to one of its own on this machine.

    Any number of threads may use one client; an asyncio program uses `producer.AsyncClient`. Use as a context manager,
    or call `close`. It opens at its first use: an own fleet (a private Valkey and one local worker, see `embedded`)
    then loads its engine, which takes a minute or so, and ends with the client or the process. Not for datasets: those
    are jobs (`run_job`), which survive any crash.

    Every method may raise UsageError (nothing was sent), FleetUnavailableError, ClientClosedError, and FleetError for
    an own fleet that broke; all of them are FleetErrors with ``type`` and ``message``.
    """

    def __init__(self, url: str | None = None) -> None:
        config = _settings(**({} if url is None else {"REDIS_URL": url}))
        own = None if config.redis_url is not None else _own_fleet(config.model, 1, None, {})
        self._connection = Connection(config, own)

    @classmethod
    def embedded(
        cls,
        model: str | None = None,
        *,
        workers: int = 1,
        tensor_parallel_size: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Client:
        """A client with a fleet of its own, whatever ``REDIS_URL`` says.

        ``model``: as `whisper-fleet run --model`; ``workers``: engines on this machine; ``tensor_parallel_size``: GPUs
        that share one; ``environment``: further settings of the workers (``{"WHISPER_CONCURRENCY": "8"}``).
        """
        client = cls.__new__(cls)
        config = _settings(REDIS_URL=None)
        own = _own_fleet(model or config.model, workers, tensor_parallel_size, environment or {})
        client._connection = Connection(config, own)
        return client

    def open(self) -> Client:
        """Open now, and not at the first call: returns when the fleet can be used."""
        self._connection.open()
        return self

    def close(self) -> None:
        """End it. Handles without an answer raise ClientClosedError, and their calls are cancelled."""
        self._connection.close()

    def __enter__(self) -> Client:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    @overload
    def transcribe(
        self, audio: str | os.PathLike[str], *, channels: Literal["mix"] = ..., **options: Unpack[CallOptions]
    ) -> Handle[Transcript]: ...
    @overload
    def transcribe(
        self, audio: str | os.PathLike[str], *, channels: Literal["split"], **options: Unpack[CallOptions]
    ) -> Handle[Result]: ...
    @overload
    def transcribe(
        self, audio: Mapping[str, Any], *, channels: Literal["mix"] = ..., **options: Unpack[CallOptions]
    ) -> Handle[Transcript | list[Item]]: ...
    @overload
    def transcribe(
        self, audio: Mapping[str, Any], *, channels: Literal["split"], **options: Unpack[CallOptions]
    ) -> Handle[Result | list[Item]]: ...
    @overload
    def transcribe(
        self, audio: AudioList, *, channels: ChannelMode = ..., **options: Unpack[CallOptions]
    ) -> Handle[list[Item]]: ...
    def transcribe(
        self, audio: Audio | AudioList, *, channels: ChannelMode = "mix", **options: Unpack[CallOptions]
    ) -> Handle[Any]:
        """Send a recording to be written down in the language spoken; see `producer.calls` for what may be given.

        The answer is its Transcript; with ``channels="split"`` a ChannelTranscripts where it has several channels. A
        list of recordings, of a row too (one call, on one worker), is answered by a list, in which a Failure stands for
        one that failed. What a row names is not seen by its type: ``transcribe(path, start_s=1.0)`` has that of a
        Transcript, ``transcribe({"audio": path, "start_s": 1.0})`` of either.
        """
        return self._connection.submit(call_of("transcribe", audio, {"channels": channels, **options}))

    @overload
    def translate(
        self, audio: str | os.PathLike[str], *, channels: Literal["mix"] = ..., **options: Unpack[CallOptions]
    ) -> Handle[Transcript]: ...
    @overload
    def translate(
        self, audio: str | os.PathLike[str], *, channels: Literal["split"], **options: Unpack[CallOptions]
    ) -> Handle[Result]: ...
    @overload
    def translate(
        self, audio: Mapping[str, Any], *, channels: Literal["mix"] = ..., **options: Unpack[CallOptions]
    ) -> Handle[Transcript | list[Item]]: ...
    @overload
    def translate(
        self, audio: Mapping[str, Any], *, channels: Literal["split"], **options: Unpack[CallOptions]
    ) -> Handle[Result | list[Item]]: ...
    @overload
    def translate(
        self, audio: AudioList, *, channels: ChannelMode = ..., **options: Unpack[CallOptions]
    ) -> Handle[list[Item]]: ...
    def translate(
        self, audio: Audio | AudioList, *, channels: ChannelMode = "mix", **options: Unpack[CallOptions]
    ) -> Handle[Any]:
        """Send a recording to be translated into English; else as `transcribe`."""
        return self._connection.submit(call_of("translate", audio, {"channels": channels, **options}))

    @overload
    def submit_many(
        self,
        items: Iterable[P],
        *,
        task: Task = ...,
        window: int = ...,
        channels: Literal["mix"] = ...,
        **options: Unpack[CallOptions],
    ) -> Generator[tuple[P, Transcript | TranscriptionError | FleetError], None, None]: ...
    @overload
    def submit_many(
        self, items: Iterable[X], *, task: Task = ..., window: int = ..., **options: Unpack[ManyOptions]
    ) -> Generator[tuple[X, Outcome], None, None]: ...
    def submit_many(
        self,
        items: Iterable[Any],
        *,
        task: Task = "transcribe",
        window: int = WINDOW,
        **options: Unpack[ManyOptions],
    ) -> Generator[tuple[Any, Any], None, None]:
        """Send ``items`` and give each with what came of it, as they come: its answer, or the error of its own.

        At most ``window`` of them are under way, and ``items`` is read no further than that, so that it may be of any
        length. An error of one item is given in the place of its answer; what concerns all (Redis is away, an own fleet
        broke) is raised. Closing the generator cancels what is under way.
        """
        check_many(self._connection, task, window, options)
        return many(
            items,
            lambda item: self._connection.submit(call_of(task, item, options)),
            self._connection.cancel,
            window,
        )

    def run_job(
        self,
        *inputs: str | os.PathLike[str],
        max_failed: str | None = None,
        progress: bool = False,
        **options: Unpack[JobOptions],
    ) -> Path:
        """Transcribe the rows of JSONL files into the next step file, as `whisper-fleet run` does; returns its path.

        ``options`` are those of the command line (``task="translate"``, ``cache_path="cache"``, ``timestamps=True``).
        The same call again resumes what was interrupted. ``progress`` shows it on stderr. Raises UsageError for wrong
        input, and FleetError where no row succeeded or more than ``max_failed`` (``"10"``, ``"5%"``) failed.
        """
        from producer.step import run_step

        return run_step(self._connection, inputs, options, max_failed=max_failed, progress=progress)


def check_many(connection: Connection, task: Task, window: int, options: Mapping[str, Any]) -> None:
    """Raise UsageError for what would be wrong with every item of `submit_many`."""
    if window < 1:
        raise UsageError(f"window={window}: must be at least 1")
    connection.check(call_of(task, "/any", options))


def _own_fleet(
    model: str | None, workers: int, tensor_parallel_size: int | None, environment: Mapping[str, str]
) -> OwnFleet:
    for name, value in (("workers", workers), ("tensor_parallel_size", tensor_parallel_size)):
        if value is not None and value < 1:
            raise UsageError(f"{name}={value}: must be at least 1")
    return OwnFleet(workers, {**environment, **variables(model=model, tensor_parallel_size=tensor_parallel_size)})


def _settings(**overrides: Any) -> Settings:
    try:
        return load_settings(**overrides)
    except SettingsError as error:
        raise UsageError(str(error)) from None

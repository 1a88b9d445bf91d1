"""What an application's call asks for, checked before it is sent, and what its answer says.

A call is a message without a job (`workers.calls`): one record, whose transcript comes back as the task's result.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypedDict, TypeVar, cast

from pydantic import ValidationError

from producer.errors import CallCancelledError, FleetError, UsageError
from producer.rows import RECORD_OPTIONS, record_of
from workers.errors import TranscriptionError
from workers.languages import canonical_language
from workers.messages import (
    ChannelMode,
    ChannelTranscripts,
    Failure,
    Item,
    Options,
    Record,
    Task,
    Transcript,
    parse_options,
)
from workers.source_errors import SCHEME

#: A recording: a path, a URL, or a row with either in its column ``audio`` and, where wanted, ``language``,
#: ``prompt``, ``start_s`` and ``end_s`` of its own. Other columns of a row are its owner's and stay here.
Audio = str | os.PathLike[str] | Mapping[str, Any]
#: Several recordings of one call, answered together by a list.
AudioList = list[str] | list[Path] | tuple[str | os.PathLike[str], ...]
#: What becomes of a recording that did not fail.
Result = Transcript | ChannelTranscripts
#: All that may come of one item of `submit_many`. Errors are given, not raised.
Outcome = Result | list[Item] | TranscriptionError | FleetError

T = TypeVar("T")


class CallOptions(TypedDict, total=False):
    """The options of a call, as on the command line. ``start_s`` and ``end_s``: only this part, in seconds."""

    language: str
    prompt: str | None
    timestamps: bool
    model: str | None
    start_s: float | None
    end_s: float | None


class ManyOptions(CallOptions, total=False):
    """The options of many calls."""

    channels: ChannelMode


#: Those of a record; the others are the whole message's.
_OF_RECORD = ("start_s", "end_s")
_KNOWN = (*ManyOptions.__annotations__,)
#: Words that a row cannot say for itself.
_OF_CALL = ("timestamps", "channels", "model", "task")


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One call, ready to be sent. ``is_list``: it is answered by a list, also where that holds one recording."""

    task: Task
    record: Record
    options: Options
    is_list: bool

    @property
    def language(self) -> str:
        """The language that counts: the record's own, or that of the options."""
        return self.record.language or self.options.language

    def answer(self, meta: Mapping[str, Any]) -> T:
        """What Celery's result ``meta`` says.

        Raises TranscriptionError for a recording (or, of a list, a call) that failed, CallCancelledError, and
        FleetError for what no worker of this version says.
        """
        status, result = meta.get("status"), meta.get("result")
        if status == "REVOKED":
            raise CallCancelledError("the call was revoked before a worker took it")
        try:
            if status == "SUCCESS":
                return cast("T", self._answer(result))
            raise _failure_of(result)
        except TranscriptionError as error:
            if self.is_list and len(self.record.sources) == 1:
                return cast("T", [Failure.of(error)])
            raise
        except (ValidationError, LookupError, TypeError, ValueError) as error:
            raise FleetError(f"an answer that this version cannot read: {error}") from error

    def _answer(self, result: Any) -> Result | list[Item]:
        (entry,) = result
        if self.is_list:
            return [_item(one) for one in (entry if isinstance(entry, list) else [entry])]
        item = _item(entry)
        if isinstance(item, Failure):
            raise TranscriptionError(item.type, item.message)
        return item


def call_of(task: Task, audio: Audio | AudioList, options: Mapping[str, Any]) -> Call[Any]:
    """The call that ``audio`` and ``options`` ask for. Relative paths start at this process's working directory.

    Raises UsageError for what no worker could do.
    """
    if task not in ("transcribe", "translate"):
        raise UsageError(f"task {task!r}: must be transcribe or translate")
    for name in options:
        if name not in _KNOWN:
            raise UsageError(f"unknown option {name!r}: there are {', '.join(_KNOWN)}")
    row: dict[str, Any] = {name: options[name] for name in _OF_RECORD if name in options}
    if isinstance(audio, Mapping):
        for name in _OF_CALL:
            if name in audio:
                raise UsageError(f"{name!r} in a row: it is an option of the call")
        row.update({name: audio[name] for name in RECORD_OPTIONS if name in audio})
        audio = audio.get("audio")  # type: ignore[assignment]
    is_list = isinstance(audio, list | tuple)
    row["audio"] = [_source(one) for one in cast("AudioList", audio)] if is_list else _source(audio)
    folder = _folder(row["audio"] if is_list else [row["audio"]])
    try:
        # As a line of JSON, so that a row is read in one place: wherever it comes from, it means the same.
        record = record_of(0, json.dumps(row).encode("ascii"), "audio", folder)
    except TypeError as error:
        raise UsageError(f"no JSON: {error}") from None
    if isinstance(record, Failure):
        raise UsageError(record.message, type=record.type)
    return Call(task, record.model_copy(update={"row": None}), _options(options), is_list)


def _folder(sources: Sequence[str | None]) -> str:
    """Where relative paths start. Raises UsageError where there is such a path, and no such folder any more."""
    try:
        return str(Path.cwd())
    except OSError:
        relative = next((one for one in sources if one and not Path(one).is_absolute() and not SCHEME.match(one)), None)
        if relative is not None:
            raise UsageError(f"audio {relative!r}: relative to a working directory that was removed") from None
        return "/"


def _options(options: Mapping[str, Any]) -> Options:
    kept = {name: value for name, value in options.items() if name not in _OF_RECORD}
    try:
        checked = parse_options({name: value for name, value in kept.items() if value is not None})
        prompt = (checked.prompt or "").strip() or None
        (prompt or "").encode("utf-8")
        return checked.model_copy(update={"language": canonical_language(checked.language), "prompt": prompt})
    except TranscriptionError as error:
        raise UsageError(error.message, type=error.type) from None
    except UnicodeEncodeError:
        raise UsageError("prompt: not valid UTF-8") from None


def _source(value: Any) -> str | None:
    source = os.fspath(value) if isinstance(value, os.PathLike) else value
    if source is not None and not isinstance(source, str):
        raise UsageError(f"audio: {type(value).__name__} is no path, URL, list of them or row")
    return source


def _item(entry: Any) -> Item:
    if "error" in entry:
        return Failure.model_validate(entry["error"])
    if "channels" in entry:
        channels = [cast("Transcript | Failure", _item(channel)) for channel in entry["channels"]]
        return ChannelTranscripts(channels=channels)
    # What a newer worker says besides is passed over.
    return Transcript.model_validate({name: entry[name] for name in Transcript.model_fields if name in entry})


def _failure_of(result: Any) -> TranscriptionError:
    """A task's failure as Celery writes it: the exception's name and arguments."""
    name, said = result["exc_type"], result["exc_message"]
    if name in ("TranscriptionError", "TransientError") and isinstance(said, list) and len(said) == 2:
        return TranscriptionError(str(said[0]), str(said[1]))
    text = " ".join(map(str, said)) if isinstance(said, list | tuple) else str(said)
    return TranscriptionError("worker_error", f"{name}: {text}")

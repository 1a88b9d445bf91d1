"""What a job is, as its job.json says it: same header, same job."""

from __future__ import annotations

import json
import os
from dataclasses import MISSING, asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from producer.cache import atomic_write
from producer.errors import UsageError

#: Version of job.json; a change that older code would misread raises it.
HEADER_VERSION = 1

#: Options that came later, and what a job does whose header does not name them.
LATER_OPTIONS: dict[str, Any] = {"channels": "mix", "prompt": None, "reuse": None}

#: How a difference in the input begins.
INPUT_CHANGED = "the input has changed"


@dataclass(frozen=True, slots=True)
class Retry:
    """The rows of a finished step that are being done again (`producer.retry`), and what stands beside them.

    ``rows``: how many; ``reasons``: the failures that were asked for, empty for any. ``kept_sha256`` is of the step's
    other lines, each with its newline; ``kept_failed`` and ``kept_reasons`` count their failures as a job's summary
    does.
    """

    rows: int
    reasons: list[str]
    kept_sha256: str
    kept_failed: int
    kept_reasons: dict[str, int]


@dataclass(frozen=True, slots=True)
class JobHeader:
    """What a job does. Times are ISO 8601, ``bytes`` are decompressed, ``rows`` are those of the whole step."""

    id: str
    created: str
    inputs: list[str]
    rows: int
    bytes: int
    sha256: str
    task: str
    options: dict[str, Any]
    audio_root: str
    output: str
    complete: bool = False
    summary: dict[str, Any] | None = None
    version: int = field(default=HEADER_VERSION)
    retry: Retry | None = None

    def option(self, name: str) -> Any:
        """An option of the job; headers of older versions do not name all of them."""
        return self.options.get(name, LATER_OPTIONS.get(name))

    def write(self, path: Path) -> None:
        """Write the header in one step, readable by this user only."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=True)
        with atomic_write(path, mode=0o600) as handle:
            handle.write(text.encode("ascii") + b"\n")

    @classmethod
    def read(cls, path: Path) -> JobHeader | None:
        """The header at ``path``, None where there is none. Raises UsageError for one that this version cannot read."""
        try:
            data = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UsageError(f"{path}: cannot be read ({error.strerror}): is it another user's?") from error
        except ValueError:
            data = None
        if not isinstance(data, dict):
            raise UsageError(f"{path}: damaged: start over with --force")
        if data.get("version") != HEADER_VERSION:
            raise UsageError(
                f"{path}: of another version of whisper-fleet ({data.get('version')!r}, this one reads "
                f"{HEADER_VERSION}): finish it with that one, or start over with --force"
            )
        needed = {item.name for item in fields(cls) if item.default is MISSING}
        try:
            if not needed <= data.keys():
                raise TypeError
            retry = data.pop("retry", None)
            return cls(**data, retry=None if retry is None else Retry(**retry))
        except TypeError:
            raise UsageError(f"{path}: damaged: start over with --force") from None


def now() -> str:
    """The time, as headers say it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def differences(old: JobHeader, new: JobHeader) -> list[str]:
    """What would make ``new`` another job than ``old``, in words; empty where it resumes."""
    found = []
    if old.sha256 != new.sha256:
        found.append(f"{INPUT_CHANGED} (content hash{_rows(old, new)})")
    if old.task != new.task:
        found.append(f"task was {old.task!r}, now {new.task!r}")
    if _place(old.audio_root) != _place(new.audio_root):
        found.append(f"audio root was {old.audio_root!r}, now {new.audio_root!r}")
    for name in {**old.options, **new.options}:
        before, now = old.option(name), new.option(name)
        # What was taken from another step is in the journal: a job that is resumed need not name it again.
        same = _place(before) == _place(now) or now is None if name == "reuse" else before == now
        if not same:
            found.append(changed(name, before, now))
    return found


def _place(path: str | None) -> str | None:
    """A folder or file as it is compared: ``..`` stays in it or not, by what is there when a command runs."""
    return path and os.path.normpath(path)


def changed(name: str, before: Any, now: Any) -> str:
    """That an option is another, in words."""
    return f"{name.replace('_', ' ')} was {_word(before)}, now {_word(now)}"


def _rows(old: JobHeader, new: JobHeader) -> str:
    return "" if old.rows == new.rows else f", {old.rows} rows then, {new.rows} now"


def _word(value: Any) -> str:
    words: dict[Any, str] = {None: "not set", True: "on", False: "off"}
    return words[value] if value is None or isinstance(value, bool) else repr(value)

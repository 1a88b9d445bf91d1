"""When each message ended, how long it took and how many rows of a job it had: as Celery logs it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

_SUCCEEDED = re.compile(
    r"^\[(?P<at>[\d-]+ [\d:]+,\d+): INFO/\w+\] Task whisper\.\w+\[(?P<id>[^]]+)\] succeeded in (?P<seconds>[\d.]+)s: "
    r"(?:{'rows': (?P<rows>\d+))?"
)


@dataclass(frozen=True, slots=True)
class Message:
    """A message: its id, when it ended (seconds since the epoch), how long it took, its rows (0: a call)."""

    id: str
    ended: float
    seconds: float
    rows: int


def messages(path: Path) -> Iterator[Message]:
    """The messages that a worker's log says were done, in the order of their ends."""
    for line in path.read_text(errors="replace").splitlines():
        if match := _SUCCEEDED.match(line):
            at = datetime.strptime(match["at"], "%Y-%m-%d %H:%M:%S,%f")
            yield Message(match["id"], at.timestamp(), float(match["seconds"]), int(match["rows"] or 0))

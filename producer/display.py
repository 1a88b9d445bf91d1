"""What a person sees while a job runs: what it waits for, how far it is, and what came of it. All of it on stderr."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from producer.registry import Progress
from workers.messages import Task

#: Where nobody watches (a log file), a line so often.
LINE_SECONDS = 10.0


class Display:
    """A progress bar on a terminal, a line now and then elsewhere. Use as a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bar: Bar | None = None
        self._status = ""
        self._doing = "working"
        self._began: float | None = None
        self._seconds_before = 0.0
        self._answered_before = 0
        self._said = 0.0

    def __enter__(self) -> Display:
        if self._console.is_terminal and not self._console.quiet:
            self._bar = Bar(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
                # What the program prints goes where it always does. Its words on stderr pass above the bar, if both
                # are there: lines of a log would tear it.
                redirect_stdout=False,
                redirect_stderr=self._console.stderr,
            )
            self._bar.start()
            self._bar.add_task("starting", total=None, figures="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, task: Task) -> None:
        """Say from now on what is done with the rows."""
        self._doing = {"transcribe": "transcribing", "translate": "translating"}[task]

    def waiting(self, what: str) -> None:
        """Say what is being waited for; repeated words are said once where nobody watches."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=what)
        elif what.partition(" (")[0] != self._status.partition(" (")[0]:
            self._say(what)
        self._status = what

    def progress(self, progress: Progress) -> None:
        """Show rows done, failed, audio seconds per second and the time left."""
        now = time.monotonic()
        if self._began is None:
            self._began, self._seconds_before = now, progress.audio_seconds
            self._answered_before = progress.answered
        elapsed = now - self._began
        speed = (progress.audio_seconds - self._seconds_before) / elapsed if elapsed > 0 else 0.0
        reused = f"{progress.reused} reused, " if progress.reused else ""
        figures = f"{progress.failed} failed, {reused}{speed:.1f} audio s/s"
        if self._bar is not None:
            self._bar.update(
                self._bar.task_ids[0],
                description=self._doing,
                total=progress.rows,
                completed=progress.answered,
                figures=figures,
            )
        elif now - self._said >= LINE_SECONDS or progress.answered == progress.rows:
            self._said = now
            done, now_done = progress.answered, progress.answered - self._answered_before
            left = f", about {elapsed / now_done * (progress.rows - done):.0f} s left" if now_done else ""
            self._say(f"{done} of {progress.rows} rows, {figures}{left}")

    def summary(self, result: Progress) -> None:
        """One line on what came of the job, failures by reason."""
        reused = f"{result.reused} reused, " if result.reused else ""
        line = f"{result.rows} rows, {result.failed} failed, {reused}{result.audio_seconds:.1f} s of audio"
        reasons = ", ".join(f"{count} x {reason}" for reason, count in sorted(result.reasons.items()))
        self._say(f"{line} ({reasons})" if reasons else line)

    def _say(self, line: str) -> None:
        # Paths and texts are nobody's markup, and a line stays one line however long.
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def result_table(path: Path, media_key: str, output_key: str, most_rows: int = 50) -> Table:
    """File, language and text of the first rows of a step file."""
    table = Table("file", "language", "text", title=None)
    with path.open("rb") as lines:  # a row may have carriage returns, as white space
        for number, line in enumerate(lines):
            if number == most_rows:
                table.add_row("...", "", f"(more rows in {path})")
                break
            row = json.loads(line, parse_int=float)  # int() refuses some of a column that is passed through
            table.add_row(*(Text(_shown(cell)) for cell in _cells(row, media_key, output_key)))
    return table


def _shown(text: str) -> str:
    """A text that any terminal takes: a file's name may be no UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def _cells(row: dict[str, Any], media_key: str, output_key: str) -> tuple[str, str, str]:
    media, text = row[media_key], row[output_key]
    details, error = row.get(f"{output_key}_details"), row.get(f"{output_key}_error")
    names = [str(name) for name in media] if isinstance(media, list) else [str(media)]
    languages = [str((entry or {}).get("language") or "-") for entry in _listed(details)]
    shown = [str(entry) if entry is not None else "" for entry in _listed(text)]
    problems = [f"[{entry['type']}] {entry['message']}" for entry in _listed(error) if entry]
    return "\n".join(names), "\n".join(languages), "\n".join([*filter(None, shown), *problems])


def _listed(value: Any) -> list[Any]:
    """The entries of a column: one, one a recording, or one a channel of a recording."""
    return [entry for part in value for entry in _listed(part)] if isinstance(value, list) else [value]

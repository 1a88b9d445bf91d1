"""What a caller asks for, and what may be wrong with it before any row is looked at."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from producer.cache import Step, is_text
from producer.errors import UsageError
from producer.header import JobHeader
from producer.locating import absolute
from workers.errors import TranscriptionError
from workers.languages import canonical_language
from workers.messages import MAX_NAME_CHARACTERS, MAX_PROMPT_CHARACTERS, ChannelMode, Task


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What a caller asks for; the fields are the options of ``whisper-fleet run``."""

    inputs: tuple[str, ...]
    task: Task = "transcribe"
    language: str = "auto"
    prompt: str | None = None
    channels: ChannelMode = "mix"
    timestamps: bool = False
    details: bool = False
    model: str | None = None
    media_key: str = "audio"
    output_key: str = "transcription"
    overwrite_column: bool = False
    audio_root: str | None = None
    cache_path: str = "cache"
    prefix: str | None = None
    step: int = 0
    limit: int | None = None
    force: bool = False
    reuse: str | None = None

    def check(self) -> None:
        """Raise UsageError for an option that no job can have."""
        if self.step < 0:
            raise UsageError(f"--step {self.step}: steps count from 0, the input")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"--limit {self.limit}: must be at least 1")
        if self.limit is not None and self.limit > sys.maxsize:
            raise UsageError(f"--limit {self.limit}: no input has so many rows: leave it out")
        try:
            canonical_language(self.language)
        except TranscriptionError as error:
            raise UsageError(f"--language {self.language}: {error.message}") from None
        try:
            (self.prompt or "").encode("utf-8")
        except UnicodeEncodeError:
            raise UsageError("--prompt: not valid UTF-8") from None
        for name, text, most in (
            ("--prompt", self.prompt, MAX_PROMPT_CHARACTERS),
            ("--model", self.model, MAX_NAME_CHARACTERS),
        ):
            if len(text or "") > most:
                raise UsageError(f"{name}: {len(text or '')} characters, at most {most} are possible")


def audio_root(spec: JobSpec, step: Step, step0: list[Path]) -> str:
    """Where relative paths start: as told, as the step before had it, or the folder of step 0.

    Raises UsageError where that is several folders, or one whose name no message can carry.
    """
    root = _audio_root(spec, step, step0)
    if not is_text(root):
        raise UsageError(f"{root!a}: not valid UTF-8: name another folder with --audio-root")
    return root


def _audio_root(spec: JobSpec, step: Step, step0: list[Path]) -> str:
    if spec.audio_root is not None:
        return spec.audio_root if "://" in spec.audio_root else str(absolute(spec.audio_root))
    if step.number > 1:
        before = JobHeader.read(Step(step.cache_path, step.prefix, step.number - 1).header_path)
        if before is not None:
            return before.audio_root
    folders = {str(absolute(path.parent)) for path in step0}
    if len(folders) > 1:
        raise UsageError("the inputs lie in several folders: say with --audio-root where relative paths start")
    return folders.pop()

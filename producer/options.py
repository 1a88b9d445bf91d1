"""The options that say what a job is, written once for every command that takes a job."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from enum import StrEnum
from functools import wraps
from typing import Annotated, Any

import typer

from producer.spec import JobSpec


class TaskName(StrEnum):
    """The task types."""

    TRANSCRIBE = "transcribe"
    TRANSLATE = "translate"


class ChannelsName(StrEnum):
    """What becomes of a recording's channels."""

    MIX = "mix"
    SPLIT = "split"


def job_spec(
    inputs: Annotated[list[str], typer.Argument(help="JSONL files or globs, .gz and .zst too.", metavar="INPUT...")],
    task: Annotated[TaskName, typer.Option(help="Text in the language spoken, or in English.")] = TaskName.TRANSCRIBE,
    language: Annotated[
        str, typer.Option(help="Language spoken: name or code; auto and per-window detect it.")
    ] = "auto",
    prompt: Annotated[
        str | None, typer.Option(help="Words that are likely to be said; a row's own `prompt` is used instead.")
    ] = None,
    channels: Annotated[
        ChannelsName, typer.Option(help="Transcribe the mean of a recording's channels, or each on its own (lists).")
    ] = ChannelsName.MIX,
    timestamps: Annotated[bool, typer.Option("--timestamps", help="Add segments with their times.")] = False,
    details: Annotated[bool, typer.Option("--details", help="Add language, duration, quality figures.")] = False,
    model: Annotated[str | None, typer.Option(help="Model to use (default: the fleet's).")] = None,
    media_key: Annotated[str, typer.Option(help="Column that holds the audio paths or URLs.")] = "audio",
    output_key: Annotated[str, typer.Option(help="Column that gets the text.")] = "transcription",
    overwrite_column: Annotated[
        bool, typer.Option("--overwrite-column", help="Replace output columns that are there already.")
    ] = False,
    audio_root: Annotated[
        str | None, typer.Option(help="Where relative paths start (default: the input's folder).")
    ] = None,
    cache_path: Annotated[str, typer.Option(help="Folder of the step files.")] = "cache",
    prefix: Annotated[str | None, typer.Option(help="Name of the step files (default: the input's).")] = None,
    step: Annotated[int, typer.Option(help="Step to read, 0 is the input; step N+1 is written.")] = 0,
    limit: Annotated[int | None, typer.Option(help="Only the first N rows.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Start over, whatever the step's earlier job was.")] = False,
    reuse: Annotated[
        str | None,
        typer.Option(metavar="OLD_STEP", help="Step file whose answers are taken for audio files unchanged since."),
    ] = None,
) -> JobSpec:
    """The job that a command line describes."""
    return JobSpec(
        inputs=tuple(inputs),
        task="translate" if task is TaskName.TRANSLATE else "transcribe",
        language=language,
        prompt=prompt,
        channels="split" if channels is ChannelsName.SPLIT else "mix",
        timestamps=timestamps,
        details=details,
        model=model,
        media_key=media_key,
        output_key=output_key,
        overwrite_column=overwrite_column,
        audio_root=audio_root,
        cache_path=cache_path,
        prefix=prefix,
        step=step,
        limit=limit,
        force=force,
        reuse=reuse,
    )


def takes_job(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options above: its first parameter, ``spec``, is made of them."""
    shared = inspect.signature(job_spec, eval_str=True).parameters
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

    @wraps(command)
    def wrapper(**values: Any) -> None:
        spec = job_spec(**{name: values.pop(name) for name in shared})
        command(spec, **values)

    parameters = [*shared.values(), *own]
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapper

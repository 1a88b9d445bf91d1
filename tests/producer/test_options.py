"""The options that say what a job is, on every command that takes one."""

from __future__ import annotations

import dataclasses
import re
from typing import Annotated

import typer
from typer.testing import CliRunner

from producer.cli import app as whisper_fleet
from producer.options import takes_job
from producer.spec import JobSpec


def spec_of(*arguments: str) -> tuple[JobSpec, int]:
    """The job and the command's own option that a command line means."""
    seen: list[tuple[JobSpec, int]] = []
    app = typer.Typer()

    @app.command()
    @takes_job
    def command(spec: JobSpec, own: Annotated[int, typer.Option()] = 7) -> None:
        seen.append((spec, own))

    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, done.output
    return seen[0]


def test_without_options_the_defaults_of_a_job_hold() -> None:
    assert spec_of("data.jsonl") == (JobSpec(inputs=("data.jsonl",)), 7)


def test_every_field_of_a_job_can_be_set() -> None:
    wanted = JobSpec(
        inputs=("a.jsonl", "b/*.jsonl.gz"),
        task="translate",
        language="German",
        prompt="Ada, Grace",
        channels="split",
        timestamps=True,
        details=True,
        model="whisper-base",
        media_key="path",
        output_key="text",
        overwrite_column=True,
        audio_root="s3://bucket/x",
        cache_path="/tmp/c d",
        prefix="ü",
        step=2,
        limit=5,
        force=True,
        reuse="old_step1.jsonl",
    )
    arguments = [*wanted.inputs, "--own", "3"]
    for field in dataclasses.fields(JobSpec):
        value, name = getattr(wanted, field.name), f"--{field.name.replace('_', '-')}"
        if field.name != "inputs":
            assert value != field.default, "every option is set here"
            arguments += [name] if value is True else [name, str(value)]
    assert spec_of(*arguments) == (wanted, 3)


def test_run_and_enqueue_take_the_same_job() -> None:
    names = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(JobSpec)} - {"--inputs"}
    for command in ("run", "enqueue"):
        shown = CliRunner().invoke(whisper_fleet, [command, "--help"], env={"COLUMNS": "200"}).output
        assert names <= set(re.findall(r"--[a-z-]+", shown)), command

"""From the options of a command line to a job on disk: a new one, or the one that stands there already.

What is wrong with the input or the options is found here, before anything is enqueued or overwritten.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from producer import reuse
from producer.audio_files import read_stamps, stamped, write_stamps
from producer.cache import Step, check_writable
from producer.columns import Columns
from producer.errors import FleetError, UsageError
from producer.header import JobHeader, now
from producer.inputs import default_prefix, expand_inputs, stamp_of
from producer.job import Job, new_id
from producer.journal import Journal
from producer.locating import absolute
from producer.rows import ScanRules, scan
from producer.spec import JobSpec, audio_root
from producer.standing import end_beginning, settle, standing_header
from workers.languages import canonical_language


def open_job(spec: JobSpec, before_new: Callable[[], object] = lambda: None) -> Job:
    """The job that ``spec`` asks for: a new one, or the one whose files are there already.

    Checks every row, and looks at every audio file that this machine can see. ``before_new`` may refuse a new job.
    Raises UsageError (exit code 2) for whatever is wrong, with nothing overwritten.
    """
    spec.check()
    step0 = expand_inputs(spec.inputs)
    prefix = spec.prefix or default_prefix(step0)
    step = Step(absolute(spec.cache_path), prefix, spec.step + 1)
    inputs = step.input_of([absolute(path) for path in step0])
    _check_made(inputs[0], step)
    columns = Columns(spec.output_key, spec.timestamps, spec.details)
    columns.check(spec.media_key)
    refused = frozenset() if spec.overwrite_column else frozenset(columns.names())
    stamp = stamp_of(inputs)
    found = scan(inputs, ScanRules(spec.media_key, refused, spec.limit))
    check_writable(step.cache_path)
    header = JobHeader(
        id=new_id(step),
        created=now(),
        inputs=[str(path) for path in inputs],
        rows=found.rows,
        bytes=found.bytes,
        sha256=found.sha256,
        task=spec.task,
        options={
            "language": canonical_language(spec.language),
            "prompt": (spec.prompt or "").strip() or None,
            "channels": spec.channels,
            "timestamps": spec.timestamps,
            "details": spec.details,
            "model": spec.model,
            "media_key": spec.media_key,
            "output_key": spec.output_key,
            "overwrite_column": spec.overwrite_column,
            "limit": spec.limit,
            "reuse": spec.reuse and str(absolute(spec.reuse)),
        },
        audio_root=audio_root(spec, step, step0),
        output=str(step.path),
    )
    end_beginning(step)
    standing = None if spec.force else standing_header(step, header)
    if standing is not None:
        if not standing.complete:
            step.cancelled_path.unlink(missing_ok=True)
        return Job(step, _where_it_lies(step, standing, header.inputs), stamp)
    before_new()
    old = None if spec.reuse is None else reuse.open_old(Path(spec.reuse), header)
    with step.staging() as folder:
        reused = _prepare(Job(step, header, stamp), old, folder)
        job = Job(step, settle(step, header, folder, force=spec.force), stamp)
    return _finished(job) if reused == found.rows else job


def _prepare(job: Job, old: reuse.OldStep | None, folder: Path) -> int:
    """Write what a new job begins with into ``folder``; returns how many rows are answered by ``old``.

    Raises UsageError where the input was changed since its rows were checked: answers know only their numbers.
    """
    try:
        reused = _prepared(job, old, folder)
    except ValueError:  # it has more or fewer rows, perhaps
        job.check_input()
        raise
    if stamp_of(job.header.inputs) != job.stamp:
        job.check_input()
    return reused


def _prepared(job: Job, old: reuse.OldStep | None, folder: Path) -> int:
    audio_path = folder / job.step.audio_path.name
    write_stamps(audio_path, (stamps for _, stamps in stamped(record for _, record in job.records())))
    if old is None:
        return 0
    journal = Journal.open(folder / job.step.journal_path.name, job.rows)
    try:
        reuse.take(old, job.records(), read_stamps(audio_path), journal, folder / "index.sqlite")
        return journal.answered
    finally:
        journal.close()


def _finished(job: Job) -> Job:
    """A job whose rows are all answered before it begins needs no fleet."""
    with job.step.lock("collector") as collecting:
        if not collecting.acquire() or job.reload().is_finished():
            return job.reload()
        journal = Journal.open(job.step.journal_path, job.rows)
        try:
            return job.finish(journal) if journal.answered == job.rows else job
        finally:
            journal.close()


def _check_made(source: Path, step: Step) -> None:
    """Raise UsageError where the step before this one is being made anew: its file is still the old one."""
    if step.number == 1:
        return
    header = JobHeader.read(Step(step.cache_path, step.prefix, step.number - 1).header_path)
    if header is not None and not header.complete:
        what = f"run step {step.number - 2}" if header.retry is None else "run its retry"
        raise UsageError(f"{source}: is being made anew and not finished: {what} to its end first")


def _where_it_lies(step: Step, standing: JobHeader, inputs: list[str]) -> JobHeader:
    """``standing``, which reads the same input under the names that it has now.

    Raises UsageError where somebody is at the job and its input is no longer where it lay.
    """
    if standing.inputs == inputs:
        return standing
    try:
        with step.lock("producer") as producing, step.lock("collector") as collecting:
            if producing.acquire() and collecting.acquire():
                now_standing = JobHeader.read(step.header_path) or standing
                if now_standing.sha256 == standing.sha256:  # and not another's, who was faster
                    standing = dataclasses.replace(now_standing, inputs=inputs)
                    standing.write(step.header_path)
                return standing
    except FleetError:
        if not standing.complete:  # there is nothing to do, and who may only read a step need not be able to write
            raise
    if not standing.complete:
        Job(step, standing).check_input()  # somebody is at the job, and reads it where it lay
    return standing

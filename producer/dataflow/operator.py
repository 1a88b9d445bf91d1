"""The operator: a transcription of one step's table, as a job of the fleet."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from producer.cache import atomic_write, check_writable
from producer.columns import Columns
from producer.dataflow import foreign, holders
from producer.dataflow.frames import Row
from producer.dataflow.paths import rows_folder
from producer.dataflow.serving import LocalModelLLMServing_vllm
from producer.dataflow.storage import FileStorage
from producer.dataflow.words import arguments_named
from producer.display import Display
from producer.errors import UsageError
from producer.job import Job
from producer.spec import JobSpec
from producer.step import open_replacing
from workers.messages import TASKS

log = logging.getLogger(__name__)

#: In a folder of rows: the hash of the table that was made of them, or that it is being written.
MADE, WRITING = "made.txt", "writing"


class WhisperTranscriptionGenerator:
    """Transcribes the recordings of a table, or translates them into English, with the engine of a serving."""

    def __init__(self, llm_serving: LocalModelLLMServing_vllm) -> None:
        if not isinstance(llm_serving, LocalModelLLMServing_vllm):
            raise UsageError(
                f"llm_serving is a {type(llm_serving).__module__}.{type(llm_serving).__name__}: "
                "it must be a producer.dataflow.LocalModelLLMServing_vllm"
            )
        self.llm_serving = llm_serving

    def run(
        self,
        storage: Any,
        task: str = "transcribe",
        language: str = "english",
        use_no_time_stamps: bool = True,
        output_key: str = "transcription",
        *,
        details: bool = False,
        force: bool = False,
    ) -> str:
        """Read the step of ``storage``, write the next one with the texts in column ``output_key``; returns that name.

        ``task``: "transcribe", or "translate" into English. ``language``: what is spoken, an English name or code in
        any case ("mandarin", "zh"), or "auto"; a row's own ``language`` is used instead. ``use_no_time_stamps=False``
        adds ``{output_key}_segments``, ``details`` adds ``{output_key}_details`` (language, duration, quality figures).
        A row that fails keeps its place, with null as its text and the reason in ``{output_key}_error``. Columns of
        these names that are there already are replaced; all others stay as they are.

        The same call again resumes what was interrupted, and does nothing where the step is done. A step that another
        input, model or option made is refused with the difference; ``force`` starts over.

        ``storage`` is a `FileStorage`, DataFlow's own, or anything that reads and writes DataFrames as they do. From
        jsonl to jsonl no table is ever in memory as a whole; in other formats, and in a storage that is known by its
        DataFrames only, it is. Raises UsageError for wrong arguments or input, before anything is started, and
        FleetError where the fleet cannot go on.
        """
        wanted = next((name for name in TASKS if name == task), None)
        if wanted is None:
            raise UsageError(f"task {task!r}: must be one of {', '.join(TASKS)}")
        if not isinstance(output_key, str) or not isinstance(language, str):
            raise UsageError(f"output_key {output_key!r} and language {language!r}: must be text")
        with arguments_named():
            spec = JobSpec(
                inputs=(),
                task=wanted,
                language=language,
                timestamps=not use_no_time_stamps,
                details=details,
                output_key=output_key,
                overwrite_column=True,
                audio_root=str(Path.cwd()),
                force=force,
            )
            spec.check()
            files = foreign.file_storage(storage)
            spec = replace(spec, media_key=foreign.media_key(storage), model=self.llm_serving.model_of_jobs())
            if files is None:
                self._through_frames(storage, spec)
            else:
                self._through_files(files, spec)
        return output_key

    def _through_files(self, storage: FileStorage, spec: JobSpec) -> None:
        table, target = storage.table(), storage.target()
        if table is not None and table.format == storage.cache_type == "jsonl":
            spec = replace(spec, cache_path=str(target.parent), prefix=storage.file_name_prefix)
            self._finish(replace(spec, inputs=(table.path,), step=storage.operator_step))
            return
        columns = _columns(spec)
        holder = holders.load(table, storage.cache_type, spec.media_key)
        requests = holders.requests(holder, spec.media_key, "the table" if table is None else table.path)
        folder = _claimed(target, force=spec.force)
        answers = self._answers(spec, folder, requests)
        with _signed(target, folder):
            holder.write(target, answers, columns)

    def _through_frames(self, storage: Any, spec: JobSpec) -> None:
        columns = _columns(spec)
        holder = holders.FrameHolder(storage.read("dataframe"), spec.media_key)
        requests = holders.requests(holder, spec.media_key, "the DataFrame")
        with _place(storage, spec, requests) as folder:
            storage.write(holder.merged(self._answers(spec, folder, requests), columns))

    def _answers(self, spec: JobSpec, folder: Path, requests: list[Row]) -> holders.Answers:
        """What comes of ``requests`` in a job of their own, which lives in ``folder``."""
        source = holders.write_requests(folder, requests)
        job = self._finish(replace(spec, inputs=(str(source),), cache_path=str(folder), prefix="rows", step=0))
        holders.remove_requests(folder, source)
        return holders.answers(job.step.path, _columns(spec))

    def _finish(self, spec: JobSpec) -> Job:
        """The job of ``spec``, done."""
        job = open_replacing(spec, self.llm_serving.settings(), self.llm_serving.own_url())
        with Display() as display:
            if job.is_complete():
                display.waiting(f"{job.step.path} is complete already")
                return job
            job = self.llm_serving.finish(job, display)
            result = job.progress()
            display.summary(result)
        if result.rows and result.failed == result.rows:
            log.warning("%s: no row succeeded", job.step.path)
        return job


def _columns(spec: JobSpec) -> Columns:
    columns = Columns(spec.output_key, spec.timestamps, spec.details)
    columns.check(spec.media_key)
    return columns


def _claimed(target: Path, *, force: bool) -> Path:
    """The folder of the job whose answers go into the file ``target``. Raises UsageError where that is another's."""
    check_writable(target.parent)
    folder = rows_folder(target)
    made = folder / MADE
    if (
        target.exists()
        and not force
        and (not made.exists() or made.read_text().strip() not in (WRITING, _hash(target)))
    ):
        raise UsageError(
            f"{target}: exists, and no job of this cache made it: overwrite it with force=True, or use another "
            "file_name_prefix"
        )
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


@contextmanager
def _signed(target: Path, folder: Path) -> Iterator[None]:
    """Note in ``folder`` that the block writes ``target``, and then what it wrote."""
    _note(folder, WRITING)
    yield
    _note(folder, _hash(target))


def _note(folder: Path, text: str) -> None:
    with atomic_write(folder / MADE, mode=0o600) as handle:
        handle.write(text.encode("ascii") + b"\n")


@contextmanager
def _place(storage: Any, spec: JobSpec, requests: list[Row]) -> Iterator[Path]:
    """Where the job of a storage's rows lives: beside its files, so that it can be resumed, if it has any."""
    cache_path, step = getattr(storage, "cache_path", None), getattr(storage, "operator_step", None)
    if not isinstance(cache_path, str) or not isinstance(step, int):
        with TemporaryDirectory(prefix="whisper-rows-") as folder:
            yield Path(folder)
        return
    prefix = getattr(storage, "file_name_prefix", None) or "dataflow_cache"
    # Named after what is asked for: a storage that reads batches has many jobs in one step.
    asked = json.dumps([asdict(replace(spec, force=False)), requests]).encode()
    path = Path(cache_path) / f"{prefix}_step{step + 1}.rows" / hashlib.sha256(asked).hexdigest()[:16]
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    yield path


def _hash(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()

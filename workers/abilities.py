"""What a worker's model can do of what a record asks for."""

from __future__ import annotations

from workers.errors import TranscriptionError, TransientError
from workers.interface import EngineFacts
from workers.languages import language_code
from workers.messages import Options, Record, Task
from workers.models import is_other_model


def language_for(facts: EngineFacts, record: Record, source: str, task: Task, options: Options) -> str | None:
    """The record's language code, None to detect it. Raises TranscriptionError for what the model cannot do."""
    if not source:
        raise TranscriptionError("no_audio", "the record names no audio file")
    if record.row is not None and options.model is not None and is_other_model(options.model, facts.model):
        # One that joined the queue after the job began. Another may take the row.
        raise TransientError("other_model", f"the job is for the model {options.model}, not for {facts.model}")
    if task not in facts.tasks:
        raise TranscriptionError(
            "unsupported_task", f"the model {facts.model} cannot {task}; it can {', '.join(facts.tasks)}"
        )
    language = language_code(record.language or options.language)
    if language is not None and language not in facts.languages:
        raise TranscriptionError(
            "unsupported_language", f"the model {facts.model} does not know the language {language!r}"
        )
    if len(facts.languages) == 1:
        return facts.languages[0]
    return language

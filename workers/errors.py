"""Every way in which a record can fail, told apart in one place.

*Permanent* failures become the row's error at once, *transient* ones are tried again, and a lost engine gives the
record back to the queue.
"""

from __future__ import annotations


class TranscriptionError(Exception):
    """A record that cannot be transcribed, whatever is tried: its row gets this error.

    ``type`` is a stable word that programs can test (``file_not_found``, ``not_audio``, ...); ``message`` is one line
    for people: what, where and what to do.
    """

    def __init__(self, type: str, message: str) -> None:
        super().__init__(type, message)  # both in args, so that it survives Celery's JSON result backend
        self.type = type
        self.message = message

    def __str__(self) -> str:
        return f"{self.type}: {self.message}"

    def as_dict(self) -> dict[str, str]:
        """The ``transcription_error`` column of the row."""
        return {"type": self.type, "message": self.message}


class TransientError(TranscriptionError):
    """A failure that may go away by itself (network storage, a time-out): worth another try."""


class EngineLostError(Exception):
    """The engine died, hung or was told to stop: the record was not transcribed and goes back to the queue."""


class ModelLoadError(Exception):
    """The model cannot be loaded; the message is one line that says why and what to do."""


class SettingsError(Exception):
    """A setting is wrong; the message names it, its value and what it may be."""

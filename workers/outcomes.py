"""From the windows of a recording, which are in the engine, to its item: waited for, voted on, joined."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace

from workers.errors import EngineLostError, TranscriptionError
from workers.interface import WindowResult
from workers.messages import ChannelTranscripts, Failure, Item, Options, Record, Transcript
from workers.recording import Recording, Vote, join, silence, vote
from workers.rooms import CHECK_SECONDS
from workers.seek import SeekingDecoder
from workers.spans import join_spans

log = logging.getLogger(__name__)


class Outcomes:
    """Those of one engine. ``check``: raises EngineLostError where the worker has to end. Safe from any thread."""

    def __init__(self, decoder: SeekingDecoder, model: str, check: Callable[[], None]) -> None:
        self._decoder = decoder
        self._model = model
        self._check = check

    def vote(self, recording: Recording) -> Vote | None:
        """What the first windows of a recording say of its language, when all of them are heard; None without words."""
        voters = recording.voters()
        results = [self.wait(window.future) for window in voters]
        return vote(voters, results) if any(result.text for result in results) else None

    def wait(self, future: Future[WindowResult]) -> WindowResult:
        """What a window gives or raises. Raises EngineLostError too where the worker has to end before."""
        while True:
            try:
                return future.result(timeout=CHECK_SECONDS)
            except TimeoutError:
                if future.done():  # just now, or the time-out is the window's own
                    return future.result()
                self._check()

    def item(self, channels: Sequence[Recording], record: Record, options: Options) -> Item:
        """Wait for a file's windows and join them, those of each channel that was begun."""
        items = [self._part(recording, record, options) for recording in channels]
        return items[0] if len(items) == 1 else ChannelTranscripts(channels=items)

    def _part(self, recording: Recording, record: Record, options: Options) -> Transcript | Failure:
        try:
            if recording.failure is None:
                return self._transcript(recording, record, options)
            for window in recording.all_windows():
                self.wait(window.future)  # so that a lost engine is told from a broken file
            return recording.failure
        except TranscriptionError as error:
            return Failure.of(error)
        except EngineLostError:
            raise
        except Exception as error:  # as where it is begun (`workers.transcriber`)
            log.exception("row %s: unexpected failure", record.row)
            return Failure(type="internal_error", message=f"{type(error).__name__}: {error}")

    def _transcript(self, recording: Recording, record: Record, options: Options) -> Transcript:
        return join_spans([self._span_transcript(span, record, options) for span in (recording, *recording.rest)])

    def _span_transcript(self, recording: Recording, record: Record, options: Options) -> Transcript:
        model, attempts = self._model, record.attempt
        results = [self.wait(window.future) for window in recording.windows]
        if not results:
            return silence(recording, timestamps=options.timestamps, model=model, attempts=attempts)
        count = len(recording.voters())
        if not any(result.text for result in results[:count]):  # music, or noise: then all that have words vote
            count = len(results)
        heard = vote(recording.windows[:count], results[:count])
        for at, window in enumerate(recording.voters()):
            if results[at].language != heard.language and window.request is not None:
                # Outvoted: its text is in the wrong language.
                again = replace(window.request, language=heard.language, urgent=True)
                results[at] = self.wait(self._decoder.submit(again, window.speech, f"{window.identity}/outvoted"))
        return join(recording, results, heard, timestamps=options.timestamps, model=model, attempts=attempts)

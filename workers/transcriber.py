"""One record from audio to transcripts: decode, find speech, cut windows, decode them in the engine, join.

Records overlap: while the engine works on one record's windows, the thread prepares the next record's.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace

from workers.abilities import language_for
from workers.audio import BEYOND_END, AudioStream, Block, DecodePool
from workers.errors import EngineLostError, TranscriptionError
from workers.fallback import FallbackDecoder
from workers.gates import Gates
from workers.interface import Engine, WindowRequest, WindowResult
from workers.languages import AUTO, canonical_language
from workers.messages import Failure, Item, Options, Record, Span, Task
from workers.outcomes import Outcomes
from workers.pauses import Speech, pauses_after
from workers.recording import VOTERS, Files, Recording, Sent
from workers.rooms import Leave, Rooms
from workers.seek import SeekingDecoder
from workers.settings import Settings
from workers.speech_spans import WindowOptions
from workers.undecided import Undecided
from workers.urls import is_web
from workers.windows import Window, speech_windows

log = logging.getLogger(__name__)

#: Takes a record, spans of one of its recordings for others to do, and the language that was voted for, if it was.
Share = Callable[[Record, list[Span], str | None], None]

#: A record holds no more windows in the engine at once: 61 MB of audio.
MOST_WINDOWS = 32
#: So many records fill the engine, if they are long.
MOST_TOGETHER = 8


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is wanted of recording ``number`` of a record, or of one channel of it."""

    record: Record
    number: int
    task: Task
    options: Options
    room: threading.Semaphore
    share: Share | None
    urgent: bool
    channel: int | None = None

    @property
    def source(self) -> str:
        return self.record.sources[self.number]


class Transcriber:
    """Turns records into transcripts with one engine and one pool of decode processes. Safe from any thread."""

    def __init__(
        self,
        engine: Engine,
        pool: DecodePool,
        settings: Settings,
        threads: int,
        stopping: threading.Event | None = None,
    ) -> None:
        self._engine = engine
        #: Set when the worker's grace is over: what is not delivered then goes back to the queue.
        self._stopping = stopping or threading.Event()
        self._pool = pool
        self._decoder = SeekingDecoder(FallbackDecoder(engine, Gates.from_settings(settings)))
        self._outcomes = Outcomes(self._decoder, engine.facts.model, self._check_stopping)
        self._window_options = WindowOptions.from_settings(settings)
        self._split_seconds = settings.split_seconds
        # Twice the engine's batch waits or runs, so that it never runs dry, whichever threads these windows are of:
        # a thread that waits for room keeps a decode process, and others cannot read meanwhile. Calls as much again.
        wanted = max(2 * engine.facts.max_num_seqs, threads)
        self._rooms = Rooms(wanted, self._check_stopping)
        # Those that read long recordings fill it together, even if they are few.
        together = min(threads, pool.processes, MOST_TOGETHER)
        self._windows_per_task = max(2, min(-(-wanted // together), MOST_WINDOWS))

    def close(self) -> None:
        """Start no more retries; windows that wait for one are lost. Call it before the engine is closed."""
        self._decoder.close()

    def transcribe(
        self,
        records: Iterable[Record],
        task: Task,
        options: Options,
        deliver: Callable[[Record, list[Item]], None],
        share: Share | None = None,
        *,
        urgent: bool = False,
    ) -> None:
        """Transcribe records in order; ``deliver`` gets each one's items (one per audio file) as soon as it is done.

        With ``share`` the later spans of a long recording are left to whom they are shared with: its item is without
        them. What is shared is known before the record is delivered.
        ``urgent``: somebody waits. Such records have room and a decode process that others do not take, and their
        windows go before others' (`WindowRequest`).
        A failure of a record is an item of it. Raises EngineLostError when the engine is gone: records that were
        not delivered were not done.
        """
        room = threading.Semaphore(self._windows_per_task)
        waiting: deque[Files] = deque()
        for record in records:
            waiting.append(files := Files(record))
            for number in range(len(record.sources)):
                files.begun.append(self._begin_channels(_Asked(record, number, task, options, room, share, urgent)))
                # What has voted is kept until its recording is done: of a record of hundreds not all at once.
                while files.first_is_done() or len(files.begun) > 2 * self._windows_per_task:
                    files.items.append(self._outcomes.item(files.begun.popleft(), record, options))
            while waiting and waiting[0].done():
                self._finish(waiting.popleft(), options, deliver)
        for files in waiting:
            self._finish(files, options, deliver)

    def _finish(self, files: Files, options: Options, deliver: Callable[[Record, list[Item]], None]) -> None:
        files.items.extend(self._outcomes.item(channels, files.record, options) for channels in files.begun)
        deliver(files.record, files.items)

    def _begin_channels(self, asked: _Asked) -> list[Recording]:
        """Begin one file: as a whole, or each channel on its own. The first one tells how many there are."""
        if asked.options.channels == "mix":
            return [self._begin(asked)]
        first = self._begin(replace(asked, channel=0))
        others = range(1, first.channels if first.failure is None else 1)
        return [first, *(self._begin(replace(asked, channel=channel)) for channel in others)]

    def _begin(self, asked: _Asked) -> Recording:
        """Read one file (or one channel of it) and put all its windows into the engine, waiting for room there."""
        recording = Recording()
        record, options = asked.record, asked.options
        later = record.span_of is not None
        try:
            language = language_for(self._engine.facts, record, asked.source, asked.task, options)
            recording.votes = language is None and canonical_language(record.language or options.language) == AUTO
            recording.elected = later and _is_elected(options)
            with contextlib.closing(Undecided()) as undecided:
                with self._pool.open(
                    *(asked.source, record.start_s, record.end_s, asked.channel),
                    cut=asked.channel is None and not later,
                    later=later,
                    urgent=asked.urgent,
                    check=self._check_stopping,
                ) as stream:
                    self._read(recording, stream, asked, language, undecided)
                    recording.duration_s = stream.duration_s
                    recording.flags = stream.flags
                    recording.channels = stream.channels
                if undecided:
                    self._decide(recording, asked, language, undecided)
            if not later and BEYOND_END in recording.flags:
                raise TranscriptionError("bad_argument", f"the recording ends before start_s {record.start_s:g}")
        except TranscriptionError as error:
            recording.failure = Failure.of(error)
        except EngineLostError:
            raise
        except Exception as error:  # a fault of ours may cost a row its text, never its answer
            log.exception("row %s: unexpected failure", record.row)
            recording.failure = Failure(type="internal_error", message=f"{type(error).__name__}: {error}")
        return recording

    def _read(
        self, recording: Recording, stream: AudioStream, asked: _Asked, language: str | None, undecided: Undecided
    ) -> None:
        """Put the windows into the engine, span by span, or those of the first spans where the others are shared.

        Spans go by themselves from the first cut on before which the language is known. Windows that are read before
        that are left in ``undecided``, as far as there is room for them.
        """
        span, number, start_s, shared = recording, 0, asked.record.start_s or 0.0, False
        while True:
            for window in speech_windows(self._blocks(stream, recording, asked, undecided), self._window_options):
                if self._is_voting(recording, language):
                    leave = self._rooms.enter_at_once(asked.room, urgent=asked.urgent)
                    if leave is not None:
                        undecided.add(window, start_s, leave)
                        continue
                language = self._decide(recording, asked, language, undecided)
                shared = shared or self._share(recording, stream, asked, number, language)
                voter = span.votes and len(span.windows) < VOTERS
                span.windows.append(self._sent(window, start_s, asked, language, voter))
            if not stream.at_cut:
                return
            language = self._decide(recording, asked, language, undecided)
            shared = shared or self._share(recording, stream, asked, number, language)
            if not stream.next_span(wanted=not shared):
                return
            start_s, number = stream.cuts[number], number + 1
            if language is not None or not recording.votes:
                span = Recording(elected=_is_elected(asked.options))
                recording.rest.append(span)

    def _is_voting(self, recording: Recording, language: str | None) -> bool:
        """Whether the first windows decide on the language, and the engine has not answered them all."""
        voters = recording.voters() if language is None else []
        return len(voters) == VOTERS and not all(window.future.done() for window in voters)

    def _decide(self, recording: Recording, asked: _Asked, language: str | None, undecided: Undecided) -> str | None:
        """Wait for the vote, if there is one, and put what waited for it into the engine; returns the language."""
        if language is None and len(recording.voters()) == VOTERS:
            heard = self._outcomes.vote(recording)
            language = None if heard is None else heard.language
        for window, start_s, leave in undecided.take():
            recording.windows.append(self._sent(window, start_s, asked, language, False, leave))
        return language

    def _share(
        self, recording: Recording, stream: AudioStream, asked: _Asked, number: int, language: str | None
    ) -> bool:
        """Whether the spans after span ``number`` are now done by others; not before the language is known.

        Of the web all is done here: who fetches it again may get another recording, or none.
        """
        starts = stream.cuts[number:]
        undecided = recording.votes and language is None
        if asked.share is None or undecided or not starts or not 0 < self._split_seconds < stream.told_s:
            return False
        if is_web(asked.record.sources[asked.number]):
            return False
        ends = (*starts[1:], asked.record.end_s)
        spans = [
            Span(recording=asked.number, start_s=start, end_s=end) for start, end in zip(starts, ends, strict=True)
        ]
        asked.share(asked.record, spans, language if recording.votes else None)
        return True

    def _sent(
        self,
        window: Window,
        start_s: float,
        asked: _Asked,
        language: str | None,
        voter: bool,
        leave: Leave | None = None,
    ) -> Sent:
        """Put one window into the engine. ``start_s``: where its span starts in the recording.

        ``leave``: leaves the room that it has there; without it, room is waited for.
        """
        record, options = asked.record, asked.options
        # With timestamps whether they are asked for or not: only they tell what the model left out.
        request = WindowRequest(
            window.samples,
            asked.task,
            language,
            timestamps=True,
            prompt=record.prompt or options.prompt,
            pauses=pauses_after(window.speech, 0.0) if options.timestamps else (),
            urgent=asked.urgent,
        )
        # The same whoever does it: a span record has one recording, and starts where its span does.
        name = f"{asked.source}#{asked.channel}" if asked.channel else asked.source
        identity = f"{record.row}/{name}/{start_s:.2f}/{window.index}"
        future = self._submit(
            request, window.speech, identity, leave or self._rooms.enter(asked.room, urgent=asked.urgent)
        )
        kept = request if voter else None
        begin_s, end_s = window.start_s + start_s, window.end_s + start_s
        return Sent(begin_s, end_s, window.speech_s, future, kept, window.speech, identity, window.cuts)

    def _submit(self, request: WindowRequest, speech: Speech, identity: str, leave: Leave) -> Future[WindowResult]:
        try:
            future = self._decoder.submit(request, speech, identity)
        except BaseException:
            leave()
            raise
        future.add_done_callback(lambda _: leave())
        return future

    def _blocks(
        self, blocks: Iterable[Block], recording: Recording, asked: _Asked, undecided: Undecided
    ) -> Iterator[Block]:
        """``blocks``: hours of them may have no window, and what waits for a vote does not wait for the next one."""
        for block in blocks:
            if undecided and not self._is_voting(recording, None):
                self._decide(recording, asked, None, undecided)
            yield block

    def _check_stopping(self) -> None:
        if self._stopping.is_set():
            raise EngineLostError("the worker is ending and its grace is over")


def _is_elected(options: Options) -> bool:
    """Whether a later span's language is taken for voted: whoever does it cannot tell it from the row's own."""
    return canonical_language(options.language) == AUTO

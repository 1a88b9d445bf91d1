"""Records to transcripts with real decode processes: order, failures as items, languages, joined windows."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from fleet import wait_for
from scripted_engine import FACTS, ScriptedEngine, said, scripted, transcribed
from workers.audio import AudioLimits, Block, DecodePool
from workers.errors import EngineLostError, TranscriptionError
from workers.interface import WindowRequest, WindowResult
from workers.languages import LANGUAGES
from workers.messages import Failure, Item, Options, Record, Transcript
from workers.pauses import SNAP_SECONDS
from workers.recording import VOTERS
from workers.runtime import Runtime
from workers.settings import load_settings
from workers.standin import StandInEngine
from workers.transcriber import Transcriber


@pytest.fixture
def train(samples: Path) -> str:
    return str(samples / "en_train.flac")


@pytest.fixture
def news(samples: Path) -> str:
    """70 seconds of speech: three windows."""
    return str(samples / "en_news_long.ogg")


@pytest.fixture
def text_file(tmp_path: Path) -> str:
    path = tmp_path / "notes.wav"
    path.write_text("not a recording at all\n" * 100)
    return str(path)


# Good and bad records side by side.


def test_a_part_that_begins_after_the_end_is_an_error_and_no_silence(standin_runtime: Runtime, train: str) -> None:
    """Seconds given as milliseconds would pass for a recording in which nobody speaks."""
    ((failure,), (text,)) = transcribed(
        standin_runtime, [Record(audio=train, row=0, start_s=5000.0), Record(audio=train, row=1, start_s=0.5)]
    )

    assert failure == Failure(type="bad_argument", message="the recording ends before start_s 5000")
    assert isinstance(text, Transcript)


def test_every_record_gets_its_answer_in_order(
    standin_runtime: Runtime, samples: Path, train: str, news: str, text_file: str
) -> None:
    records = [
        Record(audio=news, row=0),
        Record(audio=str(samples / "no_such.wav"), row=1),
        Record(audio=text_file, row=2),
        Record(audio=str(samples / "silence.flac"), row=3),
        Record(audio=[train, str(samples / "no_such.wav"), news], row=4),
        Record(audio=[""], row=5),
        Record(audio=train, row=6, attempt=2),
    ]

    items = transcribed(standin_runtime, records)

    ((long,), (missing,), (text,), (silence,), (first, second, third), (empty,), (last,)) = items
    assert isinstance(long, Transcript)
    assert long.text.count("stand-in ") == 3
    assert (long.model, long.flags, long.segments) == ("standin", ["standin"], None)
    assert isinstance(missing, Failure)
    assert missing.type == "file_not_found"
    assert "no_such.wav" in missing.message
    assert isinstance(text, Failure)
    assert text.type == "not_audio"
    assert isinstance(first, Transcript)
    assert isinstance(second, Failure)
    assert third == long, "the same audio gives the same transcript wherever it stands"
    assert isinstance(empty, Failure)
    assert empty.type == "no_audio"
    assert isinstance(last, Transcript)
    assert last == first.model_copy(update={"attempts": 2})
    assert isinstance(silence, Transcript)
    assert (silence.text, silence.segments, silence.language, silence.flags) == ("", None, None, ["no_speech"])
    assert (silence.duration, silence.speech_seconds) == (pytest.approx(3.0), 0.0)


def test_silence_with_timestamps_has_no_segments(standin_runtime: Runtime, samples: Path) -> None:
    ((item,),) = transcribed(standin_runtime, [Record(audio=str(samples / "silence.flac"))], timestamps=True)

    assert isinstance(item, Transcript)
    assert item.segments == []


def test_duration_and_speech_are_those_of_the_recording(standin_runtime: Runtime, news: str) -> None:
    ((item,),) = transcribed(standin_runtime, [Record(audio=news)])

    assert isinstance(item, Transcript)
    assert item.duration == pytest.approx(soundfile.info(news).duration, abs=0.1)
    assert 30 < item.speech_seconds < item.duration


def test_span_of_a_recording_has_times_from_the_recordings_start(standin_runtime: Runtime, news: str) -> None:
    span = Record(audio=news, start_s=40.0, end_s=50.0)

    ((item,),) = transcribed(standin_runtime, [span], timestamps=True)

    assert isinstance(item, Transcript)
    assert item.duration == pytest.approx(10.0, abs=0.05)
    assert item.segments
    assert all(40.0 <= segment.start < segment.end <= 50.05 for segment in item.segments)


def test_answers_are_delivered_while_later_records_are_read(standin_runtime: Runtime, train: str) -> None:
    """The first answer does not wait for the last record: a chunk's rows are stored as they are done."""
    delivered: list[int | None] = []

    def records() -> Iterator[Record]:
        for row in range(5):
            yield Record(audio=train, row=row)
        # A producer that waits for the first answer before it gives the last record.
        wait_for(lambda: delivered or None, 60)
        yield Record(audio=train, row=5)

    engine = scripted()
    transcriber = Transcriber(engine, standin_runtime.pool, load_settings(), threads=1)
    transcriber.transcribe(records(), "transcribe", Options(), lambda record, _: delivered.append(record.row))

    assert delivered == list(range(6))


# What the model cannot do.


def test_unknown_language_names_what_is_near(standin_runtime: Runtime, train: str) -> None:
    ((item,),) = transcribed(standin_runtime, [Record(audio=train, language="germn")])

    assert isinstance(item, Failure)
    assert item.type == "unknown_language"
    assert "german (de)" in item.message


def test_language_and_task_that_the_model_does_not_know(standin_runtime: Runtime, train: str) -> None:
    engine = scripted()

    ((language,),) = transcribed(standin_runtime, [Record(audio=train, language="french")], engine)
    ((task,),) = transcribed(standin_runtime, [Record(audio=train)], engine, task="translate")

    assert isinstance(language, Failure)
    assert (language.type, "'fr'" in language.message) == ("unsupported_language", True)
    assert isinstance(task, Failure)
    assert task == Failure(type="unsupported_task", message="the model test-model cannot translate; it can transcribe")
    assert engine.requests == [], "refused before any work"


def test_a_job_of_another_model_is_left_to_other_workers(standin_runtime: Runtime, train: str) -> None:
    """A worker that joined its queue later: no step has texts of two models."""
    engine = scripted(model="openai/whisper-base")

    ((other,),) = transcribed(standin_runtime, [Record(audio=train, row=3)], engine, model="whisper-small")
    assert isinstance(other, Failure)
    assert (other.type, other.transient) == ("other_model", True)
    assert other.message == "the job is for the model whisper-small, not for openai/whisper-base"
    assert engine.requests == []

    for record, model in (
        (Record(audio=train, row=3), "whisper-base"),
        (Record(audio=train, row=3), "/models/base"),
        (Record(audio=train, row=3), None),
        (Record(audio=train), "whisper-small"),
    ):
        ((own,),) = transcribed(standin_runtime, [record], engine, model=model)
        assert isinstance(own, Transcript), (record, model)
    ((own,),) = transcribed(standin_runtime, [Record(audio=train, row=3)], model="whisper-base")
    assert isinstance(own, Transcript), "the stand-in stands for any"


@pytest.mark.parametrize(
    ("own", "common", "asked"), [("German", "zh", "de"), (None, "chinese", "zh"), (None, "auto", None)]
)
def test_records_language_goes_before_the_tasks(
    standin_runtime: Runtime, train: str, own: str | None, common: str, asked: str | None
) -> None:
    engine = scripted()

    transcribed(standin_runtime, [Record(audio=train, language=own, prompt="Ada")], engine, language=common)

    assert [(request.language, request.prompt) for request in engine.requests] == [(asked, "Ada")]


def test_english_only_model_is_not_asked_to_detect(standin_runtime: Runtime, train: str) -> None:
    engine = scripted(languages=("en",))

    ((detected,), (refused,)) = transcribed(
        standin_runtime, [Record(audio=train), Record(audio=train, language="de")], engine
    )

    assert [request.language for request in engine.requests] == ["en"]
    assert isinstance(detected, Transcript)
    assert isinstance(refused, Failure)
    assert refused.type == "unsupported_language"


# Joining windows.


def test_windows_are_joined_with_their_figures(standin_runtime: Runtime, news: str) -> None:
    def answer(request: WindowRequest, number: int) -> WindowResult:
        return replace(
            said(request, number),
            no_speech_prob=[0.0, 0.0, 1.0][number],
            avg_logprob=[-0.2, -0.2, -0.8][number],
            compression_ratio=[1.0, 2.4, 2.0][number],
            temperature=[0.0, 0.4, 0.2][number],
            flags=("standin",) if number == 1 else (),
        )

    engine = scripted(answer)

    ((item,),) = transcribed(standin_runtime, [Record(audio=news)], engine, timestamps=True)

    assert isinstance(item, Transcript)
    assert item.text == "window 0 window 1 window 2"
    assert (item.compression_ratio, item.temperature, item.flags) == (2.4, 0.4, ["standin"])
    # Means by the windows' lengths
    lengths = [len(request.samples) for request in engine.requests]
    share = lengths[2] / sum(lengths)
    assert item.no_speech_prob == pytest.approx(share)
    assert item.avg_logprob == pytest.approx(-0.2 - 0.6 * share)
    # Times from the recording's start, one after another
    assert item.segments is not None
    assert [segment.text for segment in item.segments] == ["window 0", "window 1", "window 2"]
    took = [segment.end - segment.start for segment in item.segments]
    assert took == pytest.approx([length / 16_000 - 0.5 for length in lengths], abs=2 * SNAP_SECONDS)
    assert 0 <= item.segments[0].start < 25 < item.segments[1].start < 50 < item.segments[2].start < 70


def test_windows_fit_the_engine(standin_runtime: Runtime, news: str) -> None:
    engine = scripted()

    transcribed(standin_runtime, [Record(audio=news)], engine)

    for request in engine.requests:
        assert 0 < len(request.samples) <= 480_000
        assert request.samples.dtype == np.float32


def test_texts_of_languages_without_spaces_are_joined_without(standin_runtime: Runtime, news: str) -> None:
    engine = scripted(lambda request, number: replace(said(request, number), text="天气", language="zh"))

    ((item,),) = transcribed(standin_runtime, [Record(audio=news, language="zh")], engine)

    assert isinstance(item, Transcript)
    assert item.text == "天气天气天气"


# What goes wrong in the engine.


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (TranscriptionError("bad_argument", "no"), Failure(type="bad_argument", message="no")),
        (ZeroDivisionError("of ours"), Failure(type="internal_error", message="ZeroDivisionError: of ours")),
    ],
)
def test_error_of_one_window_costs_its_recording_only(
    standin_runtime: Runtime, news: str, train: str, error: Exception, failure: Failure
) -> None:
    engine = scripted(lambda request, number: error if number == 2 else said(request, number))

    ((bad,), (good,)) = transcribed(standin_runtime, [Record(audio=news), Record(audio=train)], engine)

    assert bad == failure
    assert isinstance(good, Transcript)


@pytest.fixture
def pool_of_one() -> Iterator[DecodePool]:
    pool = DecodePool(1, AudioLimits())
    yield pool
    pool.close()


@pytest.fixture
def long_file(news: str, tmp_path: Path) -> str:
    """140 seconds of speech: six windows or so."""
    samples, rate = soundfile.read(news)
    soundfile.write(tmp_path / "long.flac", np.concatenate([samples, samples]), rate)
    return str(tmp_path / "long.flac")


class OpenEngine(ScriptedEngine):
    """Answers nothing before it is told to."""

    def __init__(self) -> None:
        super().__init__(said, replace(FACTS, languages=tuple(LANGUAGES)))
        self.waiting: list[tuple[Future[WindowResult], WindowResult]] = []

    def submit(self, request: WindowRequest) -> Future[WindowResult]:
        answer = super().submit(request).result()
        future: Future[WindowResult] = Future()
        self.waiting.append((future, answer))
        return future

    def answer_all(self) -> None:
        while self.waiting:
            future, answer = self.waiting.pop(0)
            future.set_result(answer)


def test_a_vote_on_the_language_keeps_no_decode_process_from_others(
    pool_of_one: DecodePool, train: str, long_file: str
) -> None:
    # Given a recording of many windows whose language is to be detected, and one place to decode
    engine, found = OpenEngine(), dict[int | None, list[Item]]()
    transcriber = Transcriber(engine, pool_of_one, load_settings(), 2)

    def begin(record: Record, language: str) -> threading.Thread:
        work = threading.Thread(
            target=transcriber.transcribe,
            args=(
                [record],
                "transcribe",
                Options(language=language),
                lambda one, items: found.update({one.row: items}),
            ),
        )
        work.start()
        return work

    threads = [begin(Record(audio=long_file, row=0), "auto")]
    wait_for(lambda: len(engine.waiting) == VOTERS)
    # When another one comes, while the first windows are in the engine
    threads.append(begin(Record(audio=train, row=1), "en"))
    # Then it is read
    wait_for(lambda: len(engine.waiting) == VOTERS + 1)
    assert [request.language for request in engine.requests] == [None, None, None, "en"]
    # and the rest of the first is heard in the language that won, in its order
    engine.answer_all()
    wait_for(lambda: len(engine.requests) >= VOTERS + 3)
    while any(thread.is_alive() for thread in threads):
        engine.answer_all()
        threads[0].join(0.05)
    (item,) = found[0]
    assert isinstance(item, Transcript)
    assert item.text == " ".join(f"window {number}" for number in range(len(engine.requests)) if number != VOTERS)
    assert {request.language for request in engine.requests[VOTERS + 1 :]} == {"de"}
    assert found[1]


def test_what_waits_for_a_vote_does_not_wait_for_the_next_window(
    pool_of_one: DecodePool, long_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a recording that says nothing more after its first windows, for half an hour, and is slow to read
    samples, rate = soundfile.read(long_file)
    soundfile.write(tmp_path / "quiet.flac", np.concatenate([samples, np.zeros(1800 * rate)]), rate)
    engine, first, second = OpenEngine(), threading.Event(), threading.Event()
    transcriber = Transcriber(engine, pool_of_one, load_settings(split_seconds=0, span_seconds=86_400), 2)
    blocks = Transcriber._blocks

    def slow(self: Transcriber, stream: Iterable[Block], *others: Any) -> Iterator[Block]:
        def held() -> Iterator[Block]:
            for number, one in enumerate(stream):
                if held_at := {40: first, 44: second}.get(number):  # all speech has been read by then
                    assert held_at.wait(60)
                yield one

        return blocks(self, held(), *others)

    monkeypatch.setattr(Transcriber, "_blocks", slow)
    work = threading.Thread(
        target=transcriber.transcribe,
        args=([Record(audio=str(tmp_path / "quiet.flac"))], "transcribe", Options(language="auto"), lambda *_: None),
    )
    work.start()
    try:
        wait_for(lambda: len(engine.waiting) == VOTERS)
        # When the vote is over, and another block comes
        engine.answer_all()
        first.set()
        # Then what was read goes into the engine while the rest is read
        wait_for(lambda: len(engine.requests) > VOTERS)
    finally:
        first.set()
        second.set()
        while work.is_alive():
            engine.answer_all()
            work.join(0.05)


def test_a_recording_that_fails_while_its_language_is_voted_on_leaves_its_room(
    pool_of_one: DecodePool, long_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[int] = []

    def failing(*arguments: object) -> None:
        waited.append(len(arguments[-1]))  # type: ignore[arg-type]
        raise TranscriptionError("read_failed", "gone")

    engine = OpenEngine()
    transcriber = Transcriber(engine, pool_of_one, load_settings(), 2)
    free = transcriber._rooms._of_jobs._value
    monkeypatch.setattr(Transcriber, "_is_voting", lambda self, recording, _: len(recording.windows) == VOTERS)
    decide = Transcriber._decide
    monkeypatch.setattr(Transcriber, "_decide", lambda *of: failing(*of) if of[-1] else decide(*of))
    found: list[Item] = []
    work = threading.Thread(
        target=transcriber.transcribe,
        args=([Record(audio=long_file)], "transcribe", Options(language="auto"), lambda _, items: found.extend(items)),
    )
    work.start()
    wait_for(lambda: bool(waited))
    engine.answer_all()
    work.join(60)

    assert found == [Failure(type="read_failed", message="gone")]
    assert waited[0] > 0
    assert transcriber._rooms._of_jobs._value == free


def test_a_record_of_many_recordings_keeps_the_voters_of_some(standin_runtime: Runtime, train: str) -> None:
    """Up to three windows of each, in case that they are outvoted: hundreds would fill the memory."""
    kept: list[weakref.ref[object]] = []
    most = 0

    class Watched(ScriptedEngine):
        def submit(self, request: WindowRequest) -> Future[WindowResult]:
            nonlocal most
            kept.append(weakref.ref(request.samples))
            most = max(most, sum(one() is not None for one in kept))
            try:
                return super().submit(request)
            finally:
                self.requests.clear()

    engine = Watched(said, replace(FACTS, languages=tuple(LANGUAGES)))
    transcriber = Transcriber(engine, standin_runtime.pool, load_settings(), 2)
    found: list[Item] = []
    record = Record(audio=[train] * 60, row=0)
    transcriber.transcribe([record], "transcribe", Options(language="auto"), lambda _, items: found.extend(items))

    assert [item.text for item in found if isinstance(item, Transcript)] == ["window 0"] * 60
    assert most <= 4, "each is done when the next is begun"


@pytest.mark.parametrize("name", ["en_train.flac", "silence.flac"])
def test_a_grace_that_is_over_is_noticed_without_waiting_for_the_engine(
    standin_runtime: Runtime, samples: Path, name: str
) -> None:
    # Given an engine that always has room, and a recording with or without speech
    stopping = threading.Event()
    transcriber = Transcriber(scripted(said), standin_runtime.pool, load_settings(), 1, stopping)
    delivered: list[Record] = []
    stopping.set()

    # Then its reading ends all the same
    with pytest.raises(EngineLostError, match="its grace is over"):
        transcriber.transcribe(
            *([Record(audio=str(samples / name), row=0)], "transcribe", Options()),
            lambda record, _: delivered.append(record),
        )
    assert delivered == []


def test_a_grace_that_is_over_is_noticed_without_waiting_for_a_decoder(samples: Path, train: str) -> None:
    # Given a pool whose processes are all at work
    pool, stopping = DecodePool(1, AudioLimits()), threading.Event()
    transcriber = Transcriber(scripted(said), pool, load_settings(), 1, stopping)
    try:
        with ThreadPoolExecutor(1) as threads, pool.open(train):
            waiting = threads.submit(
                transcriber.transcribe, [Record(audio=train, row=0)], "transcribe", Options(), lambda *_: None
            )
            wait_for(lambda: pool._places._usual._waiters)  # type: ignore[attr-defined]
            # When the worker can wait no longer, then neither does who waits for one
            stopping.set()
            with pytest.raises(EngineLostError, match="its grace is over"):
                waiting.result(60)
    finally:
        pool.close()


@pytest.mark.parametrize("grace_is_over", [False, True])
def test_lost_engine_and_ending_worker_cost_no_answer(
    standin_runtime: Runtime, samples: Path, train: str, grace_is_over: bool
) -> None:
    # Given an engine that would need minutes, and a first record that needs no engine
    engine = StandInEngine(load_settings(engine="standin", standin_step_ms=20, standin_steps=100_000))
    stopping = threading.Event()
    transcriber = Transcriber(engine, standin_runtime.pool, load_settings(), 1, stopping)
    records = [
        Record(audio=str(samples / "silence.flac"), row=0),
        Record(audio=train, row=1),
        Record(audio=train, row=2),
    ]
    delivered: list[int | None] = []
    outcome: list[BaseException] = []

    def work() -> None:
        try:
            transcriber.transcribe(records, "transcribe", Options(), lambda record, _: delivered.append(record.row))
        except BaseException as error:  # noqa: BLE001
            outcome.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        wait_for(lambda: delivered)
        # When it is lost, or the worker cannot wait for it any longer
        if grace_is_over:
            stopping.set()
            thread.join(60)
    finally:
        engine.close()
        thread.join(60)

    # Then the task ends so that its message goes back, and only what was delivered counts
    assert not thread.is_alive()
    assert [type(error) for error in outcome] == [EngineLostError]
    assert delivered == [0]

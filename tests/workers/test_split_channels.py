"""Each channel's own transcript, through real decode processes: from records to items and interactive answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from scripted_engine import said, scripted, transcribed
from workers import runtime, tasks
from workers.audio import SAMPLE_RATE_HZ
from workers.errors import EngineLostError, TranscriptionError
from workers.interface import WindowRequest, WindowResult
from workers.messages import ChannelTranscripts, Failure, Record, Transcript
from workers.runtime import Runtime
from workers.settings import load_settings
from workers.transcriber import Transcriber


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory, samples: Path) -> dict[str, str]:
    """A recording with English on the left, German on the right and silence on a third; each side as a file too."""
    folder = tmp_path_factory.mktemp("call")
    left, _ = soundfile.read(samples / "en_weather.wav", dtype="float32")
    right, _ = soundfile.read(samples / "de_berlin.flac", dtype="float32")
    sides = np.zeros((max(left.size, right.size), 3), dtype=np.float32)
    sides[: left.size, 0], sides[: right.size, 1] = left, right
    made = {"stereo": sides[:, :2], "three": sides, "left": sides[:, 0], "right": sides[:, 1]}
    for name, values in made.items():
        soundfile.write(folder / f"{name}.wav", values, SAMPLE_RATE_HZ)
    return {name: str(folder / f"{name}.wav") for name in made}


def test_each_channel_gets_the_transcript_that_it_would_get_alone(
    standin_runtime: Runtime, call: dict[str, str]
) -> None:
    ((left,), (right,)) = transcribed(standin_runtime, [Record(audio=call["left"]), Record(audio=call["right"])])

    ((three,), (mono_file,), (first, second)) = transcribed(
        standin_runtime,
        [Record(audio=call["three"]), Record(audio=call["left"]), Record(audio=[call["stereo"], call["right"]])],
        channels="split",
    )

    assert isinstance(left, Transcript)
    assert isinstance(right, Transcript)
    assert left.text != right.text
    assert first == ChannelTranscripts(channels=[left, right])
    assert second == right
    assert mono_file == left, "one channel is no list"
    assert isinstance(three, ChannelTranscripts)
    assert three.channels[:2] == [left, right]
    assert isinstance(three.channels[2], Transcript)
    assert (three.channels[2].text, three.channels[2].flags) == ("", ["no_speech"])


def test_without_split_a_recording_is_its_mix(standin_runtime: Runtime, call: dict[str, str]) -> None:
    ((mixed,),) = transcribed(standin_runtime, [Record(audio=call["stereo"])])

    assert isinstance(mixed, Transcript)
    assert mixed.text.startswith("stand-in ")


def test_channels_find_their_language_on_their_own(standin_runtime: Runtime, call: dict[str, str]) -> None:
    languages = {0: "en", 1: "de"}

    def answer(request: WindowRequest, number: int) -> WindowResult:
        return said(WindowRequest(request.samples, request.task, languages[number]), number)

    engine = scripted(answer)
    ((item,),) = transcribed(standin_runtime, [Record(audio=call["stereo"])], engine, channels="split")

    assert isinstance(item, ChannelTranscripts)
    assert [part.language for part in item.channels if isinstance(part, Transcript)] == ["en", "de"]
    assert [request.language for request in engine.requests] == [None, None]


def test_a_span_is_taken_of_every_channel(standin_runtime: Runtime, call: dict[str, str]) -> None:
    span = Record(audio=call["stereo"], start_s=1.0, end_s=4.0)

    ((item,),) = transcribed(standin_runtime, [span], channels="split", timestamps=True)

    assert isinstance(item, ChannelTranscripts)
    for part in item.channels:
        assert isinstance(part, Transcript)
        assert part.duration == pytest.approx(3.0)
        assert part.segments
        assert all(1.0 <= segment.start < segment.end <= 4.0 for segment in part.segments)


def test_a_channel_that_fails_costs_itself_only(standin_runtime: Runtime, call: dict[str, str]) -> None:
    error = TranscriptionError("bad_argument", "no")
    engine = scripted(lambda request, number: error if number == 1 else said(request, number))

    ((item,),) = transcribed(standin_runtime, [Record(audio=call["stereo"])], engine, channels="split")

    assert isinstance(item, ChannelTranscripts)
    assert isinstance(item.channels[0], Transcript)
    assert item.channels[1] == Failure(type="bad_argument", message="no")


def test_a_file_that_cannot_be_read_has_one_failure(standin_runtime: Runtime, samples: Path) -> None:
    ((item,),) = transcribed(standin_runtime, [Record(audio=str(samples / "no_such.wav"))], channels="split")

    assert isinstance(item, Failure)
    assert item.type == "file_not_found"


def test_too_many_channels_are_the_recordings_error(standin_runtime: Runtime, tmp_path: Path) -> None:
    path = tmp_path / "nine.wav"
    soundfile.write(path, np.zeros((1600, 9)), SAMPLE_RATE_HZ)

    ((split,),) = transcribed(standin_runtime, [Record(audio=str(path))], channels="split")
    ((mixed,),) = transcribed(standin_runtime, [Record(audio=str(path))])

    assert isinstance(split, Failure)
    assert split.type == "too_many_channels"
    assert isinstance(mixed, Transcript)


def test_a_lost_engine_is_no_channels_failure(standin_runtime: Runtime, call: dict[str, str]) -> None:
    engine = scripted(lambda request, number: EngineLostError("gone") if number == 1 else said(request, number))

    with pytest.raises(EngineLostError):
        transcribed(standin_runtime, [Record(audio=call["stereo"])], engine, channels="split")


# Answers of an interactive call.


@pytest.fixture
def call_task(standin_runtime: Runtime) -> Iterator[Callable[..., object]]:
    runtime.install(standin_runtime)
    yield tasks.transcribe
    runtime.install(None)


def test_a_call_gets_an_entry_a_channel(call_task: Callable[..., object], call: dict[str, str], samples: Path) -> None:
    records = [{"audio": call["stereo"]}, {"audio": [call["left"]]}, {"audio": str(samples / "no_such.wav")}]

    answers = call_task(records, {"channels": "split"})

    assert isinstance(answers, list)
    stereo, (left,), missing = answers
    assert stereo.keys() == {"channels"}
    assert stereo["channels"][0] == left
    assert [part["text"].startswith("stand-in ") for part in stereo["channels"]] == [True, True]
    assert missing["error"]["type"] == "file_not_found"


@pytest.mark.parametrize("failing", [(1,), (0, 1)])
def test_a_call_fails_when_all_its_channels_do(
    standin_runtime: Runtime, call: dict[str, str], failing: tuple[int, ...]
) -> None:
    # Given an engine that refuses the windows of these channels
    error = TranscriptionError("bad_argument", "no")
    engine = scripted(lambda request, number: error if number in failing else said(request, number))
    transcriber = Transcriber(engine, standin_runtime.pool, load_settings(), threads=1)
    runtime.install(replace(standin_runtime, transcriber=transcriber))
    try:
        # When one call asks for one recording, Then it is a failed task only where nothing is left
        if len(failing) == 2:
            with pytest.raises(TranscriptionError, match="bad_argument"):
                tasks.transcribe([{"audio": call["stereo"]}], {"channels": "split"})
        else:
            (answer,) = tasks.transcribe([{"audio": call["stereo"]}], {"channels": "split"})
            good, bad = answer["channels"]
            assert good["text"] == "window 0"
            assert bad == {"error": {"type": "bad_argument", "message": "no"}}
    finally:
        runtime.install(None)


def test_another_mode_is_refused_by_name(call_task: Callable[..., object], call: dict[str, str]) -> None:
    with pytest.raises(TranscriptionError, match=r"^bad_argument: options: channels: .*'mix' or 'split'"):
        call_task([{"audio": call["stereo"]}], {"channels": "left"})

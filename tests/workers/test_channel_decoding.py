"""One channel of a recording, decoded from every kind of file."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy

from workers.audio import SAMPLE_RATE_HZ, AudioLimits
from workers.audio_decode import open_audio
from workers.decode_job import AudioEnd
from workers.errors import TranscriptionError
from workers.pcm import Floats, Mixer
from workers.settings import load_settings

SECONDS = 4
PITCHES_HZ = (300.0, 500.0, 800.0, 1300.0)


def tones(count: int, rate_hz: int) -> Floats:
    """float32[n, count]: a pitch of its own in each channel."""
    time = np.arange(SECONDS * rate_hz) / rate_hz
    return np.stack([0.4 * np.sin(2 * np.pi * hz * time) for hz in PITCHES_HZ[:count]], axis=1).astype(np.float32)


def write_tones(path: Path, count: int, rate_hz: int = SAMPLE_RATE_HZ) -> Path:
    soundfile.write(path, tones(count, rate_hz), rate_hz)
    return path


def encode_tones(path: Path, codec: str) -> Path:
    """A stereo file by ffmpeg's libraries."""
    with av.open(str(path), "w") as container:
        track = container.add_stream(codec, rate=48_000, layout="stereo")
        values = np.ascontiguousarray((tones(2, 48_000) * 32767).astype(np.int16).reshape(1, -1))
        frame = av.AudioFrame.from_ndarray(values, format="s16", layout="stereo")
        frame.sample_rate = 48_000
        context = track.codec_context
        resampler = av.AudioResampler(context.format, "stereo", 48_000, context.frame_size or 1024)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(track.encode(piece))
        container.mux(track.encode(None))
    return path


def read(source: Path, channel: int | None, limits: AudioLimits | None = None) -> tuple[Floats, AudioEnd]:
    decoding = open_audio(str(source), limits or AudioLimits(), channel=channel)
    blocks: list[Floats] = []
    while True:
        try:
            blocks.append(next(decoding))
        except StopIteration as stop:
            return np.concatenate(blocks), stop.value


def loudest_hz(audio: Floats) -> float:
    spectrum = np.abs(np.fft.rfft(audio))
    return float(np.argmax(spectrum)) * SAMPLE_RATE_HZ / audio.size


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.ogg", "a.m4a", "a.webm"])
def test_a_channel_has_its_own_sound_and_the_end_tells_how_many_there_are(tmp_path: Path, name: str) -> None:
    codec = {"a.m4a": "aac", "a.webm": "libopus"}.get(name)
    made = encode_tones(tmp_path / name, codec) if codec else write_tones(tmp_path / name, 2, 48_000)

    for channel, hz in enumerate(PITCHES_HZ[:2]):
        audio, end = read(made, channel)
        assert loudest_hz(audio) == pytest.approx(hz, abs=5)
        assert (end.channels, end.flags) == (2, ())
        assert end.duration_s == pytest.approx(SECONDS, abs=0.1)
    assert read(made, None)[1].channels == 2


def test_channels_are_exact_and_their_mean_is_the_mix(tmp_path: Path) -> None:
    made = write_tones(tmp_path / "a.wav", 4)
    expected, _ = soundfile.read(made, dtype="float32")

    channels = [read(made, channel)[0] for channel in range(4)]

    for channel, audio in enumerate(channels):
        np.testing.assert_array_equal(audio, expected[:, channel])
    np.testing.assert_allclose(read(made, None)[0], np.mean(channels, axis=0), atol=1e-6)


def test_the_only_channel_of_a_recording_is_the_whole_of_it(tmp_path: Path) -> None:
    made = write_tones(tmp_path / "a.wav", 1)

    (alone, end), (mixed, mixed_end) = read(made, 0), read(made, None)

    np.testing.assert_array_equal(alone, mixed)
    assert end == mixed_end == AudioEnd(SECONDS, (), channels=1)


@pytest.mark.parametrize("name", ["a.wav", "a.webm"])
def test_a_span_after_the_end_tells_the_channels_too(tmp_path: Path, name: str) -> None:
    made = encode_tones(tmp_path / name, "libopus") if name == "a.webm" else write_tones(tmp_path / name, 2)
    decoding = open_audio(str(made), AudioLimits(), 60.0, 70.0, channel=0)

    with pytest.raises(StopIteration) as stopped:
        next(decoding)

    assert stopped.value.value == AudioEnd(0.0, ("span_beyond_end",), channels=2)


@pytest.mark.parametrize("name", ["a.wav", "a.webm"])
def test_more_channels_than_the_limit_are_refused_only_when_split(tmp_path: Path, name: str) -> None:
    made = encode_tones(tmp_path / name, "libopus") if name == "a.webm" else write_tones(tmp_path / name, 2)
    limits = AudioLimits.from_settings(load_settings(max_channels=1))

    with pytest.raises(TranscriptionError) as caught:
        read(made, 0, limits)

    assert caught.value.type == "too_many_channels"
    assert name in caught.value.message
    assert "2 channels, at most 1 are split (WHISPER_MAX_CHANNELS)" in caught.value.message
    assert read(made, None, limits)[1].channels == 2


frames = hypothesis_numpy.arrays(
    np.float32,
    st.tuples(st.integers(0, 5), st.integers(1, 4)),
    elements=st.floats(-1, 1, width=32) | st.sampled_from([np.nan, np.inf]),
)


@given(frames, st.integers(0, 5))
def test_a_picked_channel_never_depends_on_the_others(values: Floats, channel: int) -> None:
    found = Mixer(channel).picked(values)

    assert found.shape == (len(values),)
    assert np.isfinite(found).all()
    if values.shape[1] == 1:  # a mono stretch is part of every channel
        np.testing.assert_array_equal(found, Mixer().mean(values))
    elif channel >= values.shape[1]:
        assert not found.any()
    else:
        wanted = np.nan_to_num(values[:, channel], nan=0.0, posinf=0.0, neginf=0.0)
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("layout", ["s16", "s16p", "fltp", "u8"])
def test_a_channel_of_a_frame_in_any_sample_format(layout: str) -> None:
    given_frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(tones(2, 8000).T), format="fltp", layout="stereo")
    given_frame.sample_rate = 8000
    (frame,) = av.AudioResampler(layout, "stereo", 8000).resample(given_frame)

    for channel in range(2):
        np.testing.assert_allclose(Mixer(channel).mono([frame]), tones(2, 8000)[:, channel], atol=0.02)

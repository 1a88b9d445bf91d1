"""What ffmpeg's libraries fail at, and which track of several they give."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from av.stream import Disposition

from workers.audio import SAMPLE_RATE_HZ, AudioLimits
from workers.audio_decode import open_audio
from workers.audio_source import local_file
from workers.decode_job import AudioEnd, FaultError
from workers.errors import TranscriptionError
from workers.ffmpeg import _container, told_seconds
from workers.pcm import Floats

LIMITS = AudioLimits()
#: Of the tracks of a file that these tests make.
PITCHES_HZ: Mapping[int, Disposition | None] = {440: None, 600: None}
SECONDS = 3


def test_a_memory_that_is_full_is_no_fault_of_a_file_that_could_be_opened(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    full = av.error.MemoryError(errno.ENOMEM, "Cannot allocate memory")
    made = tmp_path / "a.wav"
    soundfile.write(made, np.zeros(16_000), 16_000)
    with local_file(str(made), LIMITS, lambda: None) as file:
        with pytest.raises(MemoryError), _container(file, "a.wav"):
            raise full

        def cannot(*_: object, **__: object) -> None:
            raise full

        monkeypatch.setattr(av, "open", cannot)
        with pytest.raises(FaultError, match="Cannot allocate memory"), _container(file, "a.wav"):
            pass


def film(path: Path, *unknown: int, pitches_hz: Mapping[int, Disposition | None] = PITCHES_HZ) -> Path:
    """A file of tracks, of some of which ffmpeg does not know the codec. ``pitches_hz``: with whom each is for."""
    mark, other = (b"alac", b"xlac") if path.suffix == ".mp4" else (b"A_ALAC", b"A_XLAC")
    time = np.arange(SECONDS * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    with av.open(str(path), "w") as container:
        tracks = [container.add_stream("alac", rate=SAMPLE_RATE_HZ, layout="mono") for _ in pitches_hz]
        for track, whom in zip(tracks, pitches_hz.values(), strict=True):
            track.disposition = whom or track.disposition
        for track, hz in zip(tracks, pitches_hz, strict=True):
            values = (10_000 * np.sin(2 * np.pi * hz * time)).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(values[None], format="s16p", layout="mono")
            frame.sample_rate, frame.pts = SAMPLE_RATE_HZ, 0
            container.mux([*track.encode(frame), *track.encode(None)])
    parts = path.read_bytes().split(mark)
    each = (len(parts) - 1) // len(pitches_hz)
    marks = [other if at // each in unknown else mark for at in range(len(parts) - 1)]
    path.write_bytes(b"".join(part + end for part, end in zip(parts, [*marks, b""], strict=True)))
    return path


def read(path: Path) -> tuple[Floats, AudioEnd]:
    decoding, blocks = open_audio(str(path), LIMITS), []
    while True:
        try:
            blocks.append(next(decoding))
        except StopIteration as stop:
            return np.concatenate(blocks), stop.value


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
@pytest.mark.parametrize(
    ("unknown", "heard_hz", "flags"),
    [((), 440.0, ("other_tracks",)), ((0,), 600.0, ("other_tracks",)), ((1,), 440.0, ())],
)
def test_a_track_of_an_unknown_codec_is_passed_over(
    tmp_path: Path, name: str, unknown: tuple[int, ...], heard_hz: float, flags: tuple[str, ...]
) -> None:
    made = film(tmp_path / name, *unknown)

    audio, end = read(made)

    assert (end.duration_s, end.flags) == (pytest.approx(SECONDS, abs=0.2), flags)
    assert np.argmax(np.abs(np.fft.rfft(audio[:SAMPLE_RATE_HZ]))) == heard_hz
    if name == "a.mp4":
        with local_file(str(made), LIMITS, lambda: None) as file:
            assert told_seconds(file) == pytest.approx(SECONDS, abs=0.2)


def test_of_the_tracks_that_are_known_the_one_for_everybody_is_heard(tmp_path: Path) -> None:
    """A film whose first sound is unknown, then its description for those who do not see, then its own."""
    aside = Disposition.visual_impaired | Disposition.comment
    audio, end = read(film(tmp_path / "a.mkv", 0, pitches_hz={440: None, 600: aside, 800: None}))
    assert np.argmax(np.abs(np.fft.rfft(audio[:SAMPLE_RATE_HZ]))) == 800
    assert end.flags == ("other_tracks",)


def test_tracks_that_are_all_of_unknown_codecs_are_no_audio(tmp_path: Path) -> None:
    made = film(tmp_path / "a.mp4", 0, 1)
    with pytest.raises(TranscriptionError, match="with a codec that it does not know") as caught:
        read(made)
    assert caught.value.type == "not_audio"
    with local_file(str(made), LIMITS, lambda: None) as file:
        assert told_seconds(file) == 0.0

"""Files that were joined and are not read to the end say so; what else lies behind a file's sound is no other file."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from workers.audio import SAMPLE_RATE_HZ, AudioLimits
from workers.audio_decode import open_audio
from workers.behind import another_begins
from workers.decode_job import AudioEnd

SECONDS = 3
ID3V1 = b"TAG" + bytes(125)
#: Of a WAV: a comment, markers, and a chunk of odd length that is filled up.
LIST = b"LIST\x1a\0\0\0INFOICMT\x0e\0\0\0only a comment"
CUE = b"cue \x1c\0\0\0\x01\0\0\0" + bytes(24)
ODD = b"note\x03\0\0\0abc\0"
#: Fragments of half a second, as live streams have them.
FRAGMENTS = {"movflags": "+frag_keyframe+empty_moov+default_base_moof", "frag_duration": "500000"}
SNDFILE = {
    "a.wav": {},
    "long.wav": {"format": "RF64"},
    "big.wav": {"endian": "BIG"},
    "odd.wav": {"subtype": "PCM_U8"},
    "a.aiff": {},
    "a.au": {},
    "little.au": {"endian": "LITTLE"},
    "a.caf": {},
}
FFMPEG = {
    "a.m4a": ("aac", {}),
    "first.m4a": ("aac", {"movflags": "+faststart"}),
    "a.mov": ("alac", {}),
    "fragments.mp4": ("aac", FRAGMENTS),
    "a.webm": ("libopus", {}),
    "a.mka": ("aac", {}),
    "live.webm": ("libopus", {"live": "1"}),
}


def made(path: Path, seconds: int = SECONDS) -> bytes:
    """A tone in the format that the name has here."""
    rate = 48_000 if "libopus" in FFMPEG.get(path.name, ()) else SAMPLE_RATE_HZ
    tone = (0.3 * np.sin(2 * np.pi * 440 * np.arange(seconds * rate + 1) / rate)).astype(np.float32)
    if path.name in SNDFILE:
        soundfile.write(path, tone, rate, **SNDFILE[path.name])
        return path.read_bytes()
    codec, options = FFMPEG[path.name]
    with av.open(str(path), "w", options=options) as container:
        track = container.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
        frame.sample_rate = rate
        context = track.codec_context
        resampler = av.AudioResampler(context.format, "mono", rate, context.frame_size or 1024)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(track.encode(piece))
        container.mux(track.encode(None))
    return path.read_bytes()


def end_of(path: Path, content: bytes, start_s: float | None = None, end_s: float | None = None) -> AudioEnd:
    path.write_bytes(content)
    decoding = open_audio(str(path), AudioLimits(), start_s, end_s)
    while True:
        try:
            next(decoding)
        except StopIteration as stop:
            return stop.value


def boxes(content: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(content):
        (length,) = struct.unpack_from(">I", content, at)
        yield content[at : at + length]
        at += length


@pytest.mark.parametrize("name", [*SNDFILE, "a.m4a", "first.m4a", "a.mov"])
@pytest.mark.parametrize("count", [2, 3])
def test_files_that_were_joined_say_that_they_are_not_read_to_the_end(tmp_path: Path, name: str, count: int) -> None:
    one = made(tmp_path / name)

    end = end_of(tmp_path / "joined", one * count)

    assert (end.duration_s, end.flags) == (pytest.approx(SECONDS, abs=0.1), ("truncated",))


@pytest.mark.parametrize(("name", "count"), [("a.webm", 3), ("a.mka", 3), ("fragments.mp4", 2), ("fragments.mp4", 3)])
def test_what_is_read_of_joined_files_in_part_says_so(tmp_path: Path, name: str, count: int) -> None:
    """ffmpeg ends with the second Matroska file, and leaves out a fragment where an MP4 in fragments begins again."""
    one = made(tmp_path / name)

    end = end_of(tmp_path / "joined", one * count)

    assert SECONDS < end.duration_s < SECONDS * count - 0.3
    assert end.flags == ("truncated",)


@pytest.mark.parametrize(("name", "count"), [("a.webm", 2), ("live.webm", 3)])
def test_joined_files_that_are_read_to_the_end_are_whole(tmp_path: Path, name: str, count: int) -> None:
    end = end_of(tmp_path / "joined", made(tmp_path / name) * count)
    assert (end.duration_s, end.flags) == (pytest.approx(SECONDS * count, abs=0.2), ())


@pytest.mark.parametrize("name", [*SNDFILE, *FFMPEG])
def test_one_file_is_whole_and_so_is_a_part_of_a_joined_one(tmp_path: Path, name: str) -> None:
    one = made(tmp_path / name)
    assert end_of(tmp_path / "one", one).flags == ()
    for start_s, end_s in ((None, 1.0), (0.5, 2.5), (1.5, 2.5)):
        assert end_of(tmp_path / "joined", 3 * one, start_s, end_s).flags == ()
    assert end_of(tmp_path / "one", one, 1.5).flags == ()


@pytest.mark.parametrize(
    "behind", [ID3V1, LIST, CUE, ODD, LIST + CUE, bytes(1), bytes(5000), b"RIFF", b"RIFF\x10\0\0\0AVIX", b"\xff" * 99]
)
def test_what_wav_files_have_behind_their_sound_is_no_other_file(tmp_path: Path, behind: bytes) -> None:
    for name in ("a.wav", "odd.wav", "long.wav"):
        one = made(tmp_path / name)
        assert end_of(tmp_path / "one", one + behind).flags == ()
    one = made(tmp_path / "a.wav")
    assert end_of(tmp_path / "joined", one + LIST + ODD + one).flags == ("truncated",)


@pytest.mark.parametrize("size", [0, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_streamed_wav_may_hold_anything(tmp_path: Path, size: int) -> None:
    """All of it is heard as sound."""
    one = bytearray(made(tmp_path / "a.wav"))
    one[40:44] = size.to_bytes(4, "little")
    assert end_of(tmp_path / "one", bytes(one) + made(tmp_path / "a.wav")).flags == ()


def test_what_tells_of_more_bytes_than_any_file_has_is_not_followed(tmp_path: Path) -> None:
    """Of a CAF file that was streamed that is how it says that it does not know."""
    most = b"\xff" * 8
    for name, mark, head in (
        ("a.caf", b"data", b"data" + most),
        ("a.m4a", b"\0\0\0\x08wide", b"\0\0\0\1wide" + most),
        ("long.wav", b"ds64", b"ds64\x1c\0\0\0" + 2 * most),
    ):
        one = made(tmp_path / name).replace(b"\0\0\0\x08free", b"\0\0\0\x08wide")
        at = one.index(mark)
        path = tmp_path / "one"
        path.write_bytes(one[:at] + head + one[at + len(head) :] + one)
        with path.open("rb") as file:
            assert not another_begins(file.fileno(), 1)


def test_a_byte_that_should_fill_up_an_odd_chunk_may_be_missing(tmp_path: Path) -> None:
    one = made(tmp_path / "odd.wav")
    (size,) = struct.unpack_from("<I", one, 40)
    assert size % 2
    assert end_of(tmp_path / "joined", one[: 44 + size] + one).flags == ("truncated",)


@pytest.mark.parametrize("name", ["a.aiff", "a.au", "a.caf"])
@pytest.mark.parametrize("behind", [ID3V1, bytes(5000), b"free\0\0\0\x08", b"\xff" * 99])
def test_what_other_files_of_samples_have_behind_them_is_no_other_file(
    tmp_path: Path, name: str, behind: bytes
) -> None:
    assert end_of(tmp_path / "one", made(tmp_path / name) + behind).flags == ()


@pytest.mark.parametrize("name", ["a.m4a", "first.m4a", "fragments.mp4"])
@pytest.mark.parametrize("behind", [ID3V1, bytes(5000), b"\0\0\0\x10free" + bytes(8), b"\0\0\0\x0cudta" + bytes(4)])
def test_what_an_mp4_has_behind_its_sound_is_no_other_file(tmp_path: Path, name: str, behind: bytes) -> None:
    assert end_of(tmp_path / "one", made(tmp_path / name) + behind).flags == ()


def test_fragments_of_one_stream_are_whole_however_their_heads_are_repeated(tmp_path: Path) -> None:
    kind, index, *rest = boxes(made(tmp_path / "fragments.mp4"))
    fragments = [b"".join(pair) for pair in zip(rest[:-1:2], rest[1:-1:2], strict=True)]
    segment = b"\0\0\0\x10styp" + b"msdh\0\0\0\0"
    for between in (segment, kind + index):
        # And where the recorder was stopped behind the last one.
        for last in (b"", between):
            end = end_of(tmp_path / "one", kind + index + between.join(fragments) + last)
            assert (end.duration_s, end.flags) == (pytest.approx(SECONDS, abs=0.1), ())


def test_old_quicktime_files_have_no_mark(tmp_path: Path) -> None:
    def without_mark(content: bytes) -> bytes:
        return content.replace(b"ftypqt  ", b"widewide", 1)

    one = without_mark(made(tmp_path / "a.mov"))
    assert end_of(tmp_path / "one", one).flags == ()
    assert end_of(tmp_path / "joined", one + one).flags == ("truncated",)


def test_an_mp4_whose_index_is_there_twice_is_one_file(tmp_path: Path) -> None:
    """As programs leave it that write a longer one at the end."""
    parts = list(boxes(made(tmp_path / "a.m4a")))
    (index,) = (part for part in parts if part[4:8] == b"moov")
    assert end_of(tmp_path / "one", b"".join(parts) + index).flags == ()


@pytest.mark.parametrize(
    "content",
    [b"", b"RIFF", b"RIFF\0\0\0\0WAVE", b".snd" + b"\xff" * 9, b"caff" + bytes(30), b"\0\0\0\1ftyp"],
)
def test_what_is_no_whole_file_is_not_followed_by_one(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a"
    path.write_bytes(content)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        assert not another_begins(descriptor, 1)
    finally:
        os.close(descriptor)


def test_storage_that_fails_is_no_other_file() -> None:
    assert not another_begins(-1)

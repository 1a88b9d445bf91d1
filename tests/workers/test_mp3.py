"""MP3 files as they are found: without a length, joined, tagged, cut and damaged. All of the sound is read."""

from __future__ import annotations

import math
from functools import cache
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_audio_decode import LIMITS, assert_sounds_like, error_of, read, tone

from workers.audio import SAMPLE_RATE_HZ, AudioLimits
from workers.audio_decode import decoded, open_audio
from workers.audio_source import LocalFile, local_file
from workers.cuts import find_cuts
from workers.decode_job import DecodeJob
from workers.mp3 import MAX_FRAME_BYTES, Tags
from workers.pcm import Floats

RATE_HZ = 44_100
#: The encoder's delay and padding where no header tells of them.
DELAY_SECONDS = 0.1
#: Bytes that never look like a frame, and others that often do.
TEXT, NOISE = b"100,200,300", np.random.default_rng(1).bytes(50_000)


@cache
def mp3(begin_s: float, end_s: float, kbit_s: int = 128, header: bool = True) -> bytes:
    """That part of the tone; with ``header`` an ID3v2 tag and a header that tells the length come before it."""
    sound = tone(end_s, RATE_HZ)[round(begin_s * RATE_HZ) :]
    file = BytesIO()
    options = {} if header else {"write_xing": "0", "id3v2_version": "0"}
    with av.open(file, "w", format="mp3", options=options) as container:
        track = container.add_stream("libmp3lame", rate=RATE_HZ, layout="mono")
        track.bit_rate = kbit_s * 1000
        track.codec_context.format = "fltp"
        for first in range(0, sound.size, 1152):
            frame = av.AudioFrame.from_ndarray(sound[None, first : first + 1152], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = RATE_HZ, first
            container.mux(track.encode(frame))
        container.mux(track.encode(None))
    return file.getvalue()


def sevens(size: int) -> bytes:
    return bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0))


def id3v2(body: bytes) -> bytes:
    return b"ID3\4\0\0" + sevens(len(body)) + body


def text_frame(text: str) -> bytes:
    body = b"\1" + text.encode("utf-16")  # whose byte order mark looks like a frame's header
    return b"TIT2" + sevens(len(body)) + b"\0\0" + body


def ape(items: bytes) -> bytes:
    def end(flags: int) -> bytes:
        numbers = (2000, len(items) + 32, 1, flags, 0, 0)
        return b"APETAGEX" + b"".join(number.to_bytes(4, "little") for number in numbers)

    return end(0xA0000000) + items + end(0x80000000)


ID3V1 = b"TAG" + b"Title".ljust(125, b"\0")
TEXT_TAG = id3v2(text_frame("Grüße aus Köln"))
PICTURE_TAG = id3v2(b"APIC" + sevens(len(NOISE)) + b"\0\0" + NOISE)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


class TestLength:
    @pytest.mark.parametrize("rates", [(160, 32), (32, 160)])
    def test_bit_rate_that_changes_without_a_header(self, tmp_path: Path, rates: tuple[int, int]) -> None:
        # Given a recording whose length a decoder would estimate from its first frames
        made = mp3(0, 15, rates[0], header=False) + mp3(15, 60, rates[1], header=False)
        # When it is read
        audio, end = read(write(tmp_path / "a.mp3", made))
        # Then all of it is there, and nothing is said to be missing
        assert end.duration_s == pytest.approx(60, abs=2 * DELAY_SECONDS)
        assert end.flags == ()
        assert np.abs(audio[-2 * SAMPLE_RATE_HZ :]).max() > 0.4

    def test_joined_files(self, tmp_path: Path) -> None:
        # Given two files one after the other, the first of which tells its own length
        whole, end = read(write(tmp_path / "a.mp3", mp3(0, 20) + mp3(20, 45)))
        # Then both are read
        assert end.duration_s == pytest.approx(45, abs=DELAY_SECONDS)
        assert end.flags == ()
        assert_sounds_like(whole[: 20 * SAMPLE_RATE_HZ], tone(20))
        # And a span of the second is that part of the whole
        part, end = read(tmp_path / "a.mp3", 30.0, 40.0)
        expected = whole[30 * SAMPLE_RATE_HZ : 40 * SAMPLE_RATE_HZ]
        assert abs(part.size - expected.size) <= 32
        length = min(part.size, expected.size)
        assert np.sqrt(np.mean((part[:length] - expected[:length])[800:-800] ** 2)) < 0.03
        assert end.flags == ()

    def test_encoders_delay_is_taken_off_where_the_header_tells_it(self, tmp_path: Path) -> None:
        audio, end = read(write(tmp_path / "a.mp3", mp3(0, 20)))
        assert audio.size == pytest.approx(20 * SAMPLE_RATE_HZ, abs=1)
        assert np.sqrt(np.mean((audio - tone(20)[: audio.size])[800:-800] ** 2)) < 0.03
        assert end.flags == ()

    def test_header_tells_that_it_is_too_long_before_the_first_block(self, tmp_path: Path) -> None:
        made = write(tmp_path / "a.mp3", mp3(0, 20))
        assert error_of(made, AudioLimits(max_audio_seconds=15)).type == "too_long"
        with pytest.raises(Exception, match="20 s, the limit is 15 s"):
            next(open_audio(str(made), AudioLimits(max_audio_seconds=15)))

    def test_damaged_header_does_not_make_it_too_long(self, tmp_path: Path) -> None:
        made = bytearray(mp3(0, 20))
        at = made.index(b"Info") + 8
        made[at : at + 4] = b"\xff" * 4
        _, end = read(write(tmp_path / "a.mp3", bytes(made)))
        assert end.duration_s == pytest.approx(20, abs=DELAY_SECONDS)

    def test_shortest_recording_without_a_name_that_helps(self, tmp_path: Path) -> None:
        # Given two frames, too few for ffmpeg to know what they are
        _, end = read(write(tmp_path / "download", mp3(0, 0.001, 64, header=False)))
        # Then libsndfile reads them
        assert (end.duration_s > 0.02, end.flags) == (True, ())


class TestTags:
    @pytest.mark.parametrize(
        "behind",
        [ID3V1, ape(TEXT), ape(TEXT) + ID3V1, ape(TEXT)[32:], ape(NOISE), b"LYRICSBEGIN" + TEXT + b"LYRICS200" + ID3V1],
        ids=["id3v1", "ape", "ape and id3v1", "ape without a header", "ape with a picture", "lyrics"],
    )
    def test_tag_behind_the_sound_is_no_damage(self, tmp_path: Path, behind: bytes) -> None:
        _, end = read(write(tmp_path / "a.mp3", mp3(0, 20) + behind))
        assert end.duration_s == pytest.approx(20, abs=DELAY_SECONDS)
        assert end.flags == ()

    @pytest.mark.parametrize("before", [TEXT_TAG, PICTURE_TAG, TEXT_TAG + PICTURE_TAG])
    def test_tag_before_the_sound_hides_nothing(self, tmp_path: Path, before: bytes) -> None:
        _, end = read(write(tmp_path / "a.mp3", before + mp3(0, 20, header=False)))
        assert end.duration_s == pytest.approx(20, abs=DELAY_SECONDS)
        assert end.flags == ()

    @pytest.mark.parametrize("between", [TEXT_TAG, PICTURE_TAG, ID3V1 + TEXT_TAG, ape(NOISE) + ID3V1 + PICTURE_TAG])
    def test_tag_between_joined_files_is_no_damage(self, tmp_path: Path, between: bytes) -> None:
        made = mp3(0, 20, header=False) + between + mp3(20, 45, header=False)
        _, end = read(write(tmp_path / "a.mp3", made))
        assert end.duration_s == pytest.approx(45, abs=2 * DELAY_SECONDS)
        assert end.flags == ()

    @given(size=st.integers(0, 50_000), begin=st.integers(0, 2**40), cut=st.integers(16, 50_000))
    def test_end_of_a_tag_is_known_from_its_first_packet(self, size: int, begin: int, cut: int) -> None:
        for tag in (id3v2(bytes(size)), ape(bytes(size))):
            tags = Tags()
            assert tags.hold(tag[: max(32, cut)], begin)
            assert tags.end == begin + len(tag)
            # And what comes long after it is not excused
            assert not tags.hold(NOISE, tags.end + 4 * MAX_FRAME_BYTES)

    @given(st.binary(max_size=200), st.integers(0, 2**40))
    def test_other_bytes_are_no_tag(self, content: bytes, begin: int) -> None:
        if not any(name in content for name in (b"ID3", b"TAG", b"LYRICS")):
            assert not Tags().hold(content, begin)


class TestDamage:
    def test_cut_short(self, tmp_path: Path) -> None:
        made = mp3(0, 45)
        audio, end = read(write(tmp_path / "a.mp3", made[: len(made) // 2]))
        assert end.duration_s == pytest.approx(22.5, abs=DELAY_SECONDS)
        assert_sounds_like(audio, tone(22.4))
        assert end.flags == ("truncated",)

    @pytest.mark.parametrize("hole", [b"\xff" * 10_000, bytes(10_000), NOISE[:10_000]], ids=["ones", "zeros", "noise"])
    def test_hole_in_the_middle_costs_only_the_hole(self, tmp_path: Path, hole: bytes) -> None:
        made = mp3(0, 45)
        middle = len(made) // 2
        _, end = read(write(tmp_path / "a.mp3", made[:middle] + hole + made[middle + len(hole) :]))
        assert 44 < end.duration_s < 45
        assert end.flags == ("damaged",)

    def test_span_after_the_end_is_empty_and_says_so(self, tmp_path: Path) -> None:
        made = write(tmp_path / "a.mp3", mp3(0, 20) + mp3(20, 45))
        assert read(made, 50.0, 60.0, LIMITS)[1].flags == ("span_beyond_end",)


class TestPlaces:
    """A long MP3 tells no times: where it was read before, nobody walks there from its start again."""

    @pytest.mark.parametrize(
        "content",
        [
            mp3(0, 60),
            mp3(0, 60, header=False),
            mp3(0, 20, 160, header=False) + mp3(20, 60, 32, header=False),
            mp3(0, 30) + ID3V1 + PICTURE_TAG + mp3(30, 60),
            mp3(0, 30)[:-5000] + NOISE[:5000] + mp3(29, 60),
        ],
        ids=["header", "bare", "rates", "joined", "damaged"],
    )
    def test_spans_are_the_same_from_a_place_as_from_the_start(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
    ) -> None:
        monkeypatch.setattr("workers.mp3.PLACES_APART_SECONDS", 2.0)
        made = write(tmp_path / "a.mp3", content)
        spans = [(55.0, 58.0), (14.5, 16.0), (31.0, 33.0), (40.25, 41.0), (2.0, 4.0), (57.0, math.inf)]
        with local_file(str(made), LIMITS, lambda: None) as known:
            for start_s, end_s in spans:
                with local_file(str(made), LIMITS, lambda: None) as fresh:
                    found, expected = samples(known, start_s, end_s), samples(fresh, start_s, end_s)
                np.testing.assert_array_equal(found, expected)
                assert found.size == (end_s - start_s) * SAMPLE_RATE_HZ or end_s == math.inf
            assert len(known.places.found) > 15

    def test_to_find_the_cuts_the_file_is_passed_once(self, tmp_path: Path) -> None:
        made = write(tmp_path / "a.mp3", mp3(0, 240, 64))
        packets = 0

        def count() -> None:
            nonlocal packets
            packets += 1

        with local_file(str(made), LIMITS, lambda: None) as file:
            job = DecodeJob(str(made), AudioLimits(span_seconds=24.0), count, 0.0, float("inf"), None)
            _, cuts = find_cuts(file, job)
        assert len(cuts) >= 8
        assert packets < 2.0 * 240 * RATE_HZ / 1152, "twice near the marks, once between"


def samples(file: LocalFile, start_s: float, end_s: float) -> Floats:
    blocks = decoded(file, DecodeJob(file.path, LIMITS, lambda: None, start_s, end_s, None))
    return np.concatenate([*blocks, np.zeros(0, dtype=np.float32)])

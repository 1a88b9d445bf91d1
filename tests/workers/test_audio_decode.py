"""Every kind of file and address, made here and read back: the samples, or the error by name."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from workers.audio import SAMPLE_RATE_HZ, AudioLimits
from workers.audio_decode import _goes_on, open_audio
from workers.audio_source import LocalFile, local_file
from workers.decode_job import AudioEnd
from workers.errors import TranscriptionError, TransientError
from workers.ffmpeg import told_seconds
from workers.pcm import Floats, resampled
from workers.source_errors import os_error, shown

LIMITS = AudioLimits(allow_private_addresses=True)


def read(
    source: Path | str, start_s: float | None = None, end_s: float | None = None, limits: AudioLimits = LIMITS
) -> tuple[Floats, AudioEnd]:
    """The whole recording and its end."""
    decoding = open_audio(str(source), limits, start_s, end_s)
    blocks: list[Floats] = [np.zeros(0, dtype=np.float32)]
    while True:
        try:
            blocks.append(next(decoding))
        except StopIteration as stop:
            end: AudioEnd = stop.value
            break
    audio = np.concatenate(blocks)
    assert audio.dtype == np.float32
    assert end.duration_s == audio.size / SAMPLE_RATE_HZ
    return audio, end


def error_of(source: Path | str, limits: AudioLimits = LIMITS) -> TranscriptionError:
    with pytest.raises(TranscriptionError) as caught:
        read(source, limits=limits)
    assert "\n" not in caught.value.message
    return caught.value


def tone(seconds: float, rate_hz: int = SAMPLE_RATE_HZ, hz: float = 440.0) -> Floats:
    time = np.arange(int(seconds * rate_hz)) / rate_hz
    # Its pitch rises slowly, so that every place in it sounds different.
    return (0.5 * np.sin(2 * np.pi * (hz * time + 5 * time**2))).astype(np.float32)


def write(path: Path, audio: Floats, rate_hz: int, **options: str) -> Path:
    channels = 1 if audio.ndim == 1 else audio.shape[1]
    with soundfile.SoundFile(path, "w", rate_hz, channels, **options) as file:
        for first in range(0, len(audio), rate_hz):  # libsndfile's ogg writer overflows its stack on long writes
            file.write(audio[first : first + rate_hz])
    return path


def encode(path: Path, audio: Floats, codec: str, rate_hz: int = 48_000, video: bool = False) -> Path:
    """``audio`` (at 48 kHz) by ffmpeg's libraries; with ``video`` there is a picture track before it."""
    with av.open(str(path), "w") as container:
        if video:
            pictures = container.add_stream("mpeg4", rate=25)
            pictures.width, pictures.height, pictures.pix_fmt = 64, 64, "yuv420p"
        track = container.add_stream(codec, rate=rate_hz, layout="mono") if audio.size else None
        if video:
            for _ in range(5):
                black = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), dtype=np.uint8), format="rgb24")
                container.mux(pictures.encode(black))
            container.mux(pictures.encode(None))
        if track is not None:
            frame = av.AudioFrame.from_ndarray((audio * 32767).astype(np.int16)[None], format="s16", layout="mono")
            frame.sample_rate = 48_000
            context = track.codec_context
            resampler = av.AudioResampler(context.format, "mono", rate_hz, context.frame_size or 1024)
            for piece in [*resampler.resample(frame), *resampler.resample(None)]:
                container.mux(track.encode(piece))
            # At its end a flac encoder gives an empty packet with the final header, which not every container takes.
            container.mux([packet for packet in track.encode(None) if packet.size])
    return path


def film(path: Path, delay_s: float, seconds: float, begin_s: int = 0) -> Path:
    """Twenty seconds of black, and a tone of so many seconds from ``delay_s`` on; the black is from ``begin_s`` on."""
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("mpeg4", rate=25)
        pictures.width, pictures.height, pictures.pix_fmt = 64, 64, "yuv420p"
        track = container.add_stream("aac", rate=SAMPLE_RATE_HZ, layout="mono")
        packets: list[av.Packet] = []
        for number in range(500):
            black = av.VideoFrame(64, 64, "yuv420p")
            black.pts, black.time_base = number + begin_s * 25, Fraction(1, 25)
            packets += pictures.encode(black)
        sound = av.AudioFrame.from_ndarray(tone(seconds)[None], format="fltp", layout="mono")
        sound.sample_rate, sound.time_base = SAMPLE_RATE_HZ, Fraction(1, SAMPLE_RATE_HZ)
        sound.pts = round((begin_s + delay_s) * SAMPLE_RATE_HZ)
        packets += [*track.encode(sound), *track.encode(None), *pictures.encode(None)]
        container.mux(sorted(packets, key=lambda packet: (packet.dts or 0) * packet.time_base))
    return path


def assert_sounds_like(audio: Floats, expected: Floats) -> None:
    """The same sound, up to a codec's delay of 100 ms and the root-mean-square error 0.06.

    Half a sample's delay makes 0.04 of these tones, another sound 0.5.
    """
    length = min(audio.size, expected.size) - 4800
    middle = expected[2400 : 2400 + length]
    found = min(float(np.sqrt(np.mean((audio[o : o + length][: middle.size] - middle) ** 2))) for o in range(800, 4000))
    assert found < 0.06


class TestFormats:
    @pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
    def test_wav_at_16_khz_is_exact(self, tmp_path: Path, subtype: str) -> None:
        audio, end = read(write(tmp_path / "a.wav", tone(25), SAMPLE_RATE_HZ, subtype=subtype))
        np.testing.assert_allclose(audio, tone(25), atol=1e-4)
        assert end == AudioEnd(25.0, ())

    @pytest.mark.parametrize("rate_hz", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000])
    @pytest.mark.parametrize("name", ["a.wav", "a.flac"])
    def test_any_rate_becomes_16_khz(self, tmp_path: Path, name: str, rate_hz: int) -> None:
        audio, end = read(write(tmp_path / name, tone(12, rate_hz), rate_hz))
        assert audio.size == pytest.approx(12 * SAMPLE_RATE_HZ, abs=1)
        inner = slice(1600, -1600)  # a resampler rings at the ends
        np.testing.assert_allclose(audio[inner], tone(12)[: audio.size][inner], atol=2e-3)
        assert end.flags == ()

    @pytest.mark.parametrize(("name", "options"), [("a.mp3", {}), ("a.ogg", {}), ("a.opus", {"subtype": "OPUS"})])
    def test_lossy_files_of_libsndfile(self, tmp_path: Path, name: str, options: dict[str, str]) -> None:
        options = options and {"format": "OGG", **options}
        audio, end = read(write(tmp_path / name, tone(12, 48_000), 48_000, **options))
        assert end.flags == ()
        assert_sounds_like(audio, tone(12))

    @pytest.mark.parametrize(
        ("name", "codec", "rate_hz"),
        [("a.m4a", "aac", 44_100), ("a.mp4", "aac", 48_000), ("a.webm", "libopus", 48_000), ("a.aac", "aac", 16_000)],
    )
    def test_files_that_only_ffmpeg_reads(self, tmp_path: Path, name: str, codec: str, rate_hz: int) -> None:
        audio, end = read(encode(tmp_path / name, tone(12, 48_000), codec, rate_hz))
        assert end.duration_s == pytest.approx(12, abs=0.1)
        assert end.flags == ()
        assert_sounds_like(audio, tone(12))

    def test_sound_of_a_video(self, tmp_path: Path) -> None:
        audio, _ = read(encode(tmp_path / "film.mp4", tone(3, 48_000), "aac", video=True))
        assert_sounds_like(audio, tone(3))

    def test_name_does_not_matter(self, tmp_path: Path) -> None:
        made = encode(tmp_path / "a.m4a", tone(2, 48_000), "aac")
        audio, _ = read(made.rename(tmp_path / "a.wav"))
        assert_sounds_like(audio, tone(2))

    @pytest.mark.parametrize("name", ["a.raw", "a.RAW"])
    def test_a_name_for_samples_without_a_header_does_not_matter_either(self, tmp_path: Path, name: str) -> None:
        made = write(tmp_path / "a.wav", tone(2), 16_000)
        audio, _ = read(made.rename(tmp_path / name))
        assert_sounds_like(audio, tone(2))
        made.write_bytes(np.random.default_rng(0).bytes(50_000))
        with pytest.raises(TranscriptionError) as caught:
            read(made.rename(tmp_path / name))
        assert caught.value.type in ("not_audio", "no_audio_track")  # FFmpeg finds something in any bytes

    @pytest.mark.parametrize("name", ["a.au", "a.SND"])
    def test_a_page_under_a_name_of_old_sound_is_no_sound(self, tmp_path: Path, name: str) -> None:
        """libsndfile takes such names for u-law without a header."""
        page = tmp_path / name
        page.write_text("<html><body>404 Not Found</body></html>\n" * 100)
        assert error_of(page).type in ("not_audio", "no_audio_track")
        assert_sounds_like(read(write(tmp_path / "b.au", tone(2), 16_000))[0], tone(2))

    def test_an_mp4_in_fragments_begins_where_its_stream_was(self, tmp_path: Path) -> None:
        """Cut from a live stream, its times are of that one's clock: by the epoch, or since it began."""
        made = tmp_path / "live.mp4"
        with av.open(made, "w", options={"movflags": "+frag_keyframe+empty_moov+default_base_moof"}) as container:
            stream = container.add_stream("aac", rate=16_000, layout="mono")
            frame = av.AudioFrame.from_ndarray(tone(5)[None], format="fltp", layout="mono")
            frame.sample_rate = 16_000
            container.mux([*stream.encode(frame), *stream.encode(None)])
        content = made.read_bytes()
        (place,) = (found.end() for found in re.finditer(b"tfdt", content))
        assert content[place : place + 4] == b"\x01\0\0\0"
        begin = int.from_bytes(content[place + 4 : place + 12]) + 1_764_547_200 * 16_000
        made.write_bytes(content[: place + 4] + begin.to_bytes(8) + content[place + 12 :])
        audio, end = read(made)
        assert_sounds_like(audio, tone(5))
        assert end.flags == ()
        with local_file(str(made), LIMITS, lambda: None) as file:
            assert told_seconds(file) == pytest.approx(5, abs=0.1)

    def test_file_name_that_is_no_utf8(self, tmp_path: Path) -> None:
        made = encode(tmp_path / "a.m4a", tone(1, 48_000), "aac")
        odd = made.rename(tmp_path / os.fsdecode(b"\xff\xfe.m4a"))
        assert read(odd)[1].duration_s == pytest.approx(1, abs=0.1)

    def test_mp3_is_read_without_gaps(self, tmp_path: Path) -> None:
        # Given an mp3 whose frames lean on their predecessors (the bit reservoir)
        noise = np.random.default_rng(1).normal(0, 0.1, 20 * 24_000).astype(np.float32)
        noise[::2] *= np.repeat(np.tile([0.01, 1.0], 200), 600)  # quiet and loud by turns: frames of unequal size
        made = write(tmp_path / "a.mp3", noise, 24_000)
        # Then reading it in pieces gives the samples that reading it at once gives
        whole, rate = soundfile.read(made, dtype="float32")
        expected = np.concatenate(list(resampled(iter([(rate, whole)]))))
        np.testing.assert_allclose(read(made)[0], np.clip(expected, -1, 1), atol=1e-5)


class TestSamples:
    def test_channels_are_averaged(self, tmp_path: Path) -> None:
        six = np.stack([tone(1) * gain for gain in (1, 0.5, 0, 0, 0, 0)], axis=1)
        audio, _ = read(write(tmp_path / "a.wav", six, SAMPLE_RATE_HZ))
        np.testing.assert_allclose(audio, tone(1) * 0.25, atol=1e-4)

    @pytest.mark.parametrize("rate_hz", [16_000, 44_100])
    def test_what_is_no_number_becomes_silence_and_the_rest_is_clipped(self, tmp_path: Path, rate_hz: int) -> None:
        raw = tone(1, rate_hz)
        raw[100:103] = (np.nan, np.inf, -np.inf)
        raw[rate_hz // 2 : rate_hz // 2 + 1000] = 7.0
        audio, _ = read(write(tmp_path / "a.wav", raw, rate_hz, subtype="FLOAT"))
        assert np.isfinite(audio).all()
        assert audio.max() == 1.0
        assert audio.min() >= -1.0
        tail = slice(-SAMPLE_RATE_HZ // 4, -1000)
        np.testing.assert_allclose(audio[tail], tone(1)[tail], atol=2e-3)

    def test_blocks_are_ten_seconds(self, tmp_path: Path) -> None:
        made = write(tmp_path / "a.flac", tone(35, 44_100), 44_100)
        sizes = [block.size for block in open_audio(str(made), LIMITS)]
        assert sizes[:3] == [160_000] * 3
        assert sum(sizes) == pytest.approx(35 * SAMPLE_RATE_HZ, abs=1)

    def test_header_without_samples_is_no_error(self, tmp_path: Path) -> None:
        assert read(write(tmp_path / "a.wav", tone(0), SAMPLE_RATE_HZ)) == (pytest.approx([]), AudioEnd(0.0, ()))


@pytest.fixture(scope="module")
def formats(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("formats")
    codecs = {".m4a": "aac", ".aac": "aac", ".webm": "libopus"}

    def make(name: str) -> Path:
        path = folder / name
        if not path.exists():
            codec = codecs.get(path.suffix)
            sound = tone(30, 48_000)
            encode(path, sound, codec) if codec else write(path, sound, 48_000)
        return path

    return make


class TestSpans:
    @pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.ogg", "a.m4a", "a.webm", "a.aac"])
    @pytest.mark.parametrize(("start_s", "end_s"), [(12.25, 17.5), (0.5, 3.0), (0.0, 2.0), (20.0, None), (29.0, 90.0)])
    def test_span_is_that_part_of_the_whole(
        self, formats: Callable[[str], Path], name: str, start_s: float, end_s: float | None
    ) -> None:
        whole, _ = read(formats(name))
        part, end = read(formats(name), start_s, end_s)
        expected = whole[round(start_s * SAMPLE_RATE_HZ) : None if end_s is None else round(end_s * SAMPLE_RATE_HZ)]
        assert abs(part.size - expected.size) <= 32
        length = min(part.size, expected.size)
        # Lossy codecs start from other states, and the resampler from another phase: close, not equal.
        assert np.sqrt(np.mean((part[:length] - expected[:length])[800:-800] ** 2)) < 0.03
        assert end.flags == ()

    @pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
    def test_a_pause_of_the_recorder_is_silence_in_the_whole_as_in_spans(self, tmp_path: Path, name: str) -> None:
        # Given seconds of noise, numbered by their loudness, with a pause of 3 s after the fourth
        path, noise = tmp_path / name, np.random.default_rng(1).choice([-1, 1], SAMPLE_RATE_HZ * 12)
        loudness = np.repeat(np.arange(1, 13), SAMPLE_RATE_HZ)
        with av.open(str(path), "w") as container:
            track = container.add_stream("flac", rate=SAMPLE_RATE_HZ, layout="mono")
            track.codec_context.format = "s16"
            values = (noise * loudness * 1000).astype(np.int16).reshape(-1, 1, 320)
            for number, some in enumerate(values):
                frame = av.AudioFrame.from_ndarray(some, format="s16", layout="mono")
                frame.sample_rate = SAMPLE_RATE_HZ
                frame.pts = 320 * number + (3 * SAMPLE_RATE_HZ if number >= 200 else 0)
                frame.time_base = Fraction(1, SAMPLE_RATE_HZ)
                container.mux(track.encode(frame))
            container.mux([packet for packet in track.encode(None) if packet.size])
        # When
        whole, end = read(path)
        # Then the pause is in it, and a span is that part of it
        seconds = np.abs(whole[SAMPLE_RATE_HZ // 2 :: SAMPLE_RATE_HZ] * 32.768).round().astype(int).tolist()
        assert seconds == [1, 2, 3, 4, 0, 0, 0, *range(5, 13)]
        assert end == AudioEnd(15.0, ())
        for start_s, end_s in ((0.0, 5.0), (5.0, 10.0), (6.5, 9.0), (9.5, None)):
            part, _ = read(path, start_s, end_s)
            stop = None if end_s is None else int(end_s * SAMPLE_RATE_HZ)
            np.testing.assert_array_equal(part, whole[int(start_s * SAMPLE_RATE_HZ) : stop])

    def test_sound_that_its_times_have_no_room_for_is_in_a_span(self, tmp_path: Path) -> None:
        """Pieces of a live stream, put together as they were: each is a little longer than its times say."""
        path, noise = tmp_path / "a.mp4", np.random.default_rng(1).choice([-1, 1], SAMPLE_RATE_HZ * 40)
        values = (noise * np.repeat(np.arange(1, 41), SAMPLE_RATE_HZ) * 500).astype(np.int16)
        with av.open(str(path), "w") as container:
            track = container.add_stream("flac", rate=SAMPLE_RATE_HZ, layout="mono")
            track.codec_context.format = "s16"
            for number, some in enumerate(values.reshape(-1, 1, 320)):
                frame = av.AudioFrame.from_ndarray(some, format="s16", layout="mono")
                frame.sample_rate = SAMPLE_RATE_HZ
                frame.pts, frame.time_base = 320 * number, Fraction(1, SAMPLE_RATE_HZ)
                for packet in track.encode(frame):
                    packet.pts = packet.dts = packet.pts * 9 // 10
                    container.mux(packet)
            for packet in track.encode(None):
                if packet.size:
                    packet.pts = packet.dts = packet.pts * 9 // 10
                    container.mux(packet)
        whole, _ = read(path)
        assert whole.size == pytest.approx(40 * SAMPLE_RATE_HZ, abs=SAMPLE_RATE_HZ)
        cuts = [0.0, 12.0, 24.0, None]
        parts = [read(path, start_s, end_s)[0] for start_s, end_s in pairwise(cuts)]
        assert sum(part.size for part in parts) == pytest.approx(whole.size, abs=0.5 * SAMPLE_RATE_HZ)

    @pytest.mark.parametrize("name", ["a.wav", "a.mp3", "a.m4a", "a.aac"])
    def test_span_after_the_end_is_empty_and_says_so(self, formats: Callable[[str], Path], name: str) -> None:
        audio, end = read(formats(name), 40.0, 50.0)
        assert (audio.size, end.flags) == (0, ("span_beyond_end",))


class TestVideos:
    def test_only_the_sound_of_a_video_is_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        made, noise = tmp_path / "film.mp4", np.random.default_rng(0)
        with av.open(str(made), "w") as container:
            pictures, sound = (
                container.add_stream("mpeg4", rate=25),
                container.add_stream("aac", rate=16_000, layout="mono"),
            )
            pictures.width, pictures.height, pictures.pix_fmt, pictures.bit_rate = 320, 240, "yuv420p", 10**8
            for second in range(8):
                for _ in range(25):
                    values = noise.integers(0, 255, (240, 320, 3), dtype=np.uint8)
                    container.mux(pictures.encode(av.VideoFrame.from_ndarray(values, format="rgb24")))
                frame = av.AudioFrame.from_ndarray(tone(1)[None], format="fltp", layout="mono")
                frame.sample_rate, frame.pts = SAMPLE_RATE_HZ, second * SAMPLE_RATE_HZ
                container.mux(sound.encode(frame))
            container.mux([*pictures.encode(None), *sound.encode(None)])
        taken: list[int] = []

        class CountedFile(io.FileIO):
            def read(self, size: int = -1) -> bytes:
                content = super().read(size)
                taken.append(len(content))
                return content

        monkeypatch.setattr(LocalFile, "open", lambda file: CountedFile(file.path))
        assert read(made)[1].duration_s == pytest.approx(8, abs=0.1)
        assert made.stat().st_size > 4_000_000
        assert sum(taken) < made.stat().st_size / 2

    @pytest.mark.parametrize(
        ("name", "delay_s", "begin_s"),
        [
            *(("a.mp4", 4.0, 0), ("a.mp4", 8.0, 0), ("a.mov", 4.0, 0), ("a.mkv", 4.0, 0), ("a.mkv", 4.0, 1000)),
            # ffmpeg looks into the first five seconds, and takes the picture's times for those of sound after that.
            *(("a.mkv", 8.0, 0), ("a.mkv", 8.0, 1000)),
        ],
    )
    def test_times_of_sound_that_begins_late_count_from_the_start_of_the_film(
        self, tmp_path: Path, name: str, delay_s: float, begin_s: int
    ) -> None:
        made = film(tmp_path / name, delay_s, 2.5, begin_s)
        whole, end = read(made)
        assert (end.duration_s, end.flags) == (pytest.approx(delay_s + 2.5, abs=0.1), ())
        first = int(delay_s * SAMPLE_RATE_HZ)
        assert not whole[: first - SAMPLE_RATE_HZ // 10].any()
        assert np.flatnonzero(np.abs(whole) > 0.1)[0] == pytest.approx(first, abs=SAMPLE_RATE_HZ // 10)
        if not name.endswith("mkv"):
            with local_file(str(made), LIMITS, lambda: None) as file:
                assert told_seconds(file) == pytest.approx(delay_s + 2.5, abs=0.1)
        for start_s, end_s in ((-1.5, -0.5), (-1.0, 1.0), (0.5, 2.0), (1.25, None)):
            stop_s = None if end_s is None else delay_s + end_s
            part, end = read(made, delay_s + start_s, stop_s)
            expected = whole[round((delay_s + start_s) * SAMPLE_RATE_HZ) :][: part.size]
            assert part.size == pytest.approx(((stop_s or whole.size / SAMPLE_RATE_HZ) - delay_s - start_s) * 16_000)
            np.testing.assert_allclose(part, expected, atol=0.01)
            assert end.flags == ()

    @pytest.mark.parametrize("delay_s", [0.2, 5000.0])
    def test_an_encoders_delay_and_another_clock_are_no_silence(self, tmp_path: Path, delay_s: float) -> None:
        audio, end = read(film(tmp_path / "a.mp4", delay_s, 2.5))
        assert_sounds_like(audio, tone(2.5))
        assert (end.duration_s, end.flags) == (pytest.approx(2.5, abs=0.15), ())
        part, _ = read(tmp_path / "a.mp4", 1.5, 2.0)
        np.testing.assert_allclose(part, audio[24_000:32_000], atol=0.01)

    def test_a_film_that_ends_after_its_sound_is_whole_where_only_its_own_length_is_written(
        self, tmp_path: Path
    ) -> None:
        made = film(tmp_path / "a.mkv", 8.0, 2.5)
        made.write_bytes(made.read_bytes().replace(b"DURATION", b"DURATIOM"))
        assert read(made)[1].flags == ()

    def test_a_late_tracks_length_may_be_written_for_its_end(self, tmp_path: Path) -> None:
        """As mkvmerge does."""
        made = film(tmp_path / "a.mkv", 4.0, 2.5)
        whole, _ = read(made)
        content, written = re.subn(rb"00:00:06\.\d{9}", b"00:00:02.500000000", made.read_bytes())
        assert written
        made.write_bytes(content)
        audio, end = read(made)
        np.testing.assert_array_equal(audio, whole)
        assert end.flags == ()

    @pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
    def test_other_tracks_are_not_passed_over_in_silence(self, tmp_path: Path, name: str) -> None:
        made = tmp_path / name
        with av.open(str(made), "w") as container:
            tracks = [container.add_stream("aac", rate=SAMPLE_RATE_HZ, layout="mono") for _ in range(2)]
            for track, hz in zip(tracks, (440.0, 600.0), strict=True):
                frame = av.AudioFrame.from_ndarray(tone(5, hz=hz)[None], format="fltp", layout="mono")
                frame.sample_rate, frame.pts = SAMPLE_RATE_HZ, 0
                container.mux([*track.encode(frame), *track.encode(None)])
        audio, end = read(made)
        assert end.flags == ("other_tracks",)
        assert_sounds_like(audio, tone(5))


class TestDamage:
    def test_truncated_wav_gives_what_is_there(self, tmp_path: Path) -> None:
        made = write(tmp_path / "a.wav", tone(30), SAMPLE_RATE_HZ)
        os.truncate(made, 44 + 2 * 12 * SAMPLE_RATE_HZ)
        audio, end = read(made)
        np.testing.assert_allclose(audio, tone(12), atol=1e-4)
        assert end.flags == ("truncated",)

    @pytest.mark.parametrize("size", [0, 0xFFFFFFFF])
    def test_streamed_wav_without_a_length_is_whole(self, tmp_path: Path, size: int) -> None:
        made = write(tmp_path / "a.wav", tone(3), SAMPLE_RATE_HZ)
        content = bytearray(made.read_bytes())
        content[40:44] = size.to_bytes(4, "little")
        made.write_bytes(content)
        audio, end = read(made)
        assert (audio.size, end.flags) == (3 * SAMPLE_RATE_HZ, ())

    @pytest.mark.parametrize("start_s", [0.0, 0.5, 1.0, 2.0])
    def test_a_part_of_a_wav_that_was_never_closed_is_read_too(self, tmp_path: Path, start_s: float) -> None:
        made = write(tmp_path / "a.wav", tone(4), SAMPLE_RATE_HZ)
        content = bytearray(made.read_bytes())
        content[4:8], content[40:44] = (36).to_bytes(4, "little"), bytes(4)
        made.write_bytes(content)
        audio, end = read(made, start_s=start_s)
        assert (audio.size, end.flags) == ((4 - start_s) * SAMPLE_RATE_HZ, ())

    @pytest.mark.parametrize(("more_bytes", "goes_on"), [(0, False), (2**16, False), (2**22, True)])
    @pytest.mark.parametrize("size", [0x7FFFF000, 0xFFFFFFFF])
    def test_a_streamed_wav_of_more_than_its_header_can_say_is_known(
        self, tmp_path: Path, size: int, more_bytes: int, goes_on: bool
    ) -> None:
        made = write(tmp_path / "a.wav", tone(1), SAMPLE_RATE_HZ)
        content = bytearray(made.read_bytes())
        content[40:44] = size.to_bytes(4, "little")
        made.write_bytes(content)
        os.truncate(made, 44 + size + more_bytes)  # a hole in place of the sound
        with soundfile.SoundFile(made) as sound, made.open("rb") as file:
            assert _goes_on(sound, file.fileno()) == goes_on

    def test_an_rf64_that_was_never_closed_is_no_silence(self, tmp_path: Path) -> None:
        """Both decoders open it, and neither has a sample of it."""
        made = tmp_path / "a.wav"
        soundfile.write(made, tone(30), SAMPLE_RATE_HZ, format="RF64", subtype="PCM_16")
        content = bytearray(made.read_bytes())
        place = content.index(b"ds64") + 8
        content[place : place + 24] = bytes(24)
        made.write_bytes(content)
        with contextlib.suppress(TranscriptionError):
            assert read(made)[1].duration_s > 29
            return
        assert error_of(made).type == "not_audio"

    @pytest.mark.parametrize("name", ["a.flac", "a.mp3", "a.ogg"])
    def test_truncated_file_of_libsndfile(self, tmp_path: Path, name: str) -> None:
        made = write(tmp_path / name, tone(30, 44_100), 44_100)
        os.truncate(made, made.stat().st_size // 2)
        audio, end = read(made)
        assert 10 < end.duration_s < 25
        assert_sounds_like(audio, tone(end.duration_s))
        if name == "a.flac":  # the others hold no length that could be missed
            assert end.flags == ("truncated",)

    @pytest.mark.parametrize("rate_hz", [16_000, 44_100])
    @pytest.mark.parametrize(
        "damage",
        [
            *([(0.1, 1)], [(0.4, 1)], [(0.4, 2000)], [(0.4, 100_000)], [(0.85, 1)]),
            *([(0.2, 50_000), (0.5, 50_000)], [(0.02, 100_000)], [(0.02, 50_000), (0.5, 50_000)]),
        ],
    )
    def test_damage_in_a_flac_costs_only_the_damage(
        self, tmp_path: Path, rate_hz: int, damage: list[tuple[float, int]]
    ) -> None:
        # Given wrong bytes here and there, at which libsndfile ends: within the first ten seconds, and behind them
        noisy = tone(40, rate_hz) + np.random.default_rng(0).normal(0, 0.01, 40 * rate_hz).astype(np.float32)
        made = write(tmp_path / "a.flac", noisy, rate_hz)
        content = bytearray(made.read_bytes())
        for share, size in damage:
            place = int(len(content) * share)
            content[place : place + size] = bytes(byte ^ 0xA5 for byte in content[place : place + size])
        made.write_bytes(content)

        audio, end = read(made)

        # Then what follows is heard, in its place
        assert end.flags == ("damaged",)
        assert end.duration_s == pytest.approx(40, abs=0.3)
        last = round(4.5 * SAMPLE_RATE_HZ)
        assert_sounds_like(audio[-last:], tone(40)[-last:])
        # And spans that are cut behind it and in it lie side by side
        for start_s, cut_s, end_s in ((1.0, 36.0, 39.0), (1.0, 16.2, 39.0)):
            before, _ = read(made, start_s=start_s, end_s=cut_s)
            after, _ = read(made, start_s=cut_s, end_s=end_s)
            assert before.size / SAMPLE_RATE_HZ == pytest.approx(cut_s - start_s, abs=0.3)
            assert after.size / SAMPLE_RATE_HZ == pytest.approx(end_s - cut_s, abs=0.3)

    def test_truncated_webm(self, tmp_path: Path) -> None:
        made = encode(tmp_path / "a.webm", tone(30, 48_000), "libopus")
        os.truncate(made, made.stat().st_size // 2)
        _, end = read(made)
        assert 10 < end.duration_s < 25

    def test_truncated_m4a_has_no_index_and_is_not_audio(self, tmp_path: Path) -> None:
        made = encode(tmp_path / "a.m4a", tone(30, 48_000), "aac")
        os.truncate(made, made.stat().st_size // 2)
        assert error_of(made).type == "not_audio"

    def test_hole_in_the_middle_costs_only_the_hole(self, tmp_path: Path) -> None:
        made = encode(tmp_path / "a.m4a", tone(30, 48_000), "aac")
        content = bytearray(made.read_bytes())
        middle = len(content) // 2
        content[middle : middle + 2000] = b"\xff" * 2000
        made.write_bytes(content)
        _, end = read(made)
        assert end.duration_s > 25
        assert end.flags == ("damaged",)

    @pytest.mark.parametrize("options", [{}, {"subtype": "OPUS"}])
    def test_ogg_files_that_were_joined_are_read_to_the_end(self, tmp_path: Path, options: dict[str, str]) -> None:
        first = write(tmp_path / "first.ogg", tone(12, 48_000), 48_000, format="OGG", **options)
        second = write(tmp_path / "second.ogg", tone(12, 48_000, 600.0), 48_000, format="OGG", **options)
        joined = tmp_path / "joined.ogg"
        joined.write_bytes(first.read_bytes() + second.read_bytes())
        audio, end = read(joined)
        assert end.duration_s == pytest.approx(24, abs=0.1)
        assert end.flags == ()
        assert_sounds_like(audio[: 12 * SAMPLE_RATE_HZ], tone(12))
        assert_sounds_like(audio[-12 * SAMPLE_RATE_HZ :], tone(12, hz=600.0))
        part, _ = read(joined, 15.0, 20.0)
        assert part.size == pytest.approx(5 * SAMPLE_RATE_HZ, abs=32)
        assert np.sqrt(np.mean((part - audio[15 * SAMPLE_RATE_HZ :][: part.size])[800:-800] ** 2)) < 0.03

    @pytest.mark.parametrize(("first_s", "second_s"), [(20, 10), (10, 20), (15, 15), (3, 30), (30, 3)])
    def test_flac_files_that_were_joined_are_read_to_the_end(self, tmp_path: Path, first_s: int, second_s: int) -> None:
        """libFLAC ends with the first, and where it seeks, it may find itself in the second."""
        sound = tone(first_s + second_s) + np.random.default_rng(0).normal(
            0, 0.01, (first_s + second_s) * SAMPLE_RATE_HZ
        ).astype(np.float32)
        cut = first_s * SAMPLE_RATE_HZ
        first = write(tmp_path / "first.flac", sound[:cut], SAMPLE_RATE_HZ)
        second = write(tmp_path / "second.flac", sound[cut:], SAMPLE_RATE_HZ)
        joined = tmp_path / "joined.flac"
        joined.write_bytes(first.read_bytes() + second.read_bytes())
        audio, end = read(joined)
        assert end == AudioEnd(first_s + second_s, ())
        np.testing.assert_allclose(audio, sound, atol=1e-4)
        for start_s, end_s in ((first_s - 1.5, first_s + 1.5), (1.0, 2.0), (first_s + 1.0, None)):
            part, _ = read(joined, start_s, end_s)
            stop = None if end_s is None else int(end_s * SAMPLE_RATE_HZ)
            np.testing.assert_allclose(part, sound[int(start_s * SAMPLE_RATE_HZ) : stop], atol=1e-4)

    @pytest.mark.parametrize("suffix", ["aiff", "w64", "au", "rf64"])
    def test_other_files_that_are_cut_off_say_so(self, tmp_path: Path, suffix: str) -> None:
        made = write(
            tmp_path / f"a.{suffix}", tone(30), SAMPLE_RATE_HZ, **{"format": suffix} if suffix == "rf64" else {}
        )
        assert read(made)[1] == AudioEnd(30.0, ())
        os.truncate(made, made.stat().st_size // 2)
        _, end = read(made)
        assert end.duration_s == pytest.approx(15, abs=0.1)
        assert end.flags == ("truncated",)

    @pytest.mark.parametrize(("name", "video"), [("a.webm", False), ("a.mkv", False), ("a.mkv", True)])
    def test_a_download_of_half_a_matroska_file_says_so(self, tmp_path: Path, name: str, video: bool) -> None:
        made = encode(tmp_path / name, tone(30, 48_000), "libopus" if name == "a.webm" else "aac", video=video)
        assert read(made)[1].flags == ()
        with local_file(str(made), LIMITS, lambda: None) as file:
            # To find a place in a film, all before it would be read.
            assert told_seconds(file) == (0.0 if video else pytest.approx(30, abs=0.1))
        os.truncate(made, made.stat().st_size // 2)
        assert read(made)[1].flags == ("truncated",)

    def test_flac_in_ogg_falls_back_to_ffmpeg(self, tmp_path: Path) -> None:
        audio, end = read(encode(tmp_path / "a.ogg", tone(12, 48_000), "flac"))
        assert end.duration_s > 11
        assert_sounds_like(audio, tone(12))


class TestErrors:
    def test_no_such_file(self, tmp_path: Path) -> None:
        error = error_of(tmp_path / "absent.wav")
        assert (error.type, error.message) == ("file_not_found", f"{tmp_path}/absent.wav: no such file on this worker")
        assert error_of(tmp_path / "a.wav" / "b.wav").type == "file_not_found"
        assert error_of("\0").type == "file_not_found"
        assert error_of("/" + "x" * 10_000).type == "file_not_found"

    def test_no_file_at_all(self, tmp_path: Path) -> None:
        assert error_of(tmp_path).type == "not_a_file"
        os.mkfifo(tmp_path / "pipe.wav")
        assert error_of(tmp_path / "pipe.wav").type == "not_a_file"
        assert error_of("/dev/zero").type == "not_a_file"

    def test_empty_file(self, tmp_path: Path) -> None:
        (tmp_path / "a.wav").touch()
        error = error_of(tmp_path / "a.wav")
        assert (error.type, error.message) == ("not_audio", f"{tmp_path}/a.wav: the file is empty (0 bytes)")

    @pytest.mark.parametrize(
        "content", [b"Dear diary,\n" * 50, b"\0" * 5000, b"RIFF\x24\0\0\0WAVEfmt ", b"<html></html>", b"x"]
    )
    @pytest.mark.parametrize("name", ["a.txt", "a.wav", "a.mp3"])
    def test_what_is_not_audio(self, tmp_path: Path, name: str, content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        error = error_of(tmp_path / name)
        assert error.type == "not_audio"
        assert error.message.startswith(f"{tmp_path}/{name}: cannot be read as audio (libsndfile: ")

    def test_video_without_sound(self, tmp_path: Path) -> None:
        error = error_of(encode(tmp_path / "film.mp4", tone(0), "aac", video=True))
        assert error.type == "no_audio_track"

    def test_limits(self, tmp_path: Path) -> None:
        made = write(tmp_path / "a.wav", tone(20), SAMPLE_RATE_HZ)
        assert error_of(made, AudioLimits(max_audio_bytes=600_000)).type == "too_large"
        too_long = error_of(made, AudioLimits(max_audio_seconds=10))
        assert too_long.type == "too_long"
        assert too_long.message.endswith("20 s, the limit is 10 s (WHISPER_MAX_AUDIO_SECONDS)")
        # A span within the limit is fine.
        assert read(made, 5.0, 14.0, AudioLimits(max_audio_seconds=10))[1].duration_s == 9.0

    def test_length_that_no_header_tells_is_found_while_decoding(self, tmp_path: Path) -> None:
        made = encode(tmp_path / "a.aac", tone(30, 48_000), "aac")
        decoding = open_audio(str(made), AudioLimits(max_audio_seconds=15))
        assert next(decoding).size == 160_000
        with pytest.raises(TranscriptionError, match="too_long"):
            next(decoding)

    @pytest.mark.parametrize(
        ("number", "type_", "transient"),
        [
            (errno.ENOENT, "file_not_found", False),
            (errno.EACCES, "no_permission", False),
            (errno.EISDIR, "not_a_file", False),
            (errno.EIO, "read_failed", True),
            (errno.ESTALE, "read_failed", True),
        ],
    )
    def test_system_errors(self, number: int, type_: str, transient: bool) -> None:
        error = os_error(OSError(number, os.strerror(number)), "/data/a.wav")
        assert (error.type, isinstance(error, TransientError)) == (type_, transient)
        assert error.message.startswith("/data/a.wav: ")

    @pytest.mark.parametrize("name", ["a.m4a", "a.webm"])
    def test_storage_that_fails_while_ffmpeg_reads(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        class FailingFile(io.FileIO):
            def read(self, size: int = -1) -> bytes:
                if self.tell() > 20_000:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                return super().read(size)

        made = encode(tmp_path / name, tone(10, 48_000), "aac" if name == "a.m4a" else "libopus")
        monkeypatch.setattr(LocalFile, "open", lambda file: FailingFile(file.path))
        error = error_of(made)
        assert (error.type, isinstance(error, TransientError)) == ("read_failed", True)

    def test_sources_that_nobody_knows(self) -> None:
        assert error_of("nonsense://bucket/a.wav").type == "unsupported_source"
        assert error_of("file://elsewhere/a.wav").type == "unsupported_source"

    def test_messages_show_no_secret_and_one_line(self) -> None:
        assert shown("https://me:pass@host/a%20b.mp3?X-Signature=abc#x") == "https://host/a%20b.mp3"
        assert shown("/cwd/ https:/host/a.mp3?X-Signature=abc") == "/cwd/ https:/host/a.mp3"
        assert shown("/data/what?.mp3") == "/data/what?.mp3"
        assert shown("/data/a\nb") == "/data/a\ufffdb"
        assert len(shown("/data/" + "x" * 1000)) == 200


class _Handler(BaseHTTPRequestHandler):
    content = b""

    def do_GET(self) -> None:
        if self.path.startswith("/status/"):
            self.send_error(int(self.path.rsplit("/", 1)[1]))
        elif self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/a.m4a")
            self.end_headers()
        elif self.path == "/cut":
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.content) + 1000))
            self.end_headers()
            self.wfile.write(self.content)
        elif self.path == "/silent":
            self.server.released.wait(60)  # type: ignore[attr-defined]
        elif self.path.startswith("/part/"):
            first, count = (int(number) for number in self.path.removeprefix("/part/").split("-"))
            part = self.content[first : first + count]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(self.content)}")
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            self.wfile.write(part)
        else:
            self.send_response(200)
            self.end_headers()  # no length: the limit has to be found on the way
            self.wfile.write(self.content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    made = encode(tmp_path_factory.mktemp("http") / "a.m4a", tone(5, 48_000), "aac")
    _Handler.content = made.read_bytes()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.released = threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.released.set()  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()
    thread.join()


class TestFetching:
    @pytest.mark.parametrize("path", ["/a.m4a", "/moved", "/with blank and ü.m4a?token=1"])
    def test_http(self, server: str, path: str) -> None:
        audio, end = read(server + path)
        assert_sounds_like(audio, tone(5))
        assert end.flags == ()

    @pytest.mark.parametrize(
        ("status", "transient"), [(404, False), (403, False), (503, True), (500, True), (429, True)]
    )
    def test_http_errors(self, server: str, status: int, transient: bool) -> None:
        error = error_of(f"{server}/status/{status}")
        assert (error.type, isinstance(error, TransientError)) == ("fetch_failed", transient)
        assert f"HTTP {status}" in error.message

    def test_connection_that_ends_early(self, server: str) -> None:
        error = error_of(server + "/cut")
        assert isinstance(error, TransientError)
        assert "the connection ended after" in error.message

    def test_a_part_is_not_taken_for_all(self, server: str) -> None:
        """As broken caches give."""
        assert read(server + "/part/0-1000000")[1].duration_s == pytest.approx(5, abs=0.1)
        for part in ("0-5000", "100-1000000"):
            error = error_of(f"{server}/part/{part}")
            assert (error.type, isinstance(error, TransientError)) == ("fetch_failed", True)
            assert "HTTP 206" in error.message

    def test_server_that_says_nothing(self, server: str) -> None:
        error = error_of(server + "/silent", replace(LIMITS, decode_timeout_seconds=1))
        assert (error.type, isinstance(error, TransientError)) == ("fetch_failed", True)

    def test_nobody_there(self) -> None:
        with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
            port = server.server_port
        error = error_of(f"http://127.0.0.1:{port}/a.wav")
        assert (error.type, isinstance(error, TransientError)) == ("fetch_failed", True)

    def test_byte_limit_holds_while_fetching(self, server: str) -> None:
        assert error_of(server + "/a.m4a", replace(LIMITS, max_audio_bytes=10_000)).type == "too_large"

    def test_address_that_is_none(self) -> None:
        error = error_of("http://[half/a.wav")
        assert (error.type, isinstance(error, TransientError)) == ("fetch_failed", False)

    def test_file_url(self, tmp_path: Path) -> None:
        made = write(tmp_path / "a b#1.wav", tone(1), SAMPLE_RATE_HZ)
        assert read(made.as_uri())[1].duration_s == 1.0
        assert read(f"file://localhost{made}")[1].duration_s == 1.0

    def test_storage_through_fsspec(self, tmp_path: Path) -> None:
        import fsspec

        memory = fsspec.filesystem("memory")
        memory.pipe("/test/a.wav", write(tmp_path / "a.wav", tone(1), SAMPLE_RATE_HZ).read_bytes())
        allowed = replace(LIMITS, url_schemes=["memory"])
        assert read("memory://test/a.wav", limits=allowed)[1].duration_s == 1.0
        assert error_of("memory://test/absent.wav", allowed).type == "file_not_found"
        memory.rm("/test", recursive=True)

    def test_nothing_stays_behind(self, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        decoding = open_audio(server + "/a.m4a", LIMITS)
        next(decoding)
        assert list(tmp_path.iterdir()) == []  # not even while it is read: the file has no name

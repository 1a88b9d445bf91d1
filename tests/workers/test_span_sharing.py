"""What of a long recording is left to others, and when. Real decoding; the engine's answers depend on the audio."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile

from benchmarks.recordings import speech_pattern
from scripted_engine import FACTS, ScriptedEngine
from web_server import content, serving
from workers.audio import SAMPLE_RATE_HZ, AudioLimits, DecodePool
from workers.interface import WindowRequest, WindowResult, WindowSegment
from workers.messages import Item, Options, Record, Span, Transcript
from workers.settings import load_settings
from workers.spans import joined
from workers.transcriber import Transcriber

SPAN_SECONDS = 40.0
LANGUAGES = ("en", "de", "zh")


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    made = DecodePool(2, AudioLimits(span_seconds=SPAN_SECONDS))
    yield made
    made.close()


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two minutes of speech; the same after more than a span of silence."""
    folder = tmp_path_factory.mktemp("recordings")
    speech = np.concatenate([speech_pattern(), speech_pattern()[: 20 * SAMPLE_RATE_HZ]])
    silence = np.zeros(round(1.2 * SPAN_SECONDS * SAMPLE_RATE_HZ), dtype=np.float32)
    soundfile.write(folder / "speech.flac", speech, SAMPLE_RATE_HZ)
    soundfile.write(folder / "late.flac", np.concatenate([silence, speech]), SAMPLE_RATE_HZ)
    noise = np.random.default_rng(1).uniform(-1e-4, 1e-4, 3 * silence.size).astype(np.float32)
    soundfile.write(folder / "silent.flac", noise, SAMPLE_RATE_HZ)
    return folder


def of_its_audio(request: WindowRequest, _: int) -> WindowResult:
    """An answer that tells samples, language and seed from others; each window hears a language of its own."""
    checksum = zlib.crc32(request.samples.tobytes())
    language = request.language or LANGUAGES[checksum % 3]
    text = f"{checksum:08x} in {language}"
    return WindowResult(
        text=text,
        language=language,
        language_probability=0.3 + checksum % 7 / 10,
        no_speech_prob=checksum % 11 / 100,
        avg_logprob=-(checksum % 13) / 100,
        compression_ratio=1.0 + checksum % 5 / 10,
        temperature=request.temperature,
        segments=(WindowSegment(0.0, len(request.samples) / SAMPLE_RATE_HZ, text),),
    )


class Fleet:
    """One transcriber, and what it leaves to others."""

    def __init__(self, pool: DecodePool, split_seconds: float = 60.0) -> None:
        self.engine = ScriptedEngine(of_its_audio, FACTS)
        self.settings = load_settings(split_seconds=split_seconds)
        self.shared: list[tuple[list[Span], str | None]] = []
        #: Windows that the engine had when it was shared.
        self.windows_before: list[int] = []
        self._transcriber = Transcriber(self.engine, pool, self.settings, threads=1)

    def items(self, record: Record, options: Options, *, shares: bool) -> list[Item]:
        found: list[list[Item]] = []

        def share(_: Record, spans: list[Span], language: str | None) -> None:
            self.shared.append((spans, language))
            self.windows_before.append(len(self.engine.requests))

        self._transcriber.transcribe(
            [record], "transcribe", options, lambda _, items: found.append(items), share if shares else None
        )
        (items,) = found
        return items

    def together(self, record: Record, options: Options) -> Item:
        """The recording when each span that is shared is done on its own."""
        (first,) = self.items(record, options, shares=True)
        ((spans, language),) = self.shared
        later = [
            record.model_copy(
                update={"start_s": s.start_s, "end_s": s.end_s, "language": language or record.language, "span_of": 0}
            )
            for s in spans
        ]
        return joined([first, *(self.items(one, options, shares=True)[0] for one in later)])


@pytest.mark.parametrize(
    ("name", "fields", "language"),
    [
        ("speech", {}, "auto"),
        ("speech", {}, "de"),
        ("speech", {}, "per-window"),
        ("speech", {"start_s": 7.77, "end_s": 111.0}, "auto"),
        ("late", {"language": "Chinese"}, "auto"),
        ("late", {}, "auto"),
        ("silent", {"language": "en"}, "auto"),
    ],
)
def test_spans_done_by_others_give_the_recording_as_one_does_it(
    pool: DecodePool, recordings: Path, name: str, fields: dict[str, object], language: str
) -> None:
    # Given
    record = Record(audio=str(recordings / f"{name}.flac"), row=4, **fields)  # type: ignore[arg-type]
    options = Options(language=language, timestamps=True)
    # When
    (whole,) = Fleet(pool).items(record, options, shares=False)
    fleet = Fleet(pool)
    parts = fleet.together(record, options)
    # Then
    assert isinstance(whole, Transcript)
    assert isinstance(parts, Transcript)
    assert whole.model_dump(exclude={"duration"}) == parts.model_dump(exclude={"duration"})
    assert whole.duration == pytest.approx(parts.duration)
    assert bool(whole.text) == (name != "silent")
    ((spans, _),) = fleet.shared
    assert all(before.end_s == after.start_s for before, after in pairwise(spans))
    assert spans[-1].end_s == record.end_s


def test_with_a_language_spans_are_shared_before_anything_is_heard(pool: DecodePool, recordings: Path) -> None:
    fleet = Fleet(pool)
    fleet.items(Record(audio=str(recordings / "speech.flac"), row=0), Options(language="en"), shares=True)
    ((spans, language),) = fleet.shared
    assert (len(spans), language, fleet.windows_before) == (2, None, [0])


def test_without_a_language_spans_are_shared_as_soon_as_it_is_voted(pool: DecodePool, recordings: Path) -> None:
    """The vote takes three windows, in whichever span the third one is."""
    fleet = Fleet(pool)
    fleet.items(Record(audio=str(recordings / "late.flac"), row=0), Options(), shares=True)
    ((spans, language),) = fleet.shared
    assert fleet.windows_before == [3]
    assert language in LANGUAGES
    assert spans[0].start_s > 2 * SPAN_SECONDS * 0.75, "the first three windows are not in the first span"
    assert all(request.language == language for request in fleet.engine.requests[3:])


@pytest.mark.parametrize("split_seconds", [0.0, 150.0])
def test_what_is_not_longer_than_the_setting_is_not_shared(
    pool: DecodePool, recordings: Path, split_seconds: float
) -> None:
    fleet = Fleet(pool, split_seconds)
    (item,) = fleet.items(Record(audio=str(recordings / "speech.flac"), row=0), Options(), shares=True)
    assert fleet.shared == []
    assert isinstance(item, Transcript)
    assert item.duration == pytest.approx(120.0)


def test_a_span_and_split_channels_are_not_shared(pool: DecodePool, recordings: Path) -> None:
    fleet = Fleet(pool)
    path = str(recordings / "speech.flac")
    fleet.items(Record(audio=path, row=0, span_of=0, end_s=119.0), Options(language="en"), shares=True)
    fleet.items(Record(audio=path, row=0), Options(language="en", channels="split"), shares=True)
    assert fleet.shared == []


def test_what_is_fetched_from_the_web_is_not_shared(pool: DecodePool, recordings: Path) -> None:
    """The next fetch may give other advertisements, or none at all to an address that was signed for an hour."""
    sound = (recordings / "speech.flac").read_bytes()
    expected = Fleet(pool).items(Record(audio=str(recordings / "speech.flac"), row=0), Options(), shares=False)
    open_pool = DecodePool(1, AudioLimits(span_seconds=SPAN_SECONDS, allow_private_addresses=True))
    with serving({"/a.flac": content(sound)}) as web, closing(open_pool):
        fleet = Fleet(open_pool)
        items = fleet.items(Record(audio=f"{web.url}/a.flac", row=0), Options(), shares=True)
        assert (fleet.shared, len(web.asked)) == ([], 1)
    assert items == expected

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from asterisk import require_asterisk
from benchmarks.corpus import (
    CORPUS_VARIABLE,
    JOINED_AUDIO,
    JOINED_SEGMENTS,
    PAUSE_SECONDS,
    Clip,
    Group,
    asterisk_clips,
    evenly_spaced,
    find_corpus,
    first_of_each,
    folder_clips,
    odd_group,
    paused_clip,
    reference_starts,
    spread,
)
from rows import SAMPLES


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A corpus folder's manifests, without the recordings."""
    speech = [
        {"audio": "a/one.wav", "text": "One.", "language": "en", "seconds": 2.5, "license": "x"},
        {"audio": JOINED_AUDIO, "text": "Two.", "language": "en", "seconds": 240.9},
    ]
    odd = [
        {"audio": "odd/null.wav", "kind": "corrupt", "expect": "empty", "language": None, "seconds": None},
        {"audio": "odd/radio.mp3", "kind": "no reference", "expect": "language=fr", "language": "fr", "seconds": 120.5},
        {"audio": "odd/fuzz.wav", "kind": "fuzz", "expect": "no crash", "language": None, "seconds": 0.1},
    ]
    for name, rows in (("manifest.jsonl", speech), ("odd_manifest.jsonl", odd)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "derived").mkdir()
    (tmp_path / JOINED_SEGMENTS).write_text(json.dumps([{"start": 0.0}, {"start": 10.255}]))
    return tmp_path


def clip(key: str, group: Group = "speech", language: str = "en", seconds: float = 3.0, path: str = "x") -> Clip:
    return Clip(key, Path(path), group, language, seconds, "text of " + key)


def test_a_folder_gives_speech_and_what_is_no_speech(folder: Path) -> None:
    clips = folder_clips(folder)
    assert [(c.key, c.group, c.language, c.text) for c in clips] == [
        ("audio/a/one.wav", "speech", "en", "One."),
        (f"audio/{JOINED_AUDIO}", "speech", "en", "Two."),
        ("audio/odd/null.wav", "non_speech", "en", None),
        ("audio/odd/radio.mp3", "unreferenced", "fr", None),
    ]
    assert [c.is_long for c in clips] == [False, True, False, True]
    assert clips[0].path == folder / "a/one.wav"
    assert reference_starts(folder) == [0.0, 10.255]


@pytest.mark.parametrize(
    ("kind", "expect", "language", "group"),
    [
        ("near-silence", "empty text", None, "non_speech"),
        ("thunder ESC-50", "empty text", None, "non_speech"),
        ("wrong extension/empty/music", "no crash; music -> no speech", None, "non_speech"),
        ("8 kHz noisy radio, loops/hallucinates", "repetition filter test", "en", "unreferenced"),
        ("laughter", "no words", None, "unreferenced"),
        ("VAD pattern n=nonspeech s=speech", "VAD test", None, None),
        ("flac faulty", "no crash", None, None),
        ("multichannel/rare flac, music", "decodes", None, None),
        ("silence/odd container/truncated", "error or empty text", None, "non_speech"),
    ],
)
def test_odd_files_are_grouped_by_what_they_say(
    kind: str, expect: str, language: str | None, group: str | None
) -> None:
    assert odd_group({"audio": "odd/x.wav", "kind": kind, "expect": expect, "language": language}) == group


def test_what_is_spoken_is_never_counted_as_no_speech() -> None:
    row = {"kind": "music", "expect": "music -> no speech", "language": None}
    assert odd_group({**row, "audio": "odd/pydub/bach.ogg"}) == "non_speech"
    assert odd_group({**row, "audio": "odd/pydub/test5.webm"}) == "unreferenced"


def test_the_corpus_is_named_or_found_or_missing(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(CORPUS_VARIABLE, raising=False)
    assert find_corpus(folder) == folder
    monkeypatch.setenv(CORPUS_VARIABLE, str(folder))
    assert find_corpus(None) == folder
    with pytest.raises(ValueError, match=r"no manifest\.jsonl"):
        find_corpus(tmp_path_factory.mktemp("empty"))


def test_prompts_are_spread_over_the_script_and_taken_once() -> None:
    every = require_asterisk("en")
    # When a small sample is asked for, without the first of a larger one
    wide = asterisk_clips("en", 300)
    narrow = asterisk_clips("en", 100, taken=[wide[0].key.rpartition("/")[2]])
    # Then both have the words and no more prompts than that takes, from the whole script
    for clips, words in ((wide, 300), (narrow, 100)):
        counts = [len((c.text or "").split()) for c in clips]
        assert min(counts) >= 4
        assert words <= sum(counts) < 2 * words
        assert len({c.key for c in clips}) == len(clips)
    places = [[prompt.name for prompt in every].index(c.key.removeprefix("asterisk/en/")) for c in wide]
    assert places == sorted(places)
    assert places[-1] - places[0] > len(every) / 2
    assert wide[0].key not in {c.key for c in narrow}
    assert all(0.5 < c.seconds < 60 for c in wide)
    assert asterisk_clips("en", 0) == []


@given(st.lists(st.integers(4, 40), max_size=60), st.integers(1, 400))
def test_evenly_spaced_takes_no_more_than_it_needs(weights: list[int], least: int) -> None:
    chosen = evenly_spaced(weights, least)
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(range(len(weights)))
    reached = sum(weights[index] for index in chosen) >= least
    assert reached or chosen == list(range(len(weights)))
    if len(chosen) > 1 and reached:
        fewer = spread(len(weights), len(chosen) - 1)
        assert sum(weights[index] for index in fewer) < least


@given(st.integers(1, 500), st.integers(1, 500))
def test_spread_covers_the_whole_evenly(length: int, count: int) -> None:
    chosen = spread(length, count)
    assert len(chosen) == len(set(chosen)) == min(length, count)
    gaps = {after - before for before, after in zip(chosen, [*chosen[1:], length], strict=True)}
    assert max(gaps) - min(gaps) <= 1
    assert spread(0, count) == []


def test_a_limit_holds_for_each_kind_and_keeps_the_joined_recording() -> None:
    clips = [clip(f"audio/{n}", seconds=seconds) for n, seconds in enumerate([1, 2, 3, 40, 50])]
    clips += [clip("asterisk/en/a"), clip("audio/f", language="fr"), clip(f"audio/{JOINED_AUDIO}", seconds=240)]
    kept = [c.key for c in first_of_each(clips, 1)]
    assert kept == ["audio/0", "audio/3", "asterisk/en/a", "audio/f", f"audio/{JOINED_AUDIO}"]
    assert first_of_each(clips, None) == clips


def test_the_paused_recording_holds_the_clips_and_the_pauses(tmp_path: Path) -> None:
    # Given two short English clips among others
    train = SAMPLES / "audio" / "en_train.flac"
    seconds = soundfile.info(train).duration
    clips = [clip(f"audio/{n}", seconds=seconds, path=str(train)) for n in range(2)]
    others = [clip("audio/fr", language="fr"), clip("audio/long", seconds=99.0), clip("audio/odd", group="non_speech")]
    # When they are joined
    paused = paused_clip([*others, *clips], tmp_path / "paused.wav")
    # Then the recording is both of them around one quiet pause
    assert paused is not None
    assert (paused.key, paused.group, paused.text) == ("made/paused.wav", "pauses", "text of audio/0 text of audio/1")
    assert paused.seconds == pytest.approx(2 * seconds + PAUSE_SECONDS, abs=0.1)
    samples, rate = soundfile.read(tmp_path / "paused.wav")
    pause = samples[int((seconds + 1) * rate) : int((seconds + PAUSE_SECONDS - 1) * rate)]
    assert 0 < np.abs(pause).max() < 0.01
    assert np.abs(samples[-int(seconds * rate) :]).max() > 0.05
    assert paused_clip(others, tmp_path / "none.wav") is None

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.corpus import Clip, Group
from benchmarks.report import Bar, Results, as_json, bars, error_rows
from benchmarks.systems import Answer, GroupRun
from benchmarks.tables import show

#: A text of 50 words; 20 clips of it are the 1,000 words from which a language is judged.
FIFTY = " ".join(f"word{chr(97 + n // 10)}{chr(97 + n % 10)}" for n in range(50))
#: The same with one wrong word.
ONE_WRONG = FIFTY.replace("wordab", "wrong")


def clips_of(language: str, count: int, seconds: float = 10.0, group: Group = "speech") -> list[Clip]:
    text = FIFTY if group == "speech" else None
    return [
        Clip(f"audio/{group}-{language}-{seconds:g}-{n}", Path("x"), group, language, seconds, text)
        for n in range(count)
    ]


def results(
    clips: list[Clip],
    said: Mapping[str, Mapping[str, Answer]],
    wall_seconds: Mapping[str, float] | None = None,
    joined: Answer | None = None,
    starts: tuple[float, ...] = (),
) -> Results:
    """What systems said; a clip that ``said`` does not name was heard right (or silent)."""
    walls = wall_seconds or {}
    runs = {}
    for system, answers in said.items():
        runs[system] = {
            group: GroupRun(
                {clip.key: answers.get(clip.key, Answer(clip.text or "")) for clip in members},
                walls.get(system, 1.0),
                sum(clip.seconds for clip in members),
            )
            for group in ["speech", "non_speech", "unreferenced", "pauses"]
            if (members := [clip for clip in clips if clip.group == group])
        }
        runs[system]["no_retry"] = GroupRun({}, walls.get(system, 1.0), 100.0)
    return Results(clips, runs, joined, starts)


def judged(found: Results) -> dict[str, bool | None]:
    return {bar.name: bar.met for bar in bars(found, error_rows(found))}


def wrong(clips: list[Clip], count: int) -> dict[str, Answer]:
    """One wrong word in each of the first ``count`` clips."""
    return {clip.key: Answer(ONE_WRONG) for clip in clips[:count]}


@pytest.mark.parametrize(
    ("language", "fleet_wrong", "other_wrong", "met"),
    [("fr", 10, 5, True), ("fr", 11, 5, False), ("en", 5, 5, True), ("en", 6, 5, False), ("en", 4, 5, True)],
)
def test_a_language_may_be_half_a_point_worse_and_english_not_at_all(
    language: str, fleet_wrong: int, other_wrong: int, met: bool
) -> None:
    clips = clips_of(language, 20)
    found = results(clips, {"fleet": wrong(clips, fleet_wrong), "faster-whisper": wrong(clips, other_wrong)})
    assert judged(found)[f"WER above faster-whisper: {language}"] is met


def test_a_language_with_few_words_is_reported_but_not_judged() -> None:
    clips = clips_of("sv", 19)
    found = results(clips, {"fleet": wrong(clips, 19), "faster-whisper": {}})
    (row,) = error_rows(found)
    assert (row.language, row.units, row.scores["fleet"].rate) == ("sv", 950, pytest.approx(0.02))
    assert not any("sv" in name for name in judged(found))


def test_long_recordings_count_apart_across_languages() -> None:
    clips = [*clips_of("en", 20), *clips_of("en", 1, 90.0), *clips_of("it", 1, 45.0), *clips_of("zh", 1, 60.0)]
    long_italian = clips[21]
    found = results(clips, {"fleet": wrong([long_italian], 1), "faster-whisper": wrong([clips[0]], 1)})
    rows = {(row.language, row.part): row for row in error_rows(found)}
    assert rows["en", "all"].units == 1050
    assert rows["en", "over 30 s"].units == 50
    # Chinese is scored in characters: it does not go into a sum of words.
    assert rows["all", "over 30 s"].clips == 2
    assert rows["all", "over 30 s"].scores["fleet"].rate == pytest.approx(0.01)
    assert judged(found)["WER above faster-whisper: recordings over 30 s"] is False
    assert judged(found)["WER above faster-whisper: en"] is True


def test_one_character_over_silence_is_one_too_many() -> None:
    silence = clips_of("en", 3, group="non_speech")
    clean = results(silence, {"fleet": {}, "bare": {silence[0].key: Answer(" Thank you. ")}})
    report = as_json(clean, error_rows(clean), {})
    assert report["non_speech_characters"] == {"fleet": 0, "bare": 9}
    assert judged(clean)["characters written over no speech"] is True
    assert judged(results(silence, {"fleet": {silence[2].key: Answer(".")}}))["characters written over no speech"] is (
        False
    )


def test_a_loop_is_caught_when_its_row_is_flagged() -> None:
    clips = clips_of("en", 3)
    looping = "you know " * 5
    flagged = Answer(looping, details={"flags": ["repetition"], "temperature": 0.4, "attempts": 1})
    caught = results(clips, {"fleet": {clips[0].key: flagged}})
    missed = results(clips, {"fleet": {clips[0].key: flagged, clips[1].key: Answer(looping)}})
    assert judged(caught)["loops not caught"] is True
    assert judged(missed)["loops not caught"] is False
    report = as_json(missed, error_rows(missed), {})
    assert report["loops"]["missed"] == [clips[1].key]
    assert report["loops"]["texts"]["fleet"] == {clips[0].key: "you know", clips[1].key: "you know"}
    # And the row whose temperature rose is a retry
    assert report["retries"]["clips"] == [clips[0].key]
    assert report["retries"]["share_of_rows"] == pytest.approx(1 / 3, abs=1e-4)


def test_segment_starts_are_those_of_the_timestamped_job() -> None:
    starts = tuple(float(n) for n in range(10))
    segments = [{"start": n + 0.3, "end": n + 0.9, "text": "x"} for n in range(9)]
    clips = clips_of("en", 1)
    found = results(clips, {"fleet": {}}, joined=Answer("x", segments=segments[:9]), starts=starts)
    assert judged(found)["segment starts within 0.5 s"] is True
    fewer = results(clips, {"fleet": {}}, joined=Answer("x", segments=segments[:8]), starts=starts)
    assert judged(fewer)["segment starts within 0.5 s"] is False
    assert judged(results(clips, {"fleet": {}}))["segment starts within 0.5 s"] is None


@pytest.mark.parametrize(("fleet_wall", "met"), [(1.0, True), (1.17, True), (1.2, False)])
def test_speed_is_compared_on_the_same_clips(fleet_wall: float, met: bool) -> None:
    walls = {"fleet": fleet_wall, "bare": 1.0}
    assert judged(results(clips_of("en", 1), {"fleet": {}, "bare": {}}, walls))["speed of bare, no retries"] is met


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    found = results(clips_of("en", 20), {"bare": {}})
    assert set(judged(found).values()) == {None}
    assert Bar("x", None, 0).as_dict()["met"] is None


def test_the_report_holds_all_texts_and_reads_as_tables() -> None:
    clips = [*clips_of("en", 2), *clips_of("en", 1, group="non_speech")]
    said = {
        "fleet": {clips[0].key: Answer(ONE_WRONG, details={"flags": [], "model": "somewhere"})},
        "bare": {clips[2].key: Answer(error="not_audio")},
        "faster-whisper": {},
    }
    found = results(clips, said)
    report = json.loads(json.dumps(as_json(found, error_rows(found), {"left_out": ["the sea"]})))
    first, _, last = report["clips"]
    assert first["fleet"] == {"text": ONE_WRONG, "edits": 1, "details": {"flags": []}}
    assert first["bare"] == {"text": FIFTY, "edits": 0}
    assert last["bare"] == {"text": "", "error": "not_audio"}
    assert report["counts"] == {"clips": 3, "seconds": 30.0, "groups": {"non_speech": 1, "speech": 2}}
    output = io.StringIO()
    show(report, Console(file=output, width=150))
    shown = output.getvalue()
    assert "1.00 (1.00)" in shown  # one of a hundred words
    assert "100 words" in shown
    assert "Left out: the sea" in shown
    assert "not measured" in shown

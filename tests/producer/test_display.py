"""What a person sees: lines in a log, a bar on a terminal, a table at the end."""

from __future__ import annotations

import io
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from job_files import write_rows
from rich.console import Console

from producer.display import Display, result_table
from producer.registry import Progress
from workers.messages import Task


def said(*, terminal: bool = False, width: int = 40) -> tuple[Display, io.StringIO]:
    out = io.StringIO()
    return Display(Console(file=out, force_terminal=terminal, width=width)), out


def test_a_log_gets_one_line_for_what_is_waited_for() -> None:
    display, out = said()
    with display:
        for seconds in range(5):
            display.waiting(f"loading the engine, log in /a rather long/path [with]/brackets.log ({seconds} s)")
        display.waiting("no worker is live")
    assert out.getvalue().splitlines() == [
        "loading the engine, log in /a rather long/path [with]/brackets.log (0 s)",
        "no worker is live",
    ]


def test_a_log_gets_the_first_and_the_last_figures() -> None:
    display, out = said()
    with display:
        for answered in range(1, 101):
            display.progress(Progress(rows=100, answered=answered, failed=3, audio_seconds=answered * 10.0))
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("1 of 100 rows, 3 failed, ")
    assert lines[-1].startswith("100 of 100 rows, 3 failed, ")
    assert len(lines) < 10, "not one a row"


def test_the_time_left_counts_what_was_answered_since(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a job that is resumed at nine tenths
    clock = iter([100.0, 120.0])
    monkeypatch.setattr("producer.display.time", SimpleNamespace(monotonic=lambda: next(clock)))
    display, out = said()
    display.progress(Progress(rows=1000, answered=900, audio_seconds=9000.0))

    # When ten rows take twenty seconds
    display.progress(Progress(rows=1000, answered=910, audio_seconds=9100.0))

    first, second = out.getvalue().splitlines()
    assert first == "900 of 1000 rows, 0 failed, 0.0 audio s/s"
    assert second == "910 of 1000 rows, 0 failed, 5.0 audio s/s, about 180 s left"


def test_a_terminal_gets_a_bar() -> None:
    display, out = said(terminal=True, width=120)
    with display:
        display.waiting("starting [a] fleet")
        display.progress(Progress(rows=8, answered=6, failed=1, audio_seconds=3.0))
    shown = out.getvalue()
    assert "starting" in shown
    assert "6/8" in shown
    assert "1 failed" in shown


def test_a_quiet_console_leaves_the_program_s_own_words_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with Display(Console(quiet=True, force_terminal=True)) as display:
        display.progress(Progress(rows=8, answered=6))
        print("here")
        print("there", file=sys.stderr)
    assert capsys.readouterr() == ("here\n", "there\n")


def test_beside_a_bar_the_program_prints_where_it_always_does(capsys: pytest.CaptureFixture[str]) -> None:
    # Given a bar on stderr
    with Display(Console(stderr=True, force_terminal=True, width=120)) as display:
        display.progress(Progress(rows=8, answered=6))
        # When the program prints, and a log has a line
        print("here")
        print("there", file=sys.stderr)
    # Then the first is on stdout as it was printed, and the second is a line of its own above the bar
    out, shown = capsys.readouterr()
    assert out == "here\n"
    assert "\x1b[2Kthere\n" in shown
    assert "6/8" in shown.partition("there\n")[2]
    assert sys.stderr.write("") == 0


def test_a_bar_in_a_file_of_its_own_leaves_both_alone(capsys: pytest.CaptureFixture[str]) -> None:
    display, out = said(terminal=True, width=120)
    with display:
        print("here")
        print("there", file=sys.stderr)
    assert capsys.readouterr() == ("here\n", "there\n")
    assert "here" not in out.getvalue()


@given(st.dictionaries(st.sampled_from(["no_audio", "not_audio", "[x]"]), st.integers(1, 9)), st.integers(0, 10**7))
def test_the_summary_is_one_line_with_every_reason(reasons: dict[str, int], rows: int) -> None:
    display, out = said()
    display.summary(Progress(rows=rows, failed=1, audio_seconds=2.0, reasons=Counter(reasons)))
    (line,) = out.getvalue().splitlines()
    assert line.startswith(f"{rows} rows, 1 failed, 2.0 s of audio")
    for reason, count in reasons.items():
        assert f"{count} x {reason}" in line


def table_of(path: Path, width: int = 120, **options: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(result_table(path, "audio", "transcription", **options))
    return out.getvalue()


def test_the_table_shows_texts_languages_and_failures_as_they_are(tmp_path: Path) -> None:
    rows = [
        {"audio": "a.wav", "transcription": "[bold]no markup[/] [/]", "transcription_details": {"language": "en"}},
        {"audio": ["b.wav"], "transcription": "天气", "transcription_details": {"language": None}},
        {
            "audio": ["c.wav", "d.wav"],
            "transcription": ["see", None],
            "transcription_error": [None, {"type": "not_audio", "message": "is text"}],
            "transcription_details": [{"language": "de"}, None],
        },
        {
            "audio": ["stereo.wav", "e.wav"],
            "transcription": [["left words", None], "plain"],
            "transcription_error": [[None, {"type": "no_permission", "message": "closed"}], None],
            "transcription_details": [[{"language": "fi"}, None], {"language": "sv"}],
        },
        {
            "audio": None,
            "transcription": None,
            "transcription_error": {"type": "no_audio", "message": "names no audio"},
        },
    ]
    shown = table_of(write_rows(tmp_path / "x_step1.jsonl", rows))
    for text in ("[bold]no markup[/] [/]", "天气", "see", "[not_audio] is text", "[no_audio] names no audio", "d.wav"):
        assert text in shown
    for text in ("left words", "plain", "[no_permission] closed", " fi ", " sv "):
        assert text in shown


def test_the_table_shows_names_that_no_terminal_takes_and_numbers_of_any_length(tmp_path: Path) -> None:
    row = f'{{"audio": "caf\\udce9.mp3", "transcription": "said", "id": {"9" * 5000}}}\n'
    (tmp_path / "x_step1.jsonl").write_text(row)
    shown = table_of(tmp_path / "x_step1.jsonl")
    assert "caf\\udce9.mp3" in shown
    shown.encode()


def test_a_long_table_ends_with_where_the_rest_is(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "x_step1.jsonl", [{"audio": f"{row}.wav", "transcription": ""} for row in range(9)])
    shown = table_of(path, most_rows=3, width=300)
    assert "2.wav" in shown
    assert "3.wav" not in shown
    assert str(path) in shown


@pytest.mark.parametrize(("task", "shown"), [("transcribe", "transcribing"), ("translate", "translating")])
def test_the_bar_says_what_is_done(task: Task, shown: str) -> None:
    display, out = said(terminal=True, width=120)
    with display:
        display.begin(task)
        display.progress(Progress(rows=8, answered=6))
    assert shown in out.getvalue()


def test_the_table_takes_white_space_as_json_does(tmp_path: Path) -> None:
    path = tmp_path / "step.jsonl"
    path.write_bytes(b'{"audio": "a.wav",\r "transcription": "one"}\n{"audio": "b.wav", "transcription": "two"}\r\n')
    out = io.StringIO()
    Console(file=out, width=80).print(result_table(path, "audio", "transcription"))
    assert "one" in out.getvalue()
    assert "two" in out.getvalue()

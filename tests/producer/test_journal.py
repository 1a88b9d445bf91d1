"""The journal: what is in it survives crashes, copies and full disks, and counts once."""

import json
import random
import resource
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producer.errors import FleetError
from producer.journal import Journal
from workers.messages import ChannelTranscripts, Failure, Item, RowResult, Transcript

OK = Transcript(text="größer", duration=1.5)
NO_FILE = Failure(type="file_not_found", message="a.wav")
NO_AUDIO = Failure(type="not_audio", message="b.txt")


def answer(row: int, *items: Item) -> bytes:
    return RowResult(row=row, items=list(items or (OK,))).model_dump_json().encode()


def write_journal(path: Path, rows: int, results: list[bytes]) -> None:
    journal = Journal.open(path, rows)
    journal.append(results)
    journal.close()


def test_answers_are_kept_as_received(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    long = answer(2, Transcript(text="x" * 20_000))
    journal = Journal.open(path, 4)
    assert journal.append([answer(3), long]) == 2
    assert journal.append([answer(0, NO_FILE)]) == 1
    assert path.read_bytes() == b"".join(line + b"\n" for line in (answer(3), long, answer(0, NO_FILE)))
    assert path.stat().st_mode & 0o777 == 0o600
    assert [journal.line(row) for row in (0, 2, 3)] == [answer(0, NO_FILE), long, answer(3)]
    assert list(journal.unanswered()) == [1]
    assert 1 not in journal
    assert 3 in journal
    with pytest.raises(FleetError, match="row 1 has no answer"):
        journal.line(1)
    journal.close()
    journal.close()


def test_counters_survive_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal.open(path, 5)
    journal.append([answer(0), answer(1, OK, NO_FILE), answer(2, NO_FILE, NO_AUDIO)])
    journal.append([answer(4, NO_AUDIO), answer(0, NO_AUDIO)])
    again = Journal.open(path, 5)
    for each in (journal, again):
        assert (each.answered, each.failed, each.audio_seconds) == (4, 2, 3.0)
        assert each.reasons == {"file_not_found": 2, "not_audio": 2}
        assert list(each.unanswered()) == [3]
        each.close()


def test_channels_count_as_parts_of_their_recording(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    half = ChannelTranscripts(channels=[OK, NO_FILE])
    none = ChannelTranscripts(channels=[NO_FILE, NO_AUDIO])
    whole = ChannelTranscripts(channels=[OK, Transcript(text="", duration=1.5)])
    rows = [answer(0, half), answer(1, none), answer(2, none, NO_AUDIO), answer(3, none, OK), answer(4, whole, whole)]
    write_journal(path, 5, rows)
    journal = Journal.open(path, 5)
    assert (journal.answered, journal.failed) == (5, 2), "failed: nothing of the row has a text"
    assert journal.audio_seconds == 1.5 * (1 + 1 + 2), "a recording has its length once"
    assert journal.reasons == {"file_not_found": 4, "not_audio": 4}
    assert journal.items(0) == [half.model_dump()]
    journal.close()


def test_the_first_answer_counts_within_a_batch_across_batches_and_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(answer(0) + b"\n" + answer(0, NO_FILE) + b"\n")
    journal = Journal.open(path, 3)
    assert journal.append([answer(1), answer(1, NO_FILE), answer(0, NO_FILE)]) == 1
    assert journal.append([answer(1, NO_FILE)]) == 0
    assert journal.line(0) == answer(0)
    assert journal.line(1) == answer(1)
    assert journal.failed == 0
    journal.close()


@pytest.mark.parametrize(
    "raw",
    [
        answer(3),
        b'{"row": -1, "items": [{"text": ""}]}',
        b'{"row": true, "items": [{"text": ""}]}',
        b'{"row": 1.0, "items": [{"text": ""}]}',
        b'{"row": 1, "items": []}',
        b'{"row": 1, "items": [{}]}',
        b'{"row": 1, "items": [{"text": null}]}',
        b'{"row": 1, "items": [{"type": "x"}]}',
        b'{"row": 1, "items": [{"text": "", "segments": 5}]}',
        b'{"row": 1, "items": [{"text": "", "segments": [{"start": 0}]}]}',
        b'{"row": 1, "items": [{"channels": []}]}',
        b'{"row": 1, "items": [{"channels": 2}]}',
        b'{"row": 1, "items": [{"channels": [{"text": ""}, {}]}]}',
        b'{"row": 1, "items": [{"channels": [{"channels": [{"text": ""}]}]}]}',
        b'{"row": 1',
        b"[]",
        b"",
        b"\xff",
        b"[" * 100_000,
        b'{"row": ' + b"9" * 5000 + b', "items": [{"text": ""}]}',
    ],
)
def test_what_is_no_answer_is_left_out_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture, raw: bytes) -> None:
    journal = Journal.open(tmp_path / "journal.jsonl", 3)
    assert journal.append([raw, answer(1)]) == 1
    assert "an answer is ignored" in caplog.text
    assert (tmp_path / "journal.jsonl").read_bytes() == answer(1) + b"\n"
    journal.close()


def test_indented_answers_and_odd_durations(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    indented = json.dumps({"row": 0, "items": [{"text": "a", "extra": 1}]}, indent=2).encode()
    odd = [
        b'{"row": %d, "items": [{"text": "", "duration": %s}]}' % (row, text)
        for row, text in enumerate([b"NaN", b"1" * 400, b'"5"', b"-3", b"1e999"], start=1)
    ]
    write_journal(path, 6, [indented + b"\n", *odd])
    journal = Journal.open(path, 6)
    assert journal.audio_seconds == 0.0
    assert journal.items(0) == [{"text": "a", "extra": 1}]
    assert path.read_bytes().count(b"\n") == 6
    journal.close()


@settings(max_examples=8)  # each example opens a journal once for every byte of it
@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from([OK, NO_FILE])), min_size=1, max_size=4))
def test_a_journal_torn_at_any_byte_keeps_every_whole_line(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, Transcript | Failure]]
) -> None:
    path = tmp_path_factory.mktemp("torn") / "journal.jsonl"
    lines = [answer(row, item) + b"\n" for row, item in rows]
    whole = b"".join(lines)
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        kept = whole[:size].count(b"\n")
        answered = {row for row, _ in rows[:kept]}
        seen = Journal.read_answered(path, 6)
        assert path.stat().st_size == size
        assert {row for row in range(6) if row in seen} == answered
        assert len(seen) == len(answered)
        journal = Journal.open(path, 6)
        assert path.read_bytes() == b"".join(lines[:kept])
        assert set(range(6)) - set(journal.unanswered()) == answered
        # What comes after a crash starts on a line of its own.
        journal.append([answer(row) for row in range(6)])
        assert all(json.loads(journal.line(row))["row"] == row for row in range(6))
        journal.close()
        again = Journal.open(path, 6)
        assert again.answered == 6
        again.close()


@pytest.mark.parametrize("last", [b"\0" * 4096, b"\0" * 40 + b'"}]}\n', b"\xff\n"])
def test_a_last_line_spoiled_by_a_power_cut_is_removed(tmp_path: Path, last: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(answer(1) + b"\n" + last)
    journal = Journal.open(path, 2)
    assert list(journal.unanswered()) == [0]
    assert path.read_bytes() == answer(1) + b"\n"
    journal.close()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{oops", r"not valid JSON \(.*\): delete this line"),
        (b"\xff", r"not valid UTF-8 \(.*\): delete this line"),
        (answer(9), "row 9 is not one of the job's 3: start over with --force"),
    ],
)
def test_damage_before_the_end_is_refused_and_touches_nothing(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "journal.jsonl"
    data = answer(0) + b"\n" + line + b"\n" + answer(1) + b"\n"
    path.write_bytes(data)
    for read in (Journal.open, Journal.read_answered):
        with pytest.raises(FleetError, match=rf"journal\.jsonl:2: {message}"):
            read(path, 3)
    assert path.read_bytes() == data


def test_a_full_disk_takes_nothing_and_a_later_append_works(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    long = answer(1, Transcript(text="x" * 50_000))
    journal = Journal.open(path, 3)
    journal.append([answer(0)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A limit on file sizes takes a part of the write and refuses the rest, as a disk that gets full does.
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, hard))
    try:
        with pytest.raises(FleetError, match=r"journal\.jsonl: cannot be written .*free some space"):
            journal.append([answer(2), long])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == answer(0) + b"\n"
    assert (journal.answered, list(journal.unanswered())) == (1, [1, 2])
    assert journal.append([answer(2), long]) == 2
    assert path.read_bytes() == b"".join(line + b"\n" for line in (answer(0), answer(2), long))
    assert journal.line(1) == long
    journal.close()


def test_a_second_owner_is_found_out(tmp_path: Path) -> None:
    """On a file system whose locks do not work: what one has written is not the other's to take back."""
    path = tmp_path / "journal.jsonl"
    one, other = Journal.open(path, 3), Journal.open(path, 3)
    one.append([answer(0)])
    with pytest.raises(FleetError, match="changed by another program: if that is a second collector"):
        other.append([answer(1)])
    assert path.read_bytes() == answer(0) + b"\n"
    assert (other.answered, one.append([answer(2)])) == (0, 1)
    for journal in (one, other):
        journal.close()


@pytest.mark.parametrize("foreign", [answer(1) + b"\n", b"x" * 200 + b"\n"])
def test_the_answer_of_a_row_is_that_rows(tmp_path: Path, foreign: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal.open(path, 2)
    journal.append([answer(0)])
    path.write_bytes(foreign)
    with pytest.raises(FleetError, match=r"journal\.jsonl: changed by another program"):
        journal.items(0)
    journal.close()


def test_a_reader_forgets_what_was_taken_back(tmp_path: Path) -> None:
    """A write that failed was on its way for a moment; what comes later may come in another order."""
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b"".join(answer(row) + b"\n" for row in (0, 1, 2)))
    seen = Journal.read_answered(path, 9)
    assert len(seen) == 3
    path.write_bytes(b"".join(answer(row) + b"\n" for row in (0, 7)))
    seen = Journal.read_answered(path, 9, seen)
    assert [row for row in range(9) if row in seen] == [0, 7]
    assert len(seen) == 2


def test_no_journal_yet_and_no_rows(tmp_path: Path) -> None:
    assert len(Journal.read_answered(tmp_path / "absent.jsonl", 9)) == 0
    journal = Journal.open(tmp_path / "journal.jsonl", 0)
    assert list(journal.unanswered()) == []
    assert journal.append([answer(0)]) == 0
    journal.close()


def test_ten_thousand_rows_in_any_order(tmp_path: Path) -> None:
    rows = list(range(10_000))
    random.Random(1).shuffle(rows)
    journal = Journal.open(tmp_path / "journal.jsonl", len(rows))
    for start in range(0, len(rows), 500):
        journal.append([answer(row) for row in rows[start : start + 500]])
    assert all(journal.line(row) == answer(row) for row in range(0, len(rows), 7))
    assert journal.answered == len(rows)
    journal.close()


def test_reused_answers_are_counted_and_their_audio_is_not(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    reused = {"row": 1, "items": [{"text": "b", "duration": 5.0}], "reused": True}
    write_journal(path, 3, [answer(0, Transcript(text="a", duration=2.0)), json.dumps(reused).encode()])
    journal = Journal.open(path, 3)
    assert (journal.answered, journal.reused, journal.audio_seconds) == (2, 1, 2.0)
    journal.close()


def test_a_reader_sees_of_each_row_the_answer_that_counts(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    assert list(Journal.read_answers(path, 2)) == []
    lines = [answer(1, Transcript(text="first")), answer(0, Transcript(text="b")), answer(1, Transcript(text="late"))]
    path.write_bytes(b"".join(line + b"\n" for line in lines) + b'{"row"')
    assert [(one.row, one.items[0]["text"]) for one in Journal.read_answers(path, 2)] == [(1, "first"), (0, "b")]

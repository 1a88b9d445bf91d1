"""The merge: every row with its own answer, the same bytes whatever came when, or no file at all."""

import hashlib
import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producer.columns import Columns
from producer.errors import FleetError
from producer.inputs import read_rows
from producer.journal import Journal
from producer.merge import Kept, picked, write_step
from producer.rows import ScanRules, scan
from workers.messages import ChannelTranscripts, Failure, Item, RowResult, Transcript

LINES = [
    b'{"audio": "a.wav", "n": 123456789012345678901234567890, "f": 1.10}',
    '{"id":"é中","audio":["b.wav",null]}'.encode(),
    b'{"audio": ["c.wav"], "s": "\\ud83d\\ude00"}',
    b'{"audio": null}',
    b'{"audio": ["d.wav", "e.wav"], "transcription": "old", "transcription_segments": []}',
    b'{"audio": "stereo.wav"}',
    b'{"audio": ["stereo.wav", "f.wav"]}',
]
CALL = ChannelTranscripts(channels=[Transcript(text="links"), Failure(type="not_audio", message="x")])
ITEMS: list[list[Item]] = [
    [Transcript(text="eins")],
    [Transcript(text="zwei"), Failure(type="no_audio", message="nothing")],
    [Transcript(text="中")],
    [Failure(type="no_audio", message="nothing")],
    [Failure(type="quarantined", message="took its worker down twice")],
    [CALL],
    [CALL, Transcript(text="sechs")],
]
EXPECTED = [
    LINES[0][:-1] + b', "transcription": "eins"}',
    LINES[1][:-1]
    + b', "transcription": ["zwei", null], "transcription_error": [null, {"type": "no_audio", "message": "nothing"}]}',
    LINES[2][:-1] + ', "transcription": "中"}'.encode(),
    LINES[3][:-1] + b', "transcription": null, "transcription_error": {"type": "no_audio", "message": "nothing"}}',
    b'{"audio": ["d.wav", "e.wav"], "transcription": [null, null], "transcription_error": ['
    + b", ".join([b'{"type": "quarantined", "message": "took its worker down twice"}'] * 2)
    + b"]}",
    LINES[5][:-1]
    + b', "transcription": ["links", null], "transcription_error": [null, {"type": "not_audio", "message": "x"}]}',
    LINES[6][:-1]
    + b', "transcription": [["links", null], "sechs"], "transcription_error": '
    + b'[[null, {"type": "not_audio", "message": "x"}], null]}',
]
WANTED = b"".join(line + b"\n" for line in EXPECTED)


def answer(row: int) -> bytes:
    return RowResult(row=row, items=ITEMS[row]).model_dump_json().encode()


def merge(folder: Path, answers: list[list[bytes]], lines: list[bytes] = LINES, rows: int = len(LINES)) -> bytes:
    folder.mkdir(exist_ok=True)
    journal = Journal.open(folder / "journal.jsonl", rows)
    try:
        for batch in answers:
            journal.append(batch)
        columns = Columns()
        assert write_step(folder / "out.jsonl", lines, journal, columns, "audio", columns.family()) == rows
    finally:
        journal.close()
    return (folder / "out.jsonl").read_bytes()


@settings(max_examples=50)
@given(st.permutations(range(len(LINES))), st.lists(st.integers(0, len(LINES) - 1), max_size=8), st.data())
def test_any_order_with_copies_gives_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], copies: list[int], data: st.DataObject
) -> None:
    sent = list(order)
    for row in copies:
        sent.insert(data.draw(st.integers(0, len(sent))), row)
    cut = data.draw(st.integers(0, len(sent)))
    batches = [[answer(row) for row in part] for part in (sent[:cut], sent[cut:])]
    assert merge(tmp_path_factory.mktemp("merge"), batches) == WANTED


def test_each_line_is_json_with_all_that_it_held(tmp_path: Path) -> None:
    out = merge(tmp_path, [[answer(row) for row in range(len(LINES))]])
    for before, after in zip(LINES[:4], out.split(b"\n"), strict=False):
        assert json.loads(before).items() <= json.loads(after).items()


@pytest.mark.parametrize("missing", range(len(LINES)))
def test_a_missing_answer_leaves_no_file(tmp_path: Path, missing: int) -> None:
    with pytest.raises(FleetError, match=f"row {missing} has no answer"):
        merge(tmp_path, [[answer(row) for row in range(len(LINES)) if row != missing]])
    assert [path.name for path in tmp_path.iterdir()] == ["journal.jsonl"]


def test_no_rows_give_an_empty_file(tmp_path: Path) -> None:
    assert merge(tmp_path, [], lines=[], rows=0) == b""


@pytest.mark.parametrize("lines", [LINES[:-1], [*LINES, LINES[0]]])
def test_an_input_that_grew_or_shrank_leaves_no_file(tmp_path: Path, lines: list[bytes]) -> None:
    with pytest.raises(FleetError, match="the input changed while the job ran"):
        merge(tmp_path, [[answer(row) for row in range(len(LINES))]], lines=lines)
    assert not (tmp_path / "out.jsonl").exists()


def test_an_input_with_other_content_leaves_no_file(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"audio": "a.wav"}\n')
    found = scan([source], ScanRules("audio"))
    journal = Journal.open(tmp_path / "journal.jsonl", 1)
    journal.append([answer(0)])
    out = tmp_path / "out.jsonl"
    assert write_step(out, read_rows([source]), journal, Columns(), "audio", sha256=found.sha256) == 1
    out.unlink()
    source.write_bytes(b'{"audio": "b.wav"}\n')
    with pytest.raises(FleetError, match="the input changed"):
        write_step(out, read_rows([source]), journal, Columns(), "audio", sha256=found.sha256)
    assert not out.exists()
    journal.close()


def test_answers_that_do_not_fit_their_row_are_refused(tmp_path: Path) -> None:
    batch = [answer(row) for row in range(len(LINES)) if row != 1]
    batch.append(RowResult(row=1, items=[Transcript(text="one for two")]).model_dump_json().encode())
    with pytest.raises(FleetError, match="row 1 has 1 answers for 2 recordings"):
        merge(tmp_path, [batch])


# --- some rows done again --------------------------------------------------------------------------------------------


def merge_again(folder: Path, step: bytes, retried: list[int], sha256: str | None = None) -> bytes:
    """The step file ``step`` with the rows ``retried`` done again; their answers are those of ITEMS."""
    path = folder / "out.jsonl"
    path.write_bytes(step)
    kept = [line for row, line in enumerate(step.splitlines()) if row not in retried]
    digest = hashlib.sha256(b"".join(line + b"\n" for line in kept)).hexdigest()
    journal = Journal.open(folder / "again.jsonl", len(retried))
    try:
        journal.append(RowResult(row=n, items=ITEMS[row]).model_dump_json().encode() for n, row in enumerate(retried))
        columns = Columns()
        standing = Kept(read_rows([path]), retried, sha256 or digest)
        write_step(path, LINES, journal, columns, "audio", columns.family(), kept=standing)
    finally:
        journal.close()
        journal.path.unlink()
    return path.read_bytes()


@settings(max_examples=50)
@given(st.sets(st.integers(0, len(LINES) - 1)))
def test_rows_done_again_leave_all_other_lines_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, retried: set[int]
) -> None:
    folder = tmp_path_factory.mktemp("again")
    # Given: a step in which other things were said of these rows.
    old = [b'{"kept": true, "not": "touched"  ,"by":1e3}' for _ in LINES]
    # When: they are done again, and once more, as after a crash before the job was told.
    once = merge_again(folder, b"".join(line + b"\n" for line in old), sorted(retried))
    twice = merge_again(folder, once, sorted(retried))
    # Then: they are what a whole run writes, and the others are what they were.
    wanted = [EXPECTED[row] if row in retried else old[row] for row in range(len(LINES))]
    assert once == twice == b"".join(line + b"\n" for line in wanted)


@pytest.mark.parametrize(
    "step",
    [WANTED.replace(b"sechs", b"sieben"), WANTED.partition(b"\n")[2], WANTED + b"{}\n", b""],
    ids=["another line", "one less", "one more", "empty"],
)
def test_a_step_that_was_changed_meanwhile_is_left_alone(tmp_path: Path, step: bytes) -> None:
    digest = hashlib.sha256(b"".join(line + b"\n" for line in EXPECTED[1:])).hexdigest()
    with pytest.raises(FleetError, match=r"out\.jsonl: changed while"):
        merge_again(tmp_path, step, [0], digest)
    assert (tmp_path / "out.jsonl").read_bytes() == step


def test_lines_are_picked_by_their_number() -> None:
    assert list(picked(LINES, [0, 2, 6])) == [LINES[0], LINES[2], LINES[6]]
    assert list(picked(LINES, [])) == []


def test_a_row_takes_eight_bytes_until_it_is_written(tmp_path: Path) -> None:
    rows = 60_000
    lines = tmp_path / "in.jsonl"
    lines.write_bytes(b"".join(b'{"audio": "%d.wav"}\n' % row for row in range(rows)))
    # Given: a journal of many answers, in any order.
    text = "ten words or so that somebody said in a recording " * 2
    order = range(rows - 1, -1, -1)
    (tmp_path / "journal.jsonl").write_bytes(
        b"".join(b'{"row":%d,"items":[{"text":"%s"}]}\n' % (row, text.encode()) for row in order)
    )
    # When: it is read and merged.
    tracemalloc.start()
    try:
        journal = Journal.open(tmp_path / "journal.jsonl", rows)
        assert write_step(tmp_path / "out.jsonl", read_rows([lines]), journal, Columns(), "audio") == rows
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    journal.close()
    # Then: beside what any merge needs it took 8 bytes a row (an int in a list takes 40).
    assert peak_bytes <= 8 * rows + 2**21


@pytest.mark.parametrize("drop", [(), ("transcription", "transcription_error")])
@pytest.mark.parametrize(
    "line", [b'{"audio": "b.wa', b"\xff\xfe{", b"audio,text", b"{", b"", b'["a.wav"]', b'{"audio": ' + b"[" * 5000]
)
def test_an_input_that_is_no_jsonl_any_more_leaves_no_file(tmp_path: Path, line: bytes, drop: tuple[str, ...]) -> None:
    """Half written, or a table: what comes of it is found before its hash is known."""
    journal = Journal.open(tmp_path / "journal.jsonl", 1)
    journal.append([answer(0)])
    out = tmp_path / "out.jsonl"
    with pytest.raises(FleetError, match="the input changed"):
        write_step(out, [line], journal, Columns(), "audio", drop, sha256="0")
    assert not out.exists()
    journal.close()

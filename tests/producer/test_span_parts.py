"""Parts of rows until their rows are whole: on the disk, in any order, doubled, and over a crash of the collector."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from job_files import answer, deliver, failed_answer, finished, new_job, read_rows

from fleet import Fleet
from producer.collector import Collector
from producer.in_flight import rows_on_their_way, withdraw
from producer.retry import begin_retry
from producer.spans import PartStore
from workers import keys
from workers.app import PRIORITY_BULK, create_app
from workers.messages import Failure, Item, Part, PartResult, RowResult, Span, Transcript, task_id
from workers.settings import load_settings
from workers.singles import single_id

ROWS = 5
CUTS = (600.0, 1200.0, 1800.0)
SPANS = tuple(Span(recording=0, start_s=start, end_s=end) for start, end in zip(CUTS, (*CUTS[1:], None), strict=True))


def first(row: int = 3, awaits: Sequence[Span] = SPANS, items: Sequence[Item] | None = None) -> bytes:
    """The part that begins a row's answer."""
    made = list(items or [Transcript(text="first", duration=600.0)])
    return PartResult(row=row, items=made, part=Part(awaits=tuple(awaits))).model_dump_json().encode()


def later(span: Span, row: int = 3, item: Item | None = None) -> bytes:
    made = item or Transcript(text=f"from {span.start_s:.0f}", duration=600.0)
    return PartResult(row=row, items=[made], part=Part(span=span)).model_dump_json().encode()


def all_parts(row: int = 3) -> list[bytes]:
    return [first(row), *(later(span, row) for span in SPANS)]


def only(answers: list[bytes]) -> RowResult:
    (one,) = answers
    return RowResult.model_validate_json(one)


WHOLE = "first from 600 from 1200 from 1800"


@settings(max_examples=40)  # parts go to the disk
@given(st.permutations(range(4)), st.lists(st.integers(0, 3), max_size=4), st.integers(1, 8))
def test_a_row_is_whole_when_its_last_part_comes(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], again: list[int], batch: int
) -> None:
    """In whatever order parts come, however often, and in whatever portions."""
    path = tmp_path_factory.mktemp("parts") / "parts.jsonl"
    answered: set[int] = set()
    store = PartStore(path, ROWS, answered)
    parts = all_parts()
    coming = [parts[number] for number in (*again, *order, *again)]
    found: list[bytes] = []
    for start in range(0, len(coming), batch):
        whole = store.take(coming[start : start + batch])
        found += whole
        answered.update(RowResult.model_validate_json(one).row for one in whole)
    result = only(found)
    assert result.row == 3
    assert [item.text for item in result.items if isinstance(item, Transcript)] == [WHOLE]
    assert result.items[0].duration == 2400.0  # type: ignore[union-attr]


def test_whole_answers_go_through_as_they_are_and_cost_no_file(tmp_path: Path) -> None:
    store = PartStore(tmp_path / "parts.jsonl", ROWS, ())
    quoting = answer(1, '{"part": "part":')
    assert store.take([answer(0), quoting, b"{broken"]) == [answer(0), quoting, b"{broken"]
    assert not list(tmp_path.iterdir())


def test_parts_are_kept_over_a_crash(tmp_path: Path) -> None:
    # Given three of a row's four parts, a fourth that the crash cut off, and a row that was whole
    path = tmp_path / "parts.jsonl"
    store = PartStore(path, ROWS, ())
    assert store.take(all_parts()[:3]) == []
    assert len(store.take(all_parts(row=4))) == 1
    with path.open("ab") as handle:
        handle.write(all_parts()[3][:-10])
    # When the file is opened again: that row's answer may not have reached the journal
    again = PartStore(path, ROWS, ())
    # Then
    assert only(again.standing()).row == 4
    answered = PartStore(path, ROWS, {4})
    assert answered.standing() == []
    assert only(answered.take([all_parts()[3]])).row == 3
    assert len(path.read_bytes().splitlines()) == 8


def test_rows_that_are_answered_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("producer.spans.LEAST_SWEEP_ROWS", 4)
    answered: set[int] = set()
    store = PartStore(tmp_path / "parts.jsonl", 200, answered)
    for row in range(200):
        assert only(store.take(all_parts(row=row))).row == row
        # Until the journal has it, it is given again
        assert only(store.take(all_parts(row=row)[:1])).row == row
        answered.add(row)
        assert len(store._rows) <= 4


def test_the_first_failure_is_that_of_the_row(tmp_path: Path) -> None:
    store = PartStore(tmp_path / "parts.jsonl", ROWS, ())
    late, early = Failure(type="quarantined", message="late"), Failure(type="not_audio", message="early")
    parts = [first(), later(SPANS[2], item=late), later(SPANS[1], item=early), later(SPANS[0])]
    assert only(store.take(parts)).items == [early]


def test_each_recording_of_a_row_gets_its_own_spans(tmp_path: Path) -> None:
    store = PartStore(tmp_path / "parts.jsonl", ROWS, ())
    other = Span(recording=2, start_s=60.0)
    items = [Transcript(text="one"), Failure(type="not_audio", message="two"), Transcript(text="three")]
    assert store.take([first(awaits=(SPANS[0], other), items=items), later(other)]) == []
    result = only(store.take([later(SPANS[0])]))
    assert [getattr(item, "text", "-") for item in result.items] == ["one from 600", "-", "three from 60"]


def test_a_row_that_is_cut_again_elsewhere_waits_for_its_own_spans(tmp_path: Path) -> None:
    """A row that is sent anew may meet a worker with another WHISPER_SPAN_SECONDS."""
    store = PartStore(tmp_path / "parts.jsonl", ROWS, ())
    half = Span(recording=0, start_s=1200.0)
    assert store.take([first(), later(SPANS[0]), later(SPANS[1]), first(awaits=(half,))]) == []
    assert [item.text for item in only(store.take([later(half)])).items] == ["first from 1200"]  # type: ignore[union-attr]


def test_parts_of_answered_rows_and_what_is_no_part_are_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "parts.jsonl"
    store = PartStore(path, ROWS, {3})
    two = PartResult(row=1, items=[Transcript(text="")] * 2, part=Part(span=SPANS[0])).model_dump_json().encode()
    assert store.take([*all_parts(3), *all_parts(ROWS), two, b'{"part":1}', b'{"part":']) == []
    assert not path.exists()
    assert caplog.text.count("is ignored") == len(all_parts()) + 3


def test_a_job_with_parts_ends_complete_and_leaves_none(fleet: Fleet, tmp_path: Path) -> None:
    # Given a collector that dies with some of the parts on the disk
    job = new_job(tmp_path, rows=2)
    with_parts = Collector(fleet.redis)
    owned = with_parts.add(job)
    assert owned is not None
    deliver(fleet.redis, job, answer(0), *all_parts(1)[1:])
    assert with_parts.poll() == 1
    assert fleet.redis.xlen(keys.results(job.id)) == 0
    with_parts.close()
    # When another one goes on
    after = Collector(fleet.redis)
    again = after.add(job)
    assert again is not None
    assert (again.journal.answered, after.poll(0.01)) == (1, 0)
    deliver(fleet.redis, job, first(1))
    assert after.poll() == 1
    # Then the step is written
    assert again.complete
    assert [row["transcription"] for row in read_rows(job.step.path)] == ["text 0", WHOLE]
    assert not job.step.parts_path.exists()
    after.close()


def test_a_row_whose_last_part_is_on_the_disk_needs_nothing_more(fleet: Fleet, tmp_path: Path) -> None:
    job = new_job(tmp_path, rows=1)
    job.step.parts_path.write_bytes(b"".join(part + b"\n" for part in all_parts(0)))
    collector = Collector(fleet.redis)
    owned = collector.add(job)
    assert owned is not None
    collector.poll(0.01)
    assert owned.complete
    assert json.loads(job.step.path.read_text())["transcription"] == WHOLE
    collector.close()


def test_parts_that_a_crash_has_left_answer_no_row_of_a_retry(fleet: Fleet, tmp_path: Path) -> None:
    # Given a step that is written, and the parts of its long recording, which a killed collector left there
    done = finished(new_job(tmp_path, rows=3), [answer(0, WHOLE), failed_answer(1), answer(2)])
    done.step.parts_path.write_bytes(b"".join(part + b"\n" for part in all_parts(0)))
    # When what failed is done again: the broken recording is row 0 now
    retry = begin_retry(done)
    assert retry is not None
    collector = Collector(fleet.redis)
    owned = collector.add(retry)
    # Then it has no answer yet
    assert owned is not None
    assert (owned.journal.rows, owned.journal.answered) == (1, 0)
    deliver(fleet.redis, retry, answer(0, "mended"))
    collector.poll()
    assert [row["transcription"] for row in read_rows(done.step.path)] == [WHOLE, "mended", "text 2"]
    collector.close()


def test_what_a_newer_worker_says_besides_is_passed_over(tmp_path: Path) -> None:
    def newer(part: bytes) -> bytes:
        fields = json.loads(part)
        return json.dumps({**fields, "new": 1, "items": [{**item, "new": []} for item in fields["items"]]}).encode()

    # json.dumps writes `"part": {`; workers write no space
    parts = [newer(part).replace(b'"part": ', b'"part":') for part in all_parts()]
    assert only(PartStore(tmp_path / "parts.jsonl", ROWS, set()).take(parts)).items[0].text == WHOLE  # type: ignore[union-attr]


def test_a_row_whose_spans_wait_is_on_its_way(fleet: Fleet, tmp_path: Path) -> None:
    """Nothing is sent again while a span of it is queued, or answered and not collected."""
    # Given a row of which one span is answered and another one queued
    job = new_job(tmp_path, rows=ROWS)
    deliver(fleet.redis, job, later(SPANS[0], row=2))
    id = single_id(job.id, 3, task_id(job.id, 3, "0a1b2c3d"), "p0-60000-120000")
    with create_app(load_settings(REDIS_URL=fleet.url)) as app:
        record = {"audio": "a.wav", "row": 3, "start_s": 600.0, "end_s": 1200.0, "span_of": 0}
        sent = {"args": [[record]], "kwargs": {"job": job.id}, "task_id": id, "queue": "transcribe"}
        app.send_task("whisper.transcribe", **sent, priority=PRIORITY_BULK, ignore_result=True)
    # Then both rows are on their way, and both messages are the job's own
    assert rows_on_their_way(fleet.redis, ["transcribe"], [job.id]) == {job.id: {2, 3}}
    assert withdraw(fleet.redis, ["transcribe"], job.id) == 1

"""Rows whose storage fails for a moment: tried again, counted, in flight all the while. A real worker and server."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.result import AsyncResult

from fleet import Fleet, wait_for
from producer.in_flight import rows_in_flight
from workers import keys, retries, runtime
from workers.errors import EngineLostError, TranscriptionError
from workers.messages import ChannelTranscripts, Failure, Item, Options, Record, RowResult, Transcript
from workers.settings import load_settings
from workers.singles import single_id

DEADLINE_SECONDS = 60.0


@dataclass
class Storage:
    """A web server that gives ``/n`` out from the n-th request on, and 503 until then."""

    body: bytes
    port: int = 0
    requests: Counter[str] = field(default_factory=Counter)
    #: Requests for ``/n?held`` from the n-th one on wait for it.
    go: threading.Event = field(default_factory=threading.Event)

    def url(self, good_from: int, name: str = "") -> str:
        return f"http://127.0.0.1:{self.port}/{good_from}?{name}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.requests[request.path] += 1
        path, _, name = request.path[1:].partition("?")
        if self.requests[request.path] < int(path):
            request.send_error(503)
            return
        if name == "held":
            self.go.wait(DEADLINE_SECONDS)
        request.send_response(200)
        request.send_header("Content-Length", str(len(self.body)))
        request.end_headers()
        request.wfile.write(self.body)


@pytest.fixture(scope="module")
def storage(samples: Path) -> Iterator[Storage]:
    made = Storage((samples / "en_train.flac").read_bytes())

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.answer(self)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        made.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield made
        made.go.set()
        server.shutdown()


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    settings = {
        "WHISPER_ENGINE": "standin",
        "WHISPER_RETRY_SECONDS": "0.001",
        "WHISPER_ALLOW_PRIVATE_ADDRESSES": "true",
    }
    with Fleet(tmp_path_factory.mktemp("retries"), settings) as fleet:
        fleet.start_worker()
        yield fleet


@pytest.fixture
def client(worker: Fleet) -> Iterator[Celery]:
    app = Celery(broker=worker.url, backend=worker.url)
    app.conf.broker_transport_options = {"priority_steps": [0, 5], "sep": ":", "queue_order_strategy": "round_robin"}
    yield app
    app.close()


def send(client: Celery, job: str, *audio: str | list[str], **options: Any) -> AsyncResult:
    records = [{"audio": one, "row": row} for row, one in enumerate(audio)]
    return client.send_task(
        "whisper.transcribe",
        [records],
        {"job": job, "options": options},
        queue="transcribe",
        task_id=f"{job}.0.part",
        priority=5,
    )


def answers(fleet: Fleet, job: str, rows: int) -> list[list[Item]]:
    entries: Any = wait_for(lambda: (found := fleet.redis.xrange(keys.results(job))) and len(found) == rows and found)
    wait_for(lambda: not fleet.redis.hlen(keys.UNACKED))
    assert fleet.redis.llen("transcribe:5") == 0
    found = [RowResult.model_validate_json(fields[keys.RESULT_FIELD]) for _, fields in entries]
    return [row.items for row in sorted(found, key=lambda row: row.row)]


def test_row_that_is_well_again_in_a_moment_stays_where_it_is(
    client: Celery, worker: Fleet, storage: Storage, samples: Path
) -> None:
    url, good = storage.url(3, "well"), str(samples / "en_train.flac")

    summary = send(client, "well", good, url, [good, url]).get(timeout=DEADLINE_SECONDS)

    assert summary == {"rows": 3, "failed": 0, "reasons": {}}
    one, two, three = answers(worker, "well", 3)
    assert [type(item) for item in one + two + three] == [Transcript] * 4
    assert [item.attempts for item in two if isinstance(item, Transcript)] == [1]


def test_failed_row_alone_goes_on_and_is_in_flight_all_the_while(
    client: Celery, worker: Fleet, storage: Storage, samples: Path
) -> None:
    # Given a chunk with a row that fails for longer, and then hangs
    url = storage.url(1 + 2 * retries.TRIES_IN_PLACE, "held")
    result = send(client, "longer", str(samples / "en_train.flac"), url, timestamps=True)
    assert result.get(timeout=DEADLINE_SECONDS) == {"rows": 2, "failed": 0, "reasons": {}, "retried": 1}
    path = url.removeprefix(f"http://127.0.0.1:{storage.port}")
    wait_for(lambda: storage.requests[path] == 1 + 2 * retries.TRIES_IN_PLACE)

    # Then it is known to be on its way, in a message of its own
    assert rows_in_flight(worker.redis, "transcribe", "longer") == {1}
    assert single_id("longer", 1, "longer.0.part", "a3") == "longer.1.part-a3"
    assert b"longer.1.part-a3" in b"".join(worker.redis.hvals(keys.UNACKED))

    # and when its storage is back, it gets its text, under the options of its chunk
    storage.go.set()
    one, two = answers(worker, "longer", 2)
    assert isinstance(two[0], Transcript)
    assert two[0].attempts == 3
    assert two[0].segments
    assert len(one) == 1


def test_row_gets_its_error_after_five_attempts(client: Celery, worker: Fleet, storage: Storage) -> None:
    url = storage.url(1000, "never")

    send(client, "never", url)

    ((failure,),) = answers(worker, "never", 1)
    assert isinstance(failure, Failure)
    assert failure.type == "fetch_failed"
    assert failure.message.endswith("HTTP 503 Service Unavailable (5 attempts of 3 tries)")
    assert storage.requests["/1000?never"] == 15
    assert worker.redis.keys("whisper:task:*a2*")
    assert {worker.redis.type(key) for key in worker.redis.keys("whisper:task:never*")} == {b"string"}


def test_what_will_not_change_is_tried_once(client: Celery, worker: Fleet, samples: Path) -> None:
    send(client, "missing", str(samples / "no_such.wav"))

    ((failure,),) = answers(worker, "missing", 1)

    assert isinstance(failure, Failure)
    assert failure.type == "file_not_found"
    assert "tries" not in failure.message


def test_call_is_tried_again_in_place_only(client: Celery, storage: Storage) -> None:
    again, never = ([{"audio": storage.url(count, "call")}] for count in (retries.TRIES_IN_PLACE, 999))
    answered, refused = (
        client.send_task("whisper.transcribe", [records], queue="transcribe") for records in (again, never)
    )

    (transcript,) = answered.get(timeout=DEADLINE_SECONDS)
    assert transcript["text"].startswith("stand-in ")
    with pytest.raises(TranscriptionError, match=r"fetch_failed: .* \(3 tries\)"):
        refused.get(timeout=DEADLINE_SECONDS)
    assert storage.requests["/999?call"] == retries.TRIES_IN_PLACE


# Without a worker.


def test_row_whose_decoder_ends_with_its_worker_goes_back_and_has_no_error(storage: Storage) -> None:
    # Given a worker's inside whose only decode process waits for a recording
    inside = runtime.build(load_settings(engine="standin", decode_processes=1, allow_private_addresses=True), threads=1)
    storage.go.clear()
    url = storage.url(1, "held")
    held = storage.requests["/1?held"]

    def end_it() -> None:
        wait_for(lambda: storage.requests["/1?held"] > held)
        inside.close()

    # When the worker ends
    ending = threading.Thread(target=end_it)
    ending.start()
    try:
        with pytest.raises(EngineLostError, match="the worker is ending"):
            retries.transcribe(
                inside.transcriber,
                [Record(audio=url, row=0)],
                "transcribe",
                Options(),
                lambda *_: pytest.fail("it was answered"),
                pause_seconds=0.0,
                stopping=inside.stopping,
            )
    finally:
        ending.join()
        storage.go.set()


def test_message_ids_stay_short_however_often_a_row_goes_on() -> None:
    assert single_id("j", 7, "j.5.ab", "s") == "j.7.ab-s"
    assert single_id("j", 7, "j.7.ab-s", "a2") == "j.7.ab-a2"
    assert single_id("j", 7, "j.7.ab-a2", "a3") == "j.7.ab-a3"
    assert single_id("a.b", 7, "3f2b-11", "a2") == "a.b.7.3f2b-11-a2"


def test_error_says_how_often_it_was_tried_in_whatever_failed() -> None:
    failed, other = Failure(type="fetch_failed", message="x", transient=True), Failure(type="not_audio", message="y")
    text = Transcript(text="z")
    channels = ChannelTranscripts(channels=[failed, text])

    told = Failure(type="fetch_failed", message="x (3 tries)")
    assert retries.given_up([failed, other, text, channels], "3 tries") == [
        told,
        other,
        text,
        ChannelTranscripts(channels=[told, text]),
    ]
    assert "transient" not in failed.model_dump_json()


class Failing:
    """A transcriber at whose place every record fails for a moment."""

    def __init__(self, type: str = "fetch_failed") -> None:
        self.tries = 0
        self.failure = Failure(type=type, message="x", transient=True)

    def transcribe(
        self, records: Any, task: str, options: Options, deliver: retries.Deliver, share: Any, *, urgent: bool
    ) -> None:
        for record in records:
            self.tries += 1
            deliver(record, [self.failure])


@pytest.mark.parametrize(("type", "tries"), [("fetch_failed", 3), ("engine_timeout", 1)])
def test_what_took_minutes_is_not_tried_again_in_place(type: str, tries: int) -> None:
    failing, record = Failing(type), Record(audio="a", row=0)

    failed = retries.transcribe(
        failing,  # type: ignore[arg-type]
        [record],
        "transcribe",
        Options(),
        lambda *_: pytest.fail("nothing was answered"),
        pause_seconds=0.0,
        stopping=threading.Event(),
    )

    assert failed == [(record, [failing.failure])]
    assert failing.tries == tries


def test_worker_that_ends_gives_its_records_back_untried() -> None:
    failing, stopping = Failing(), threading.Event()
    with contextlib.ExitStack() as stack:
        timer = threading.Timer(0.1, stopping.set)
        timer.start()
        stack.callback(timer.join)
        with pytest.raises(EngineLostError, match="the worker is ending"):
            retries.transcribe(
                failing,  # type: ignore[arg-type]
                [Record(audio="a", row=0)],
                "transcribe",
                Options(),
                lambda *_: None,
                pause_seconds=1000.0,
                stopping=stopping,
            )
    assert failing.tries == 1

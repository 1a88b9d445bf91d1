"""The two tasks: which failure means what, in this process and through a real worker and any Celery client."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import Reject
from celery.result import AsyncResult

from fleet import Fleet, wait_for
from scripted_engine import heard, scripted
from workers import keys, runtime, tasks
from workers.app import PRIORITY_BULK
from workers.errors import TranscriptionError
from workers.interface import WindowRequest, WindowResult
from workers.messages import Failure, RowResult, Transcript
from workers.redis_client import connect
from workers.runtime import Runtime
from workers.settings import Settings, load_settings
from workers.sink import ResultSink
from workers.standin import StandInEngine
from workers.transcriber import Transcriber

ANSWER_SECONDS = 120.0


class WatchedEngine(StandInEngine):
    """The stand-in, and an event that tells when it has its first window."""

    def __init__(self, settings: Settings) -> None:
        self.asked = threading.Event()
        super().__init__(settings)

    def submit(self, request: WindowRequest) -> Future[WindowResult]:
        future = super().submit(request)
        self.asked.set()
        return future


@pytest.fixture
def train(samples: Path) -> str:
    return str(samples / "en_train.flac")


@pytest.fixture
def missing(samples: Path) -> str:
    return str(samples / "no_such.wav")


@pytest.fixture
def installed(standin_runtime: Runtime) -> Iterator[Callable[[Runtime | None], Runtime]]:
    """Makes a runtime this process's own for the length of the test; none given: the shared one."""

    def install(own: Runtime | None = None) -> Runtime:
        runtime.install(own or standin_runtime)
        return runtime.current()

    install()
    yield install
    runtime.install(None)


@pytest.fixture
def client(standin_fleet: Fleet) -> Iterator[Celery]:
    """An application's own Celery app: it knows the broker and nothing of this package."""
    app = Celery("somebody", broker=standin_fleet.url, backend=standin_fleet.url)
    yield app
    app.close()


# In this process.


@pytest.mark.usefixtures("installed")
def test_call_returns_one_entry_a_record(train: str, missing: str) -> None:
    answers = tasks.transcribe(
        [{"audio": train}, {"audio": missing}, {"audio": [train]}, {"audio": [missing, train]}], {"timestamps": True}
    )

    assert json.loads(json.dumps(answers)) == answers, "answers travel as JSON"
    plain, failed, one_of_one, two = answers
    assert Transcript.model_validate(plain).segments
    assert failed["error"]["type"] == "file_not_found"
    assert one_of_one == [plain], "a list gives a list"
    assert two == [failed, plain]


@pytest.mark.usefixtures("installed")
def test_translation_is_a_task_of_its_own(train: str) -> None:
    (answer,) = tasks.translate([{"audio": train}], {"language": "German"})

    assert answer["language"] == "de"


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("as_list", [False, True])
def test_single_recording_that_fails_fails_its_task(missing: str, as_list: bool) -> None:
    with pytest.raises(TranscriptionError) as caught:
        tasks.transcribe([{"audio": [missing] if as_list else missing}])

    assert caught.value.type == "file_not_found"


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("records", "options", "names"),
    [
        ([], None, "records"),
        ([{"audio": "a", "lang": "de"}], None, "'lang'"),
        ([{"audio": "a"}], {"beam_size": 5}, "'beam_size'"),
    ],
)
def test_wrong_arguments_are_refused_by_name(records: Any, options: Any, names: str) -> None:
    with pytest.raises(TranscriptionError, match=rf"^bad_argument: .*{names}"):
        tasks.transcribe(records, options)


def test_rows_of_a_job_go_to_its_stream(
    installed: Callable[[Runtime | None], Runtime], standin_runtime: Runtime, fleet: Fleet, train: str, missing: str
) -> None:
    installed(replace(standin_runtime, sink=ResultSink(connect(fleet.url), threading.Event())))
    records = [{"audio": train, "row": 4}, {"audio": missing, "row": 5}, {"audio": [train, missing, missing], "row": 9}]

    summary = tasks.transcribe(records, {}, "job-7")

    # Rows, not recordings, are counted; reasons are those of the recordings.
    assert summary == {"rows": 3, "failed": 2, "reasons": {"file_not_found": 3}}
    rows = rows_of(fleet, "job-7")
    assert [row.row for row in rows] == [4, 5, 9]
    assert [[type(item) for item in row.items] for row in rows] == [
        [Transcript],
        [Failure],
        [Transcript, Failure, Failure],
    ]


def test_single_row_that_fails_is_an_answer_not_a_failed_task(
    installed: Callable[[Runtime | None], Runtime], standin_runtime: Runtime, fleet: Fleet, missing: str
) -> None:
    installed(replace(standin_runtime, sink=ResultSink(connect(fleet.url), threading.Event())))

    assert tasks.transcribe([{"audio": missing, "row": 0}], None, "job-8")["failed"] == 1
    assert len(rows_of(fleet, "job-8")) == 1


def test_windows_of_calls_are_urgent_and_those_of_jobs_are_not(
    installed: Callable[[Runtime | None], Runtime], standin_runtime: Runtime, fleet: Fleet, train: str
) -> None:
    engine = scripted(lambda request, _: heard())
    transcriber = Transcriber(engine, standin_runtime.pool, load_settings(), threads=1)
    sink = ResultSink(connect(fleet.url), threading.Event())
    installed(replace(standin_runtime, transcriber=transcriber, sink=sink))

    tasks.transcribe([{"audio": train}])
    tasks.transcribe([{"audio": train, "row": 0}], None, "job-11")
    # A call whose sender says that it is bulk is no job, but goes with them.
    message = SimpleNamespace(id=None, delivery_info={"priority": PRIORITY_BULK})
    tasks._run(SimpleNamespace(name="whisper.transcribe", request=message), "transcribe", [{"audio": train}], {}, None)  # type: ignore[arg-type]

    assert [request.urgent for request in engine.requests] == [True, False, False]


@pytest.mark.usefixtures("installed")
def test_record_of_a_job_needs_its_row(train: str) -> None:
    with pytest.raises(TranscriptionError, match="row number"):
        tasks.transcribe([{"audio": train, "row": 0}, {"audio": train}], None, "job-9")


@pytest.mark.parametrize("job", [None, "job-10"])
def test_lost_engine_puts_the_message_back(
    installed: Callable[[Runtime | None], Runtime], standin_runtime: Runtime, fleet: Fleet, train: str, job: str | None
) -> None:
    # Given a task that waits for an engine which would need minutes
    engine = WatchedEngine(load_settings(engine="standin", standin_step_ms=20, standin_steps=100_000))
    transcriber = Transcriber(engine, standin_runtime.pool, load_settings(), threads=1)
    sink = ResultSink(connect(fleet.url), threading.Event())
    installed(Runtime(engine, standin_runtime.pool, transcriber, sink, standin_runtime.deliveries))
    outcome: list[BaseException] = []
    thread = threading.Thread(target=lambda: outcome.append(raised(train, job)))
    thread.start()
    try:
        assert engine.asked.wait(ANSWER_SECONDS)
    finally:
        # When the engine is lost
        engine.close()
        thread.join(ANSWER_SECONDS)

    # Then the message goes back to the queue, and no row has an answer
    (error,) = outcome
    assert isinstance(error, Reject)
    assert error.requeue
    assert job is None or rows_of(fleet, job) == []


def raised(audio: str, job: str | None) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        tasks.transcribe([{"audio": audio, "row": 0}], None, job)
    return caught.value


def rows_of(fleet: Fleet, job: str) -> list[RowResult]:
    entries = fleet.redis.xrange(keys.results(job))
    return [RowResult.model_validate_json(fields[keys.RESULT_FIELD]) for _, fields in entries]


# Through a real worker.


def test_any_celery_app_gets_transcripts(client: Celery, train: str, missing: str) -> None:
    result = client.send_task("whisper.transcribe", [[{"audio": train}, {"audio": missing}]], queue="transcribe")

    transcript, failed = result.get(timeout=ANSWER_SECONDS)

    assert transcript["text"].startswith("stand-in ")
    assert failed["error"]["type"] == "file_not_found"
    result.forget()


def test_failed_single_is_a_failed_task(client: Celery, standin_fleet: Fleet, missing: str) -> None:
    result = client.send_task("whisper.transcribe", [[{"audio": missing}]], queue="transcribe")

    with pytest.raises(TranscriptionError) as caught:
        result.get(timeout=ANSWER_SECONDS)

    assert (caught.value.type, result.state) == ("file_not_found", "FAILURE")
    assert "no_such.wav" in caught.value.message
    # It is the caller's error, not the worker's: one line in its log
    wait_for(lambda: f"{result.id}] raised expected" in standin_fleet.log_path().read_text())
    assert "Traceback" not in standin_fleet.log_path().read_text()
    result.forget()


def test_unknown_field_is_refused_by_name(client: Celery, train: str) -> None:
    result = client.send_task("whisper.translate", [[{"audio": train, "speaker": "x"}]], queue="translate")

    with pytest.raises(TranscriptionError, match="unknown field 'speaker'"):
        result.get(timeout=ANSWER_SECONDS)
    result.forget()


PLAIN_CLIENT = """
import sys
from celery import Celery
url, good, missing = sys.argv[1:]
app = Celery(broker=url, backend=url)
(answer,) = app.send_task("whisper.transcribe", [[{"audio": good}]], queue="transcribe").get(timeout=120)
print(answer["text"])
try:
    app.send_task("whisper.transcribe", [[{"audio": missing}]], queue="transcribe").get(timeout=120)
except Exception as error:
    print(type(error).__name__, error.args[0])
print([name for name in sys.modules if name.split(".")[0] in ("workers", "producer")])
"""


def test_client_without_this_package(standin_fleet: Fleet, train: str, missing: str) -> None:
    """What an application sees that has Celery and nothing of ours."""
    done = subprocess.run(
        [sys.executable, "-c", PLAIN_CLIENT, standin_fleet.url, train, missing],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    text, error, ours = done.stdout.splitlines()
    assert text.startswith("stand-in ")
    assert error == "TranscriptionError file_not_found"
    assert ours == "[]"


def test_bulk_message_leaves_rows_and_no_result(client: Celery, standin_fleet: Fleet, train: str) -> None:
    result: AsyncResult = client.send_task(
        "whisper.transcribe",
        [[{"audio": train, "row": 0}]],
        {"job": "tasks-bulk"},
        queue="transcribe",
        ignore_result=True,
    )
    redis = standin_fleet.redis
    try:
        wait_for(lambda: redis.xlen(keys.results("tasks-bulk")) and not redis.hlen(keys.UNACKED))
        assert [row.row for row in rows_of(standin_fleet, "tasks-bulk")] == [0]
        assert not redis.exists(f"celery-task-meta-{result.id}")
    finally:
        redis.delete(keys.results("tasks-bulk"))


def test_argument_summaries_hold_no_secret_whoever_sent_the_message(client: Celery) -> None:
    """Flower shows what the event `task-received` says."""
    sent: list[AsyncResult] = []
    summaries: list[str] = []

    def on_heartbeat(_: dict[str, Any]) -> None:
        # The receiver asks for one as soon as it listens.
        if not sent:
            record = {"audio": "file:///no/such.wav?X-Amz-Signature=hunter2"}
            sent.append(client.send_task("whisper.transcribe", [[record]], queue="transcribe"))

    def on_received(event: dict[str, Any]) -> None:
        if sent and event["uuid"] == sent[0].id:
            summaries.append(f"{event['args']} {event['kwargs']}")
            receiver.should_stop = True

    with client.connection() as connection:
        handlers = {"worker-heartbeat": on_heartbeat, "task-received": on_received}
        receiver = client.events.Receiver(connection, handlers=handlers)
        receiver.capture(limit=None, timeout=ANSWER_SECONDS)

    assert len(summaries) == 1
    assert "hunter2" not in summaries[0]
    assert len(summaries[0]) < 200

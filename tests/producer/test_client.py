"""Calls from an application's threads, on a shared fleet: answers, errors, cancelling, and many at a time."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import celery
import numpy as np
import pytest
import soundfile
from job_files import read_rows, write_rows

from celery_events import events_heard
from fleet import Fleet, wait_for
from producer import (
    CallCancelledError,
    CallTimeoutError,
    ChannelTranscripts,
    Client,
    ClientClosedError,
    Failure,
    FleetError,
    FleetUnavailableError,
    Transcript,
    TranscriptionError,
    UsageError,
)
from producer.answers import READ, READ_SECONDS
from workers import keys
from workers.app import create_app
from workers.marks import DONE_SECONDS
from workers.settings import load_settings

ANSWER_SECONDS = 120.0


@pytest.fixture(scope="module")
def client(standin_fleet: Fleet) -> Iterator[Client]:
    with Client(standin_fleet.url) as opened:
        yield opened


@pytest.fixture
def train(samples: Path) -> Path:
    return samples / "en_train.flac"


def test_a_recording_is_answered_by_its_transcript(client: Client, train: Path, standin_fleet: Fleet) -> None:
    handle = client.transcribe(train, language="German", timestamps=True)
    transcript = handle.result(ANSWER_SECONDS)
    assert transcript.text.startswith("stand-in ")
    assert transcript.language == "de"
    assert [segment.text for segment in transcript.segments or ()] == [transcript.text]
    assert handle.done()
    assert handle.result(0) == transcript, "the same again"
    assert not handle.cancel()
    # Of the text nothing stays, only for a while that it was told
    assert standin_fleet.redis.get(f"celery-task-meta-{handle.id}") == READ.encode()
    assert 0 < int(standin_fleet.redis.ttl(f"celery-task-meta-{handle.id}")) <= READ_SECONDS  # type: ignore[arg-type]
    assert client.transcribe(train).result(ANSWER_SECONDS).segments is None


def test_a_relative_path_starts_where_the_application_does(
    client: Client, train: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(train.parent)
    assert client.translate(train.name).result(ANSWER_SECONDS) == client.translate(train).result(ANSWER_SECONDS)


def test_a_part_of_a_recording_is_a_row_or_an_option(client: Client, train: Path) -> None:
    whole = client.transcribe(train).result(ANSWER_SECONDS)
    row = client.transcribe({"audio": str(train), "start_s": 1, "end_s": 3, "id": 7}).result(ANSWER_SECONDS)
    assert row == client.transcribe(train, start_s=1, end_s=3).result(ANSWER_SECONDS)
    assert isinstance(row, Transcript)
    assert row.text != whole.text


def test_a_list_is_answered_by_a_list(client: Client, train: Path) -> None:
    missing = train.with_name("no_such.wav")
    whole = client.transcribe(train).result(ANSWER_SECONDS)
    assert client.transcribe([train]).result(ANSWER_SECONDS) == [whole]
    assert client.transcribe({"audio": [train]}).result(ANSWER_SECONDS) == [whole]
    good, bad = client.transcribe([train, missing]).result(ANSWER_SECONDS)
    assert good == whole
    assert isinstance(bad, Failure)
    assert client.transcribe([missing]).result(ANSWER_SECONDS) == [bad]


def test_a_recording_that_fails_raises_its_error(client: Client, train: Path) -> None:
    handle = client.transcribe(train.with_name("no_such.wav"))
    for _ in range(2):
        with pytest.raises(TranscriptionError, match=r"no_such\.wav: no such file") as caught:
            handle.result(ANSWER_SECONDS)
        assert caught.value.type == "file_not_found"


def test_channels_are_answered_each(client: Client, train: Path, tmp_path: Path) -> None:
    speech, rate = soundfile.read(train, dtype="int16")
    soundfile.write(tmp_path / "call.wav", np.stack([speech, np.zeros_like(speech)], axis=1), rate)
    split = client.transcribe(tmp_path / "call.wav", channels="split").result(ANSWER_SECONDS)
    assert isinstance(split, ChannelTranscripts)
    left, right = split.channels
    assert isinstance(left, Transcript)
    assert left.text == client.transcribe(train).result(ANSWER_SECONDS).text
    assert isinstance(right, Transcript)
    assert right.flags == ["no_speech"]
    assert isinstance(client.transcribe(train, channels="split").result(ANSWER_SECONDS), Transcript)


@pytest.mark.parametrize(
    ("options", "type", "says"),
    [
        ({"language": "Klingon"}, "unknown_language", "unknown language 'Klingon'"),
        ({"langauge": "de"}, "bad_argument", "unknown option 'langauge'"),
        ({"model": "no-such"}, "not_supported", "model no-such: no live worker has it, there are standin"),
    ],
)
def test_what_no_worker_can_do_is_refused_before_it_is_sent(
    client: Client, train: Path, options: dict[str, str], type: str, says: str
) -> None:
    with pytest.raises(UsageError) as caught:
        client.transcribe(train, **options)  # type: ignore[call-overload]
    assert caught.value.type == type
    assert caught.value.message.startswith(says)


def test_threads_share_a_client(client: Client, train: Path) -> None:
    def call(number: int) -> tuple[str, str]:
        start_s = number / 100
        return (
            client.transcribe(train, start_s=start_s).result(ANSWER_SECONDS).text,
            client.translate(train, start_s=start_s).result(ANSWER_SECONDS).text,
        )

    with ThreadPoolExecutor(12) as threads:
        texts = list(threads.map(call, range(24)))
    assert all(first == second for first, second in texts)
    assert len({first for first, _ in texts}) == 24, "each has its own answer"


def test_many_are_given_as_they_come(client: Client, train: Path) -> None:
    read = 0

    def rows() -> Iterator[dict[str, object]]:
        nonlocal read
        for number in range(60):
            read += 1
            audio = None if number == 5 else "/no/such.wav" if number % 10 == 3 else train
            yield {"audio": audio, "id": number, "start_s": number / 100}

    outcomes = {}
    for row, outcome in client.submit_many(rows(), window=6, task="translate"):
        outcomes[row["id"]] = outcome
        assert read - len(outcomes) < 6
    assert sorted(outcomes) == list(range(60))  # type: ignore[type-var]
    assert {id for id, one in outcomes.items() if isinstance(one, UsageError)} == {5}
    failed = {id for id, one in outcomes.items() if isinstance(one, TranscriptionError)}
    assert failed == {3, 13, 23, 33, 43, 53}
    assert sum(isinstance(one, Transcript) for one in outcomes.values()) == 53


def test_what_is_wrong_with_all_of_many_is_raised_at_once(client: Client, train: Path) -> None:
    with pytest.raises(UsageError, match="no live worker has it"):
        client.submit_many([train], model="no-such")
    with pytest.raises(UsageError, match="window=0: must be at least 1"):
        client.submit_many([train], window=0)


def test_a_job_is_run_on_the_clients_fleet(client: Client, train: Path, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "data.jsonl", [{"audio": str(train), "id": 1}])
    path = client.run_job(source, cache_path=tmp_path / "cache", timestamps=True)
    assert path == tmp_path / "cache" / "data_step1.jsonl"
    (row,) = read_rows(path)
    assert row["transcription"] == client.transcribe(train).result(ANSWER_SECONDS).text
    assert row["transcription_segments"]
    assert client.run_job(source, cache_path=tmp_path / "cache", timestamps=True) == path, "complete already"
    with pytest.raises(UsageError, match=r"timestamps was on, now off. Start over with force, or .* with prefix"):
        client.run_job(source, cache_path=tmp_path / "cache")


def test_what_the_application_prints_during_a_job_is_printed(
    client: Client, train: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given an application on a terminal, and a job that is not to be shown
    monkeypatch.setenv("FORCE_COLOR", "1")
    source = write_rows(tmp_path / "data.jsonl", [{"audio": str(train)}])
    lines = 0
    # When another thread prints all the while
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(client.run_job, source, cache_path=tmp_path / "cache")
        while not wait([running], 0.01).done:
            print("here")
            print("there", file=sys.stderr)
            lines += 1
        running.result()
    # Then every line has come where it was to go
    said = capsys.readouterr()
    assert lines
    assert said.out == "here\n" * lines
    assert said.err == "there\n" * lines


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"cache": "x"}, "unknown option 'cache': there are task, language"),
        ({"step": "1"}, "step='1': "),
        ({"task": "summarize"}, "task='summarize': "),
        ({"language": "Klingon"}, "language Klingon: unknown language"),
        ({"max_failed": "many"}, "max_failed many: must be a number of rows"),
    ],
)
def test_a_job_that_cannot_be_is_refused(client: Client, tmp_path: Path, options: dict[str, str], says: str) -> None:
    source = write_rows(tmp_path / "data.jsonl", [{"audio": "a.wav"}])
    with pytest.raises(UsageError) as caught:
        client.run_job(source, **{"cache_path": tmp_path / "cache", **options})  # type: ignore[arg-type]
    assert caught.value.message.startswith(says)
    assert not (tmp_path / "cache").exists()


def test_a_job_without_any_success_is_an_error(client: Client, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "data.jsonl", [{"audio": "no_such.wav"}])
    for limit, says in ((None, "no row succeeded"), ("0", "max_failed 0")):
        with pytest.raises(FleetError, match=says):
            client.run_job(source, cache_path=tmp_path / "cache", max_failed=limit, prefix=f"limit-{limit}")


def test_a_client_leaves_the_applications_own_celery_alone(standin_fleet: Fleet, train: Path) -> None:
    own = celery.Celery("somebody", broker="memory://")
    with Client(standin_fleet.url) as client:
        client.transcribe(train).result(ANSWER_SECONDS)
        assert celery.current_app._get_current_object() is own

        @own.task(bind=True)
        def calling(self: celery.Task) -> list[str]:
            client.transcribe(train).result(ANSWER_SECONDS)
            return [child.id for child in self.request.children]

        assert calling.apply().get() == [], "no call is a child of the task: its result would grow with each"


# Without workers: nothing moves but what a test moves.


def test_calls_go_before_jobs_and_hold_what_was_asked(fleet: Fleet) -> None:
    def subscriptions() -> int:
        return int(fleet.redis.info("commandstats").get("cmdstat_subscribe", {"calls": 0})["calls"])

    with Client(fleet.url) as client:
        opened = subscriptions()
        handle = client.translate("/a.wav", language="fr", prompt="Ada")
        (message,) = [json.loads(one) for one in fleet.redis.lrange("translate", 0, -1)]
        assert subscriptions() == opened, "no subscription a call"
    assert message["headers"]["id"] == handle.id
    assert message["properties"]["priority"] == 0
    args, kwargs, _ = json.loads(base64.b64decode(message["body"]))
    assert (args, kwargs) == ([[{"audio": "/a.wav"}]], {"options": {"language": "fr", "prompt": "Ada"}})


def test_who_waits_long_enough_is_told_what_may_be_the_matter(fleet: Fleet) -> None:
    with Client(fleet.url) as client:
        handle = client.transcribe("/a.wav")
        with pytest.raises(CallTimeoutError, match=r"no answer within 0 s: no worker is live on redis://127"):
            handle.result(0)
        with pytest.raises(TimeoutError):
            handle.result(0.01)
        assert not handle.done()
        fleet.kill_valkey()
        with pytest.raises(FleetUnavailableError, match=r"redis://127\S+ does not answer") as caught:
            client.transcribe("/b.wav")
        assert "@" not in str(caught.value), "no password"
        wait_for(lambda: "does not answer" in str(handle.timed_out(1)))
        assert handle.cancel(), "here at least"
        with pytest.raises(CallCancelledError):
            handle.result(0)


def test_closing_ends_what_is_waited_for_and_all_that_comes_later(fleet: Fleet) -> None:
    client = Client(fleet.url)
    handle, errors = client.transcribe("/a.wav"), []

    def wait() -> None:
        try:
            handle.result()
        except FleetError as error:
            errors.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    client.close()
    client.close()
    waiting.join(ANSWER_SECONDS)
    assert [type(error) for error in errors] == [ClientClosedError]
    assert errors[0].type == "closed"
    for call in (lambda: client.transcribe("/b.wav"), lambda: client.run_job("x.jsonl"), client.open):
        with pytest.raises(ClientClosedError):
            call()
    assert not handle.cancel()


def test_a_broker_that_cannot_be_used_is_named() -> None:
    with pytest.raises(UsageError, match=r"REDIS_URL=.*: .*must start with one of redis://"):
        Client("http://broker")
    with pytest.raises(FleetUnavailableError, match=r"redis://127\.0\.0\.1:1/0: does not answer") as caught:
        Client("redis://:secret@127.0.0.1:1/0").open()
    assert "secret" not in str(caught.value)
    with pytest.raises(UsageError, match="workers=0: must be at least 1"):
        Client.embedded(workers=0)


def test_a_forked_process_has_to_open_its_own(fleet: Fleet) -> None:
    code = """
import os, signal, sys
from producer import Client, FleetError
client = Client()
handle = client.transcribe("/a.wav")
some = client.submit_many(["/c.wav"])
child = os.fork()
if child == 0:
    signal.alarm(60)
    try:
        client.transcribe("/b.wav")
    except FleetError as error:
        print(error.message, handle.cancel(), flush=True)
        print(handle.timed_out(1), flush=True)
    for wait in (handle.result, lambda: handle.result(600)):
        try:
            wait()
        except FleetError as error:
            print(error.type, flush=True)
    print(type(next(some)[1]).__name__, flush=True)
    sys.exit()
os.waitpid(child, 0)
print(handle.done(), flush=True)
os._exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=fleet.environment(), text=True, capture_output=True, timeout=100, check=False
    )
    assert done.stdout.splitlines() == [
        "the client was opened before this process was forked: open one in each process False",
        "no answer within 1 s: the client was opened before this process was forked: open one in each process",
        *["bad_argument"] * 2,
        "UsageError",
        "False",
    ], done.stderr
    assert fleet.redis.llen("transcribe") == 1
    assert not fleet.redis.keys(keys.task("*")), "the parent's call was not cancelled"


def test_a_cancelled_call_is_dropped_also_by_a_worker_that_comes_later(fleet: Fleet, train: Path) -> None:
    app = create_app(load_settings(REDIS_URL=fleet.url), set_as_current=False)
    with Client(fleet.url) as client, events_heard(app) as events:
        cancelled, other = client.transcribe(train), client.transcribe(train, start_s=1)
        assert cancelled.cancel()
        assert cancelled.done()
        with pytest.raises(CallCancelledError):
            cancelled.result(0)
        fleet.start_worker()
        other.result(ANSWER_SECONDS)
        wait_for(lambda: f"task {cancelled.id} was cancelled" in fleet.log_path().read_text())
        # Then Flower hears of that, and all that is left for a while is that it is done
        wait_for(lambda: ("task-revoked", cancelled.id) in [(event["type"], event.get("uuid")) for event in events])
        wait_for(lambda: ("task-succeeded", other.id) in [(event["type"], event.get("uuid")) for event in events])
        assert ("task-succeeded", cancelled.id) not in [(event["type"], event.get("uuid")) for event in events]
        assert fleet.redis.keys(f"*{cancelled.id}*") == [keys.held(cancelled.id).encode()]
        assert 0 < fleet.redis.ttl(keys.held(cancelled.id)) <= DONE_SECONDS
        wait_for(lambda: fleet.redis.hlen(keys.UNACKED) == 0)


def test_a_full_redis_tells_at_least_the_workers_that_listen(fleet: Fleet) -> None:
    with Client(fleet.url) as client:
        handle = client.transcribe("/a.wav")
        with fleet.redis.pubsub() as listening:
            listening.psubscribe("*celery.pidbox")
            wait_for(lambda: listening.get_message())
            fleet.redis.config_set("maxmemory", 1)
            assert handle.cancel()
            told = json.loads(wait_for(lambda: listening.get_message())["data"])
            assert json.loads(base64.b64decode(told["body"]))["arguments"]["task_id"] == [handle.id]
        fleet.redis.config_set("maxmemory", 0)


# With a slow worker: four calls run, the others wait.


def test_many_that_are_closed_are_cancelled(slow_fleet: Fleet, train: Path) -> None:
    read = 0

    def endless() -> Iterator[dict[str, object]]:
        nonlocal read
        while True:
            read += 1
            yield {"audio": train, "start_s": read / 100}

    dropped = slow_fleet.log_path().read_text().count("was cancelled")
    with Client(slow_fleet.url) as client:
        given = client.submit_many(endless(), window=64)
        _, outcome = next(given)
        assert isinstance(outcome, Transcript)
        given.close()
        assert read <= 64
        wait_for(lambda: not slow_fleet.redis.llen("transcribe"))
        wait_for(lambda: slow_fleet.log_path().read_text().count("was cancelled") >= dropped + 2)

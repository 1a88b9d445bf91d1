"""Jobs that stand still: rows that Redis has lost, and rows that a killed producer has not sent."""

from __future__ import annotations

import contextlib
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from job_files import answer, deliver, new_job, processes_at, read_rows, speech_rows, write_rows
from running import Running

from fleet import CLI, Fleet, clean_environment, ended, wait_for
from producer import registry
from producer.collector import Collector
from producer.errors import FleetError
from producer.in_flight import rows_in_flight, rows_on_their_way
from producer.job import Job, load_job
from producer.journal import Journal
from producer.opening import open_job
from producer.reconcile import Reconciler, Watched, producing
from producer.spec import JobSpec
from workers import keys
from workers.app import create_app
from workers.settings import load_settings

BULK = "transcribe:5"
#: Soon enough for a test. Nothing here needs it to be long.
STALL = "1"


def answered(job: Job) -> int:
    return len(Journal.read_answered(job.step.journal_path, job.rows))


def assert_complete(job: Job, rows: int) -> None:
    """Every row is there once, in order, with its own text."""
    found = read_rows(job.step.path)
    assert [row["id"] for row in found] == list(range(rows))
    assert all(row["transcription"].startswith("stand-in ") for row in found)
    assert len({row["transcription"] for row in found}) == rows


# --- one job, whatever happens to its Redis --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shaken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A fleet whose Redis the tests here mistreat, with a slow worker."""
    environment = {
        "WHISPER_ENGINE": "standin",
        "WHISPER_STANDIN_STEP_MS": "50",
        "WHISPER_VISIBILITY_TIMEOUT_SECONDS": "5",
        "WHISPER_LEASE_SECONDS": "1",
        "WHISPER_RESTORE_SECONDS": "1",
    }
    with Fleet(tmp_path_factory.mktemp("shaken"), environment) as running:
        running.start_worker()
        yield running


def flush(fleet: Fleet, job: Job) -> None:
    fleet.redis.flushall()


def drop_connections(fleet: Fleet, job: Job) -> None:
    fleet.redis.client_kill_filter(_type="normal")


def stall(fleet: Fleet, job: Job) -> None:
    server = psutil.Process(fleet.valkey.pid)
    server.suspend()
    try:
        with contextlib.suppress(psutil.TimeoutExpired):
            server.wait(3)
    finally:
        server.resume()


def kill(fleet: Fleet, job: Job) -> None:
    fleet.kill_valkey()
    fleet.valkey.start()


def fail_over_to_an_older_copy(fleet: Fleet, job: Job) -> None:
    """What was acknowledged since then is there again, and what was sent since then is not."""
    files = fleet.folder / "valkey" / "appendonlydir"
    copy = fleet.folder / "copy"
    shutil.copytree(files, copy)
    before = answered(job)
    wait_for(lambda: answered(job) >= min(before + 4, job.rows))  # all of them, should the copy have taken long
    fleet.kill_valkey()
    shutil.rmtree(files)
    copy.rename(files)
    fleet.valkey.start()


FAULTS = [flush, drop_connections, stall, kill, fail_over_to_an_older_copy]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_job_ends_complete_whatever_happens_to_redis(
    shaken: Fleet, tmp_path: Path, fault: Callable[[Fleet, Job], None]
) -> None:
    rows = 24
    job = open_job(JobSpec((str(speech_rows(tmp_path, rows)),), cache_path=str(tmp_path / "cache")))
    # Given: a job in the middle, with its window full.
    run = Running(shaken, job, window_rows=8, stall_seconds=1)
    wait_for(lambda: answered(job) >= 4)
    # When
    fault(shaken, job)
    # Then
    assert run.join().error is None
    assert_complete(job, rows)
    assert registry.registered(shaken.redis) == []


# --- after its producer ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def collecting(fleet: Fleet, *names: str) -> Iterator[None]:
    with ended(fleet.start_cli("collect", *names, WHISPER_STALL_SECONDS=STALL)):
        yield


def started(folder: Path) -> Job:
    """The job of a producer that was started a moment ago."""
    return wait_for(lambda: load_job(folder / "cache" / "data_step1.jsonl"))


def test_a_collector_sends_what_a_killed_producer_has_not(slow_fleet: Fleet, tmp_path: Path) -> None:
    rows = 20
    arguments = ("enqueue", str(speech_rows(tmp_path, rows)), "--cache-path", str(tmp_path / "cache"))
    with ended(slow_fleet.start_cli(*arguments, WHISPER_WINDOW_ROWS="4")) as producer:
        job = started(tmp_path)
        wait_for(lambda: rows_on_their_way(slow_fleet.redis, ["transcribe"], [job.id])[job.id])
        producer.kill()
    with collecting(slow_fleet):
        # It is known to the fleet, and nobody has to name it.
        wait_for(lambda: job.reload().is_complete())
        # Given: a job whose producer has ended as it should. When: Redis is flushed.
        other = speech_rows(tmp_path / "other", 100)
        done = slow_fleet.cli("enqueue", str(other), "--cache-path", str(tmp_path / "other" / "cache"))
        assert done.returncode == 0, done.stderr
        flushed = started(tmp_path / "other")
        wait_for(lambda: answered(flushed))
        slow_fleet.redis.flushall()
        # Then: it ends complete too.
        wait_for(lambda: flushed.reload().is_complete())
    assert_complete(job, rows)
    assert_complete(flushed, 100)


def test_a_producer_that_is_stopped_on_purpose_stays_stopped(slow_fleet: Fleet, tmp_path: Path) -> None:
    rows = 12
    arguments = ("enqueue", str(speech_rows(tmp_path, rows)), "--cache-path", str(tmp_path / "cache"))
    with ended(slow_fleet.start_cli(*arguments, WHISPER_WINDOW_ROWS="3")) as producer:
        job = started(tmp_path)
        wait_for(lambda: rows_on_their_way(slow_fleet.redis, ["transcribe"], [job.id])[job.id])
        producer.send_signal(signal.SIGTERM)
        _, stderr = producer.communicate(timeout=60)
    assert producer.returncode == 143
    assert "the same command resumes" in stderr
    with contextlib.closing(Collector(slow_fleet.redis)) as collector:
        owned = collector.add(job)
        assert owned is not None
        config = load_settings(REDIS_URL=slow_fleet.url, stall_seconds=0.1)
        reconciler = Reconciler(slow_fleet.redis, create_app(config), config, lambda *_: None)

        def collect() -> int:
            collector.poll(0.05)
            reconciler.step([Watched(job, lambda: owned.journal, owned.journal.answered)])
            return owned.journal.answered

        wait_for(lambda: collect() == 3)
        for _ in range(10):
            assert collect() == 3
        reconciler.close()
    # When: the same command is given again. Then: it ends, and so does the job.
    with collecting(slow_fleet, job.id):
        assert slow_fleet.cli(*arguments).returncode == 0
        wait_for(lambda: job.reload().is_complete())
    assert_complete(job, rows)


def test_only_an_end_on_purpose_leaves_a_mark(tmp_path: Path) -> None:
    job = new_job(tmp_path, rows=1)
    with pytest.raises(KeyboardInterrupt), producing(job):
        raise KeyboardInterrupt
    assert job.step.stopped_path.exists()
    with producing(job):
        assert not job.step.stopped_path.exists()
    assert not job.step.stopped_path.exists()


@pytest.fixture
def reconciler(fleet: Fleet) -> Iterator[Reconciler]:
    config = load_settings(REDIS_URL=fleet.url, stall_seconds=0.2)
    reconciling = Reconciler(fleet.redis, create_app(config), config, lambda *_: None)
    yield reconciling
    reconciling.close()


def test_a_live_producer_is_left_to_it(
    fleet: Fleet, reconciler: Reconciler, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And of several jobs each gets its own rows: one look finds what all of them lack."""
    watched, journals = [], []
    for name in ("ä.b", "whole", "busy"):
        job = new_job(tmp_path / name, rows=4, prefix=name)
        journals.append(Journal.open(job.step.journal_path, job.rows))
        journals[-1].append([answer(0)])
        watched.append(Watched(job, lambda journal=journals[-1]: journal, 1))  # type: ignore[misc]
    lacking, whole, busy = (one.job for one in watched)
    deliver(fleet.redis, whole, answer(1), answer(2), answer(3))
    deliver(fleet.redis, lacking, answer(3))

    def in_flight(job: Job) -> set[int]:
        reconciler.step(watched)
        return rows_in_flight(fleet.redis, "transcribe", job.id)

    with busy.step.lock("producer") as producer:
        assert producer.acquire()
        wait_for(lambda: in_flight(lacking) == {1, 2})
        for _ in range(10):
            assert in_flight(busy) == in_flight(whole) == set()
        assert f"{lacking.id}: 2 rows are neither answered nor on their way" in caplog.text
        assert busy.id not in caplog.text, "its producer is about to send its rows: nothing is amiss"
    # When: its producer is gone. Then: its rows are sent too, and nothing is sent twice.
    wait_for(lambda: in_flight(busy) == {1, 2, 3})
    assert int(fleet.redis.llen(BULK)) == 5  # type: ignore[arg-type]
    wait_for(lambda: lacking.step.lock("producer").acquire())
    for journal in journals:
        journal.close()


def test_an_input_that_is_another_by_now_is_not_sent(fleet: Fleet, tmp_path: Path) -> None:
    """An answer knows only the number of its row: it would be another row's."""
    # Given a job whose producer was killed, and whose rows were sorted since
    job = new_job(tmp_path, rows=4)
    rows = (tmp_path / "data.jsonl").read_text()
    (tmp_path / "data.jsonl").write_text("".join(reversed(rows.splitlines(keepends=True))))
    config = load_settings(REDIS_URL=fleet.url, stall_seconds=0.2)
    said: list[Exception] = []
    reconciler = Reconciler(fleet.redis, create_app(config), config, lambda _, error: said.append(error))
    watched = Watched(job, set, 0)

    def stepped() -> None:
        reconciler.step([watched])

    with contextlib.closing(reconciler):
        # When it stands still. Then nothing is sent
        wait_for(lambda: (stepped(), said)[1])
        assert "the input changed" in str(said[0])
        assert isinstance(said[0], FleetError)
        assert said[0].exit_code == 1
        assert rows_in_flight(fleet.redis, "transcribe", job.id) == set()
        # until the input is what it was
        (tmp_path / "data.jsonl").write_text(rows)
        wait_for(lambda: (stepped(), rows_in_flight(fleet.redis, "transcribe", job.id) == {0, 1, 2, 3})[1])


# --- other ends ------------------------------------------------------------------------------------------------------


def test_force_leaves_nothing_of_the_old_job_on_the_broker(fleet: Fleet, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "data.jsonl", [{"audio": f"{row}.wav"} for row in range(3)])
    arguments = ("enqueue", str(source), "--cache-path", str(tmp_path / "cache"))
    old = fleet.cli(*arguments).stdout.strip()
    fleet.redis.xadd(keys.results(old), {keys.RESULT_FIELD: answer(0)})
    assert rows_in_flight(fleet.redis, "transcribe", old) == {0, 1, 2}
    # When: it is started over. Then: only the new job is there.
    done = fleet.cli(*arguments, "--force")
    new = done.stdout.strip()
    assert new != old
    assert "3 messages are taken back" in done.stderr
    assert [entry.id for entry in registry.registered(fleet.redis)] == [new]
    assert not fleet.redis.exists(keys.results(old))
    assert rows_in_flight(fleet.redis, "transcribe", old) == set()
    assert rows_in_flight(fleet.redis, "transcribe", new) == {0, 1, 2}


def test_a_full_disk_is_waited_out_by_a_collector_and_ends_a_run(slow_fleet: Fleet, tmp_path: Path) -> None:
    rows, room_bytes = 16, 2000
    arguments = (str(speech_rows(tmp_path, rows)), "--cache-path", str(tmp_path / "cache"))
    # Given: a collector that can write a few answers at most.
    with ended(slow_fleet.start_cli("collect", WHISPER_STALL_SECONDS=STALL)) as collector:
        resource.prlimit(collector.pid, resource.RLIMIT_FSIZE, (room_bytes, resource.RLIM_INFINITY))
        assert slow_fleet.cli("enqueue", *arguments).returncode == 0
        job = started(tmp_path)
        assert collector.stderr is not None
        wait_for(lambda: "free some space" in collector.stderr.readline())
        assert collector.poll() is None
        assert answered(job) < rows
        assert not job.step.path.exists()
        # When: there is room. Then: it goes on.
        resource.prlimit(collector.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        wait_for(lambda: job.reload().is_complete())
    assert_complete(job, rows)

    again = (*arguments, "--prefix", "again")
    with ended(slow_fleet.start_cli("run", *again)) as run:
        resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (room_bytes, resource.RLIM_INFINITY))
        _, stderr = run.communicate(timeout=60)
    assert run.returncode == 1
    assert "journal.jsonl: cannot be written (File too large): free some space" in stderr.splitlines()[-1]
    assert "Traceback" not in stderr
    assert slow_fleet.cli("run", *again).returncode == 0
    found = load_job(tmp_path / "cache" / "again_step1.jsonl")
    assert found is not None
    assert_complete(found, rows)


def test_a_run_survives_the_death_of_its_own_valkey(tmp_path: Path) -> None:
    rows = 16
    command = [*CLI, "run", str(speech_rows(tmp_path, rows)), "--cache-path", str(tmp_path / "cache")]
    environment = clean_environment(
        WHISPER_ENGINE="standin", WHISPER_STANDIN_STEP_MS="400", WHISPER_WINDOW_ROWS="6", WHISPER_STALL_SECONDS=STALL
    )
    with ended(subprocess.Popen(command, env=environment, text=True, stdout=-1, stderr=-1)) as run:
        job = started(tmp_path)
        wait_for(lambda: answered(job) >= 3)
        (server,) = [process for process in processes_at(job.step.job_path) if "valkey" in process.name()]
        server.kill()
        _, stderr = run.communicate(timeout=60)
    assert run.returncode == 0, stderr
    assert "the private Valkey ended, starting it again" in stderr
    assert_complete(job, rows)
    assert processes_at(tmp_path) == []


def test_that_nobody_sends_what_a_stopped_job_lacks_is_said_once(
    fleet: Fleet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """All was sent when it was stopped; then Redis is flushed. Who looks at the collector would see nothing."""
    job, config = new_job(tmp_path, rows=3), load_settings(REDIS_URL=fleet.url, stall_seconds=0.01)
    job.step.stopped_path.touch()
    reconciler = Reconciler(fleet.redis, create_app(config), config, lambda *_: None)
    count = 1

    def looks() -> bool:
        reconciler.step([Watched(job, lambda: Journal.read_answered(job.step.journal_path, job.rows), count)])
        return "2 rows are neither answered nor on their way, and who sent them was stopped" in caplog.text

    wait_for(looks)
    for _ in range(20):
        time.sleep(0.02)
        looks()
    assert caplog.text.count("was stopped") == 1
    # More answers, and it stands still again
    count = 2
    wait_for(lambda: looks() and caplog.text.count("was stopped") == 2)
    reconciler.close()

"""Registrations and published progress, on a real server."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from job_files import read_rows, speech_rows

from fleet import Fleet, ended, wait_for
from producer import registry
from producer.in_flight import rows_uncollected
from producer.job import load_job
from producer.registry import Progress, Registration
from workers import keys


def test_a_registration_is_there_until_it_is_forgotten(fleet: Fleet) -> None:
    redis = fleet.redis
    one = Registration(id="a_step1-1", output="/data/ä b/a_step1.jsonl", rows=3, created="2026-01-01T00:00:00+00:00")
    two = one.model_copy(update={"id": "b_step1-2"})
    registry.register(redis, one)
    registry.register(redis, two)
    registry.register(redis, one)
    assert sorted(registry.registered(redis), key=lambda entry: entry.id) == [one, two]

    redis.xadd(keys.results(one.id), {keys.RESULT_FIELD: b"x"})
    registry.publish(redis, one.id, Progress(rows=3, answered=3, complete=True))
    registry.forget(redis, one.id)
    assert registry.registered(redis) == [two]
    assert not redis.exists(keys.results(one.id))
    progress = registry.read(redis, one.id)
    assert progress is not None
    assert progress.complete, "still there for whoever waits for it"
    assert 0 < int(redis.ttl(keys.progress(one.id))) <= registry.FINISHED_EXPIRES_SECONDS  # type: ignore[arg-type]


def test_a_job_that_a_flushed_redis_has_forgotten_goes_on_by_its_command_or_its_step_file(
    fleet: Fleet, tmp_path: Path
) -> None:
    # Given two jobs of which some rows are sent, and then neither producer nor collector
    fleet.start_worker()
    cache = str(tmp_path / "cache")
    sources = [speech_rows(tmp_path, 6, f"{name}.jsonl") for name in ("one", "two")]
    jobs = []
    for source in sources:
        arguments = ("enqueue", str(source), "--cache-path", cache)
        with ended(fleet.start_cli(*arguments, WHISPER_WINDOW_ROWS="2", WHISPER_CHUNK_ROWS="1")) as producer:
            job = wait_for(lambda source=source: load_job(Path(cache, f"{source.stem}_step1.jsonl")))  # type: ignore[misc]
            wait_for(lambda job=job: rows_uncollected(fleet.redis, job.id))  # type: ignore[misc]
            producer.kill()
        jobs.append(job)
    # When Redis forgets everything
    fleet.redis.flushall()
    assert fleet.cli("jobs").stdout == ""
    # Then the step file's name is enough for a collector,
    by_file = fleet.cli("collect", str(jobs[0].step.path), WHISPER_STALL_SECONDS="1")
    assert (by_file.returncode, by_file.stdout) == (0, f"{jobs[0].step.path}\n"), by_file.stderr
    # and the same command makes the job known to all of them again.
    with ended(fleet.start_cli("collect")):
        again = fleet.cli("enqueue", str(sources[1]), "--cache-path", cache)
        assert (again.returncode, again.stdout) == (0, f"{jobs[1].id}\n"), again.stderr
        wait_for(lambda: jobs[1].reload().is_complete())
    for job in jobs:
        assert [row["id"] for row in read_rows(job.step.path)] == list(range(6))


def test_progress_comes_back_as_it_was_published(fleet: Fleet) -> None:
    published = Progress(
        rows=10_000_000,
        answered=7,
        failed=2,
        audio_seconds=12.345,
        reasons=Counter({"no_audio": 1, "not_audio": 1}),
        step_path="/data/ä b/a_step1.jsonl",
    )
    assert registry.read(fleet.redis, "job") is None
    registry.publish(fleet.redis, "job", published)
    assert registry.read(fleet.redis, "job") == published


def test_what_another_version_registered_is_left_alone(fleet: Fleet) -> None:
    known = Registration(id="a", output="/a_step1.jsonl", rows=1, created="now")
    registry.register(fleet.redis, known)
    fleet.redis.hset(keys.JOBS, "future", '{"id": "future", "shards": []}')
    fleet.redis.hset(keys.JOBS, "junk", "not json")
    assert registry.registered(fleet.redis) == [known]
    assert int(fleet.redis.hlen(keys.JOBS)) == 3  # type: ignore[arg-type]

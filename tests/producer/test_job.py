"""A job on disk: made, resumed, refused."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from job_files import answer, failed_answer, new_job, read_rows, write_rows

from producer.errors import FleetError, UsageError
from producer.header import JobHeader
from producer.job import Job, load_job
from producer.journal import Journal
from producer.opening import open_job
from producer.spec import JobSpec
from workers.messages import Failure, Options, Record


def spec_of(folder: Path, **options: object) -> JobSpec:
    return JobSpec(inputs=(str(folder / "data.jsonl"),), cache_path=str(folder / "cache"), **options)  # type: ignore[arg-type]


def finish(job: Job) -> Job:
    journal = Journal.open(job.step.journal_path, job.rows)
    journal.append([answer(row) for row in range(job.rows)])
    done = job.finish(journal)
    journal.close()
    return done


def test_the_same_options_resume_the_same_job(tmp_path: Path) -> None:
    job = new_job(tmp_path, language="German")
    again = open_job(spec_of(tmp_path, language="de"))
    assert again == job
    assert again.id.startswith("data_step1-")
    assert not again.is_complete()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": "translate"}, "task was 'transcribe', now 'translate'"),
        ({"language": "french"}, "language was 'auto', now 'fr'"),
        ({"timestamps": True}, "timestamps was off, now on"),
        ({"channels": "split"}, "channels was 'mix', now 'split'"),
        ({"prompt": " Ada "}, "prompt was not set, now 'Ada'"),
        ({"details": True}, "details was off, now on"),
        ({"model": "other"}, "model was not set, now 'other'"),
        ({"output_key": "text"}, "output key was 'transcription', now 'text'"),
        ({"limit": 3}, "5 rows then, 3 now"),
        ({"audio_root": "s3://bucket"}, "now 's3://bucket'"),
    ],
)
def test_another_job_at_the_same_step_is_refused_in_words(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    job = new_job(tmp_path)
    with pytest.raises(UsageError) as caught:
        open_job(spec_of(tmp_path, **change))
    assert words in str(caught.value)
    assert "--force" in str(caught.value)
    assert "--prefix" in str(caught.value)
    assert job.reload() == job


def test_a_changed_input_is_another_job(tmp_path: Path) -> None:
    new_job(tmp_path, rows=2)
    write_rows(tmp_path / "data.jsonl", [{"audio": "0.wav"}, {"audio": "9.wav"}])
    with pytest.raises(UsageError, match="the input has changed"):
        open_job(spec_of(tmp_path))


def test_force_starts_over_and_prefix_goes_elsewhere(tmp_path: Path) -> None:
    job = new_job(tmp_path)
    journal = Journal.open(job.step.journal_path, job.rows)
    journal.append([answer(0)])
    journal.close()

    elsewhere = open_job(spec_of(tmp_path, task="translate", prefix="other"))
    assert elsewhere.step.path == tmp_path / "cache" / "other_step1.jsonl"

    forced = open_job(spec_of(tmp_path, task="translate", force=True))
    assert forced.id != job.id
    assert forced.step == job.step
    assert not forced.step.journal_path.exists()


@pytest.mark.parametrize("others", [("producer",), ("collector",), ("producer", "collector")])
def test_force_does_not_pull_a_job_from_under_its_process(
    tmp_path: Path, others: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A producer's is not asked for; whoever collects alone is asked, and need not listen."""
    monkeypatch.setattr("producer.standing.GIVE_BACK_SECONDS", 0.2)
    job = new_job(tmp_path)
    words = "is working on it" if "producer" in others else "collects it and has not given it back"
    with contextlib.ExitStack() as held:
        for name in others:
            assert held.enter_context(job.step.lock(name)).acquire()
        with pytest.raises(UsageError, match=words):
            open_job(spec_of(tmp_path, force=True))
        assert job.step.force_lock.path.exists() == ("producer" not in others)
        assert not job.step.force_lock.is_held()
    assert open_job(spec_of(tmp_path)) == job
    assert open_job(spec_of(tmp_path, force=True)) != job


def test_a_file_that_no_job_made_is_not_overwritten(tmp_path: Path) -> None:
    precious = write_rows(tmp_path / "cache" / "data_step1.jsonl", [{"mine": 1}])
    with pytest.raises(UsageError, match="no job of this cache made it"):
        new_job(tmp_path)
    assert read_rows(precious) == [{"mine": 1}]
    assert new_job(tmp_path, force=True).rows == 5
    assert read_rows(precious) == [{"mine": 1}], "replaced only when the new rows are complete"


def test_starters_at_the_same_moment_get_the_same_job(tmp_path: Path) -> None:
    write_rows(tmp_path / "data.jsonl", [{"audio": "a.wav"}] * 50)
    ready, jobs = threading.Barrier(8), list[Job]()

    def start() -> None:
        ready.wait()
        jobs.append(open_job(spec_of(tmp_path)))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(jobs) == 8
    assert len({job.id for job in jobs}) == 1
    assert jobs[0].reload() == jobs[0]


def test_a_finished_job_says_so_and_its_file_can_be_made_again(tmp_path: Path) -> None:
    job = finish(new_job(tmp_path, rows=2))
    assert job.is_complete()
    assert [row["transcription"] for row in read_rows(job.step.path)] == ["text 0", "text 1"]
    assert not job.step.journal_path.exists()
    assert open_job(spec_of(tmp_path)) == job

    job.step.path.unlink()
    assert not job.reload().is_complete()
    again = open_job(spec_of(tmp_path))
    assert again.id != job.id
    assert not again.header.complete


def test_progress_of_a_complete_job_counts_what_its_summary_says(tmp_path: Path) -> None:
    job = new_job(tmp_path, rows=3)
    journal = Journal.open(job.step.journal_path, 3)
    journal.append([answer(0), failed_answer(1), failed_answer(2, "no_audio")])
    progress = job.finish(journal).progress()
    journal.close()
    assert (progress.rows, progress.answered, progress.failed, progress.complete) == (3, 3, 2, True)
    assert dict(progress.reasons) == {"not_audio": 1, "no_audio": 1}
    assert progress.step_path == str(job.step.path)


def test_records_carry_rows_options_and_known_failures(tmp_path: Path) -> None:
    rows = [
        {"audio": "a.wav", "language": "German", "prompt": "Hm."},
        {"audio": None},
        {"audio": ["b.wav", "/c.wav"], "start_s": 1, "end_s": 2.5},
        {"audio": "https://example.org/d.wav", "language": "klingonish"},
    ]
    write_rows(tmp_path / "data.jsonl", rows)
    found = list(open_job(spec_of(tmp_path)).records())
    assert [row for row, _ in found] == [0, 1, 2, 3]
    assert found[0][1] == Record(audio=str(tmp_path / "a.wav"), row=0, language="de", prompt="Hm.")
    assert found[1][1] == Failure(type="no_audio", message="column 'audio' names no audio")
    assert found[2][1] == Record(audio=[str(tmp_path / "b.wav"), "/c.wav"], row=2, start_s=1, end_s=2.5)
    last = found[3][1]
    assert isinstance(last, Failure)
    assert "klingonish" in last.message


def test_a_second_step_reads_the_first_and_keeps_its_audio_root(tmp_path: Path) -> None:
    write_rows(tmp_path / "in" / "data.jsonl", [{"audio": "a.wav"}])
    inputs = (str(tmp_path / "in" / "data.jsonl"),)
    cache = str(tmp_path / "cache")
    with pytest.raises(UsageError, match="run step 0 first"):
        open_job(JobSpec(inputs, cache_path=cache, step=1))
    finish(open_job(JobSpec(inputs, cache_path=cache, audio_root="/data/set")))
    second = open_job(JobSpec(inputs, cache_path=cache, step=1, task="translate", output_key="translation"))
    assert second.step.path.name == "data_step2.jsonl"
    assert [record.audio for _, record in second.records() if isinstance(record, Record)] == ["/data/set/a.wav"]
    assert second.task == "translate"
    assert second.columns.names() == ("translation", "translation_error")


def test_a_step_that_is_made_anew_is_not_read_as_finished(tmp_path: Path) -> None:
    # Given a finished first step that is started over
    finish(new_job(tmp_path))
    anew = open_job(spec_of(tmp_path, language="de", force=True))
    second = {"step": 1, "output_key": "again"}

    # Then its old file is no input for the second
    with pytest.raises(UsageError, match=r"data_step1.jsonl: is being made anew and not finished: run step 0"):
        open_job(spec_of(tmp_path, **second))
    finish(anew)
    assert open_job(spec_of(tmp_path, **second)).rows == anew.rows


def test_what_is_appended_to_the_input_is_none_of_the_job(tmp_path: Path) -> None:
    job = new_job(tmp_path, rows=3)
    with (tmp_path / "data.jsonl").open("a") as rows:
        rows.write('{"audio": "late.wav"}\n')
    job.check_input()
    assert [row for row, _ in job.records()] == [0, 1, 2]
    assert [row["audio"] for row in read_rows(finish(job).step.path)] == ["0.wav", "1.wav", "2.wav"]
    with pytest.raises(UsageError, match="3 rows then, 4 now") as caught:
        open_job(spec_of(tmp_path))
    assert "finish it first" not in str(caught.value), "it is finished"


def test_what_is_appended_to_the_input_of_a_job_that_has_begun_can_wait(tmp_path: Path) -> None:
    job = new_job(tmp_path, rows=3)
    source = tmp_path / "data.jsonl"
    begun = source.read_text()
    source.write_text(begun + '{"audio": "late.wav"}\n')
    with pytest.raises(UsageError, match=r"or finish it first: the same command with a file of the first 3 rows$"):
        open_job(spec_of(tmp_path))
    source.write_text('{"audio": "early.wav"}\n' + begun)
    with pytest.raises(UsageError, match=r"write elsewhere with --prefix$"):
        open_job(spec_of(tmp_path))
    source.write_text(begun)
    assert open_job(spec_of(tmp_path)) == job


def test_an_input_that_is_another_by_now_can_be_put_back(tmp_path: Path) -> None:
    job = new_job(tmp_path, rows=3)
    source = tmp_path / "data.jsonl"
    rows = source.read_text()
    source.write_text("".join(reversed(rows.splitlines(keepends=True))))
    with pytest.raises(UsageError, match=r"data.jsonl: the input changed .*: put it back, or start over with --force$"):
        job.check_input()
    with pytest.raises(FleetError, match="put it back"):
        finish(job)
    source.unlink()
    with pytest.raises(FleetError, match="cannot be read") as gone:
        finish(job)
    assert gone.value.exit_code == 1, "nothing was enqueued, would 2 say"
    source.write_text(rows)
    job.check_input()
    assert finish(job).is_complete()


def test_answers_are_kept_only_of_a_step_that_was_made(tmp_path: Path) -> None:
    """`--reuse` takes no other."""
    done = finish(new_job(tmp_path))
    anew = open_job(spec_of(tmp_path, force=True))
    write_rows(tmp_path / "data.jsonl", [{"audio": "other.wav"}] * 5)
    # Given: the step of an earlier job. Then: it is not that of the one that began since
    with pytest.raises(UsageError, match=r"--force$"):
        anew.check_input()
    with pytest.raises(UsageError, match="Start over with --force, or"):
        open_job(spec_of(tmp_path))
    # And: a step that was made has answers as long as it is there
    anew.step.header_path.unlink()
    done.header.write(done.step.header_path)
    with pytest.raises(UsageError, match=r"--force \(and keep answers with --reuse\)$"):
        done.check_input()
    with pytest.raises(UsageError, match=r"Start over with --force \(and keep answers with --reuse"):
        open_job(spec_of(tmp_path))
    done.step.path.unlink()
    with pytest.raises(UsageError, match=r"--force$"):
        done.check_input()


def test_an_input_that_was_moved_is_read_where_it_lies_now(tmp_path: Path) -> None:
    job = new_job(tmp_path, prefix="rows")
    lines = list(job.lines())
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "data.jsonl").read_bytes()))
    moved = JobSpec((str(packed),), cache_path=str(tmp_path / "cache"), prefix="rows")

    # While somebody is at the job, who reads the old file, that has to be there
    with job.step.lock("collector") as lock:
        assert lock.acquire()
        assert open_job(moved) == job
        (tmp_path / "data.jsonl").unlink()
        with pytest.raises(UsageError, match=r"data.jsonl: cannot be read"):
            open_job(moved)

    # Then, with nobody at it, the job goes on with the new one
    again = open_job(moved)
    assert (again.id, again.header.inputs) == (job.id, [str(packed)])
    assert again == job.reload()
    assert list(again.lines()) == lines


def test_a_finished_step_whose_input_was_moved_can_be_retried_after_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: object) -> bool:
        raise FleetError("producer.lock: cannot be written (Permission denied): make it writable")

    job = new_job(tmp_path, prefix="rows")
    done = finish(job)
    (tmp_path / "data.jsonl").rename(tmp_path / "moved.jsonl")
    moved = JobSpec((str(tmp_path / "moved.jsonl"),), cache_path=str(tmp_path / "cache"), prefix="rows")
    with pytest.raises(UsageError, match=r"data.jsonl: cannot be read"):
        list(done.lines())

    # While somebody is at it, it stays as it is
    with job.step.lock("collector") as lock:
        assert lock.acquire()
        assert open_job(moved) == done

    # Nor by somebody who may not write
    with monkeypatch.context() as patched:
        patched.setattr("producer.file_lock.FileLock.acquire", refused)
        assert open_job(moved) == done

    again = open_job(moved)
    assert (again.id, again.header.complete) == (job.id, True)
    assert len(list(again.reload().lines())) == job.rows


def test_a_job_is_the_same_from_whatever_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other machines need not have the folder of the command either."""
    job = new_job(tmp_path)
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    spec = JobSpec(("../data.jsonl",), cache_path="../cache", audio_root="..")

    assert open_job(spec) == job


@pytest.mark.parametrize("force", [False, True])
def test_a_new_job_that_is_refused_leaves_all_as_it_was(tmp_path: Path, *, force: bool) -> None:
    def refuse() -> None:
        raise UsageError("no live worker has it")

    # Given a finished step, or nothing
    done = finish(new_job(tmp_path)) if force else None
    write_rows(tmp_path / "data.jsonl", [{"audio": "0.wav"}])

    with pytest.raises(UsageError, match="no live worker has it"):
        open_job(spec_of(tmp_path, model="typo", force=force), refuse)

    assert load_job(tmp_path / "cache" / "data_step1.jsonl") == done
    # And what is resumed is not asked about
    job = open_job(spec_of(tmp_path, prefix="other"))
    assert open_job(spec_of(tmp_path, prefix="other"), refuse) == job


def test_inputs_of_several_folders_need_an_audio_root(tmp_path: Path) -> None:
    inputs = tuple(str(write_rows(tmp_path / name / "d.jsonl", [{"audio": "a.wav"}])) for name in "ab")
    cache = str(tmp_path / "cache")
    with pytest.raises(UsageError, match="--prefix"):
        open_job(JobSpec(inputs, cache_path=cache))
    with pytest.raises(UsageError, match="--audio-root"):
        open_job(JobSpec(inputs, cache_path=cache, prefix="both"))
    assert open_job(JobSpec(inputs, cache_path=cache, prefix="both", audio_root=".")).rows == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"step": -1}, "--step -1"),
        ({"limit": 0}, "--limit 0"),
        ({"limit": 10**20}, "no input has so many rows"),
        ({"language": "Germn"}, "german"),
        ({"prompt": "caf\udce9"}, "--prompt: not valid UTF-8"),
        ({"prefix": "a/b"}, "--prefix 'a/b'"),
        ({"output_key": "audio"}, "would overwrite the audio column"),
        ({"media_key": "path"}, "--media-key"),
    ],
)
def test_wrong_options_are_named_and_nothing_is_made(tmp_path: Path, options: dict[str, object], words: str) -> None:
    write_rows(tmp_path / "data.jsonl", [{"audio": "a.wav"}])
    with pytest.raises(UsageError) as caught:
        open_job(spec_of(tmp_path, **options))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_folders_whose_names_no_message_can_carry_are_refused(tmp_path: Path) -> None:
    """Linux takes any bytes for a name."""
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    write_rows(tmp_path / "data.jsonl", [{"audio": "a.wav"}])
    inputs = (str(tmp_path / "data.jsonl"),)
    with pytest.raises(UsageError, match=r"--cache-path '.*caf.udce9': not valid UTF-8"):
        open_job(JobSpec(inputs, cache_path=str(odd)))
    assert not odd.exists()
    with pytest.raises(UsageError, match=r"caf.udce9': not valid UTF-8: name another folder with --audio-root"):
        open_job(spec_of(tmp_path, audio_root=str(odd)))
    # And: so is the folder of the input, unless another one is named
    write_rows(odd / "data.jsonl", [{"audio": "a.wav"}])
    there = JobSpec((str(odd / "data.jsonl"),), cache_path=str(tmp_path / "cache"))
    with pytest.raises(UsageError, match="--audio-root"):
        open_job(there)
    assert open_job(replace(there, audio_root=str(tmp_path))).rows == 1


def test_jobs_are_found_by_their_step_file(tmp_path: Path) -> None:
    job = new_job(tmp_path)
    assert load_job(job.step.path) == job
    assert load_job(tmp_path / "cache" / "data_step2.jsonl") is None
    assert load_job(tmp_path / "cache" / "data.jsonl") is None
    assert load_job(tmp_path / "cache" / job.id) is None


def test_the_header_is_plain_json_that_names_everything(tmp_path: Path) -> None:
    job = new_job(tmp_path, language="de", timestamps=True)
    header = json.loads(job.step.header_path.read_text())
    assert header["inputs"] == [str(tmp_path / "data.jsonl")]
    assert header["options"]["language"] == "de"
    assert header["rows"] == 5
    assert JobHeader.read(job.step.header_path) == job.header
    assert job.message_options == Options(language="de", timestamps=True)


def test_a_job_of_before_these_options_is_resumed(tmp_path: Path) -> None:
    # Given a header that knows neither prompts nor channels
    job = new_job(tmp_path)
    header = json.loads(job.step.header_path.read_text())
    del header["options"]["prompt"], header["options"]["channels"]
    job.step.header_path.write_text(json.dumps(header))

    # Then it is the same job, done as it was begun, and no other
    again = open_job(spec_of(tmp_path, prompt=" "))
    assert again.id == job.id
    assert again.message_options == Options(channels="mix", prompt=None)
    with pytest.raises(UsageError, match="channels was 'mix', now 'split'"):
        open_job(spec_of(tmp_path, channels="split"))


def test_prompt_and_channels_go_with_every_message(tmp_path: Path) -> None:
    job = new_job(tmp_path, prompt=" Ada, Grace\n", channels="split")
    assert job.message_options == Options(prompt="Ada, Grace", channels="split")

"""job.json: what it says, what it refuses, and what makes another job of it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from producer.errors import UsageError
from producer.header import JobHeader, Retry, differences

HEADER = JobHeader(
    id="0b5e",
    created="2025-01-31T12:00:00+00:00",
    inputs=["data.jsonl"],
    rows=3,
    bytes=120,
    sha256="ab" * 32,
    task="transcribe",
    options={"language": "auto", "timestamps": False, "model": None},
    audio_root="/data/中",
    output="/cache/data_step1.jsonl",
)


def test_it_reads_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    assert JobHeader.read(path) is None
    for header in (HEADER, replace(HEADER, complete=True, summary={"answered": 3})):
        header.write(path)
        assert JobHeader.read(path) == header
    assert path.stat().st_mode & 0o777 == 0o600
    assert [item.name for item in tmp_path.iterdir()] == ["job.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "damaged"),
        ("[]", "damaged"),
        ('{"version": 1}', "damaged"),
        ('{"version": 2}', "another version"),
        ("{}", "another version"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "job.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=rf"job\.json: .*{message}.*--force"):
        JobHeader.read(path)


def test_what_may_not_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "job.json").mkdir()  # whoever runs the tests as root may read any file
    with pytest.raises(UsageError, match=r"job\.json: cannot be read \(Is a directory\)"):
        JobHeader.read(tmp_path / "job.json")


def test_the_same_job_has_no_differences() -> None:
    again = replace(HEADER, id="other", created="later", inputs=["./data.jsonl"], complete=True)
    assert differences(HEADER, again) == []


def test_differences_in_words() -> None:
    other = replace(
        HEADER,
        sha256="cd" * 32,
        rows=4,
        task="translate",
        audio_root="/other",
        options={"language": "en", "timestamps": True, "model": "m", "limit": 5},
    )
    assert differences(HEADER, other) == [
        "the input has changed (content hash, 3 rows then, 4 now)",
        "task was 'transcribe', now 'translate'",
        "audio root was '/data/中', now '/other'",
        "language was 'auto', now 'en'",
        "timestamps was off, now on",
        "model was not set, now 'm'",
        "limit was not set, now 5",
    ]


def test_a_retry_is_part_of_it_and_headers_of_before_have_none(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    header = replace(HEADER, retry=Retry(2, ["timeout"], "cd" * 32, 1, {"not_audio": 1}))
    header.write(path)
    assert JobHeader.read(path) == header

    fields = json.loads(path.read_text())
    del fields["retry"]
    path.write_text(json.dumps(fields))
    assert JobHeader.read(path) == HEADER


def test_a_job_that_is_resumed_need_not_name_again_what_it_reused() -> None:
    begun = replace(HEADER, options={**HEADER.options, "reuse": "/cache/old_step1.jsonl"})
    assert differences(begun, HEADER) == []
    assert differences(HEADER, begun) == ["reuse was not set, now '/cache/old_step1.jsonl'"]


def test_a_place_is_the_same_with_and_without_a_way_back_in_it() -> None:
    """Earlier versions left it in, and a folder on the way may be gone."""
    options = {**HEADER.options, "reuse": "/cache/old_step1.jsonl"}
    new = replace(HEADER, options=options)
    old = replace(new, audio_root="/data/a/../中", options={**options, "reuse": "/b/../cache/old_step1.jsonl"})
    assert differences(old, new) == differences(new, old) == []
    assert differences(old, replace(new, audio_root="s3://bucket/中")) != []
    assert differences(old, replace(new, options={**options, "reuse": "/cache/other_step1.jsonl"})) != []

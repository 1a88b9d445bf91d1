"""The README says only what is true now."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fleet import CLI
from producer.opening import open_job
from producer.spec import JobSpec
from workers.fallback import FLAGS
from workers.gates import Verdict
from workers.messages import Record
from workers.models import DEFAULT_MODELS
from workers.settings import Settings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_setting_is_in_the_table_with_its_default() -> None:
    table = dict(re.findall(r"^\| `((?:WHISPER_|REDIS_)\w+)` \| (.*?) \|", README, re.MULTILINE))
    expected = {}
    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        shown = default if isinstance(default, str) else json.dumps(default)
        expected["REDIS_URL" if name == "redis_url" else f"WHISPER_{name.upper()}"] = (
            "" if default is None else f"`{shown}`"
        )
    assert table == expected


def test_every_command_of_the_readme_exists() -> None:
    named = set(re.findall(r"^(?:\w+=\S+ )?whisper-fleet (\w+)", README, re.MULTILINE))
    assert {"run", "worker", "collect", "enqueue", "flower"} <= named
    help_text = subprocess.run([*CLI, "--help"], capture_output=True, text=True, check=True).stdout
    assert named <= set(re.findall(r"^  (\w+) ", help_text, re.MULTILINE))
    targets = set(re.findall(r"^make ([\w-]+)", README, re.MULTILINE))
    assert targets <= set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_the_rows_of_a_folder_are_made_as_the_readme_says(samples: Path, tmp_path: Path) -> None:
    [command] = re.findall(r"^\.venv/bin/python (-c '(?:.*\n)+?.*') ~/recordings > data\.jsonl$", README, re.MULTILINE)
    recording = tmp_path / "recordings" / "a" / 'a "call" ü.mp3'
    recording.parent.mkdir(parents=True)
    shutil.copy(samples / "en_kitchen.mp3", recording)

    subprocess.run(f"'{sys.executable}' {command} recordings > data.jsonl", shell=True, cwd=tmp_path, check=True)

    job = open_job(JobSpec((str(tmp_path / "data.jsonl"),), cache_path=str(tmp_path / "cache")))
    [(_, record)] = job.records()
    assert isinstance(record, Record)
    assert Path(str(record.audio)).samefile(recording)


def test_the_readme_names_the_default_models() -> None:
    assert f"The model is `{DEFAULT_MODELS['cuda']}`, on a CPU `{DEFAULT_MODELS['cpu']}`, unless" in README


@pytest.mark.parametrize("verdict", FLAGS)
def test_every_flag_of_the_gates_is_explained(verdict: Verdict) -> None:
    for flag in FLAGS[verdict]:
        assert f"| `{flag}` |" in README


def test_every_option_of_the_readme_exists() -> None:
    help_text = "".join(
        subprocess.run([*CLI, command, "--help"], capture_output=True, text=True, check=True).stdout
        for command in ("run", "enqueue", "failed", "retry", "worker", "flower")
    )
    for option in set(re.findall(r"(?<![\w-])(--[a-z][a-z-]+)", README)):
        assert option in help_text, option

"""What the tests of the DataFlow way share: a working directory, a fleet of stand-ins, and real recordings."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType

import pytest
from job_files import SPEECH

from fleet import Fleet
from open_dataflow import storage_module_or_skip
from producer.dataflow import LocalModelLLMServing_vllm, WhisperTranscriptionGenerator


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a recording ``a.wav`` in it; keys of the user are made here too."""
    shutil.copy(SPEECH, tmp_path / "a.wav")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path


@pytest.fixture
def joined(standin_fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    """The shared fleet of stand-ins as that of ``REDIS_URL``."""
    monkeypatch.setenv("REDIS_URL", standin_fleet.url)
    return standin_fleet


@pytest.fixture
def generator(folder: Path, joined: Fleet) -> WhisperTranscriptionGenerator:
    """An operator on that fleet, in that directory."""
    return WhisperTranscriptionGenerator(LocalModelLLMServing_vllm())


@pytest.fixture(scope="session")
def real_storage() -> ModuleType:
    """DataFlow's own storage module."""
    return storage_module_or_skip()

"""The real thing: one broker and one worker with real whisper-base weights, shared by the whole session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fleet import Fleet

#: Loaded by every Python process that has its folder on PYTHONPATH: the thread in which vLLM's engine process connects
#: its way out comes late, as on a busy machine. The worker must not take the socket's name away before.
LATE_THREAD = """
import threading, time
run = threading.Thread.run
def late(self):
    if getattr(self._target, "__name__", "") == "process_output_sockets":
        time.sleep(3.0)
    run(self)
threading.Thread.run = late
"""


@pytest.fixture(scope="session")
def real_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Loading takes about a minute, so tests share it and leave nothing behind."""
    patched = tmp_path_factory.mktemp("patched")
    (patched / "sitecustomize.py").write_text(LATE_THREAD)
    environment = {"WHISPER_MODEL": "whisper-base", "PYTHONPATH": str(patched)}
    with Fleet(tmp_path_factory.mktemp("real"), environment) as running:
        running.start_worker()
        yield running

"""The real thing: one broker and one worker with real whisper-base weights, shared by the whole session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fleet import Fleet
from patched_imports import patched_imports

#: The thread in which vLLM's engine process connects its way out comes late, as on a busy machine. The worker must not
#: take the socket's name away before.
LATE_THREAD = """
import threading, time
run = threading.Thread.run
def late(self):
    if getattr(self._target, "__name__", "") == "process_output_sockets":
        time.sleep(3.0)
    run(self)
threading.Thread.run = late
"""
#: Writes a dot to the file ENCODED for each window that the model's encoder encodes.
COUNTED_ENCODER = """
import os
def count(module):
    forward = module.WhisperEncoder.forward
    def counted(self, input_features):
        with open(os.environ["ENCODED"], "a") as file:
            file.write("." * len(input_features))
        return forward(self, input_features)
    module.WhisperEncoder.forward = counted
AFTER["vllm.model_executor.models.whisper"] = count
"""


@pytest.fixture(scope="session")
def real_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Loading takes about a minute, so tests share it and leave nothing behind."""
    patched = tmp_path_factory.mktemp("patched")
    environment = {
        "WHISPER_MODEL": "whisper-base",
        "ENCODED": str(patched / "encoded"),
        **patched_imports(patched, LATE_THREAD, COUNTED_ENCODER),
    }
    with Fleet(tmp_path_factory.mktemp("real"), environment) as running:
        running.start_worker()
        yield running

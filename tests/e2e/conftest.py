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
#: Writes a dot to the file ENCODED for each window that the model's encoder encodes.
COUNTED_ENCODER = """
import importlib.machinery, os, sys
class Counted(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name != "vllm.model_executor.models.whisper":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        load = spec.loader.exec_module
        def exec_module(module):
            load(module)
            forward = module.WhisperEncoder.forward
            def counted(self, input_features):
                with open(os.environ["ENCODED"], "a") as file:
                    file.write("." * len(input_features))
                return forward(self, input_features)
            module.WhisperEncoder.forward = counted
        spec.loader.exec_module = exec_module
        return spec
sys.meta_path.insert(0, Counted)
"""


@pytest.fixture(scope="session")
def real_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Loading takes about a minute, so tests share it and leave nothing behind."""
    patched = tmp_path_factory.mktemp("patched")
    (patched / "sitecustomize.py").write_text(LATE_THREAD + COUNTED_ENCODER)
    environment = {
        "WHISPER_MODEL": "whisper-base",
        "PYTHONPATH": str(patched),
        "ENCODED": str(patched / "encoded"),
    }
    with Fleet(tmp_path_factory.mktemp("real"), environment) as running:
        running.start_worker()
        yield running

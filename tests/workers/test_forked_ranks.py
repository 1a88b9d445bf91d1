"""A CPU engine's ranks begin with all that its process has imported, where that is safe, and end with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cpu_build import only_on_x86_64
from workers.forked_ranks import METHOD, forked_ranks
from workers.vllm_options import intel_openmp

#: An engine's process that starts a rank as vLLM does, and asks it what it is.
ENGINE = """
import ctypes, multiprocessing, os, sys, threading
from workers.forked_ranks import METHOD, forked_ranks

def rank(sending):
    signal = ctypes.c_int()
    ctypes.CDLL(None).prctl(2, ctypes.byref(signal), 0, 0, 0)  # PR_GET_PDEATHSIG
    threads = {thread.name for thread in threading.enumerate()}
    sending.send((hasattr(sys, "imported_before"), signal.value, sorted(threads & {"parent-watch", "parent-pipe"})))

def started():
    context = multiprocessing.get_context(os.environ[METHOD])
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=rank, args=(sending,))
    process.start()
    print(*receiving.recv(), flush=True)
    process.join()

if __name__ == "__main__":
    sys.imported_before = True
    with forked_ranks():
        started()
    started()
    multiprocessing.get_context("fork").Process(target=print, args=(len(threading.enumerate()),)).start()
"""


def told(tmp_path: Path, **environment: str) -> list[str]:
    """The lines of `ENGINE`."""
    main = tmp_path / "engine.py"
    main.write_text(ENGINE)
    done = subprocess.run(
        [sys.executable, str(main)],
        env={**os.environ, METHOD: "spawn", "PYTHONPATH": str(Path(__file__).parents[2]), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.splitlines()


@only_on_x86_64
def test_ranks_are_copies_that_end_with_the_engines_process(tmp_path: Path) -> None:
    first, second, other = told(tmp_path, LD_PRELOAD=str(intel_openmp()))

    # By SIGKILL, and by both of the guard's threads
    assert first == "True 9 ['parent-pipe', 'parent-watch']"
    # Whatever is started afterwards is spawned again, and what is forked is no rank.
    assert second == "False 0 []"
    assert other == "1"


@pytest.mark.parametrize("preloaded", ["", "/nowhere/libiomp5.so"])
def test_without_intels_openmp_ranks_are_spawned(tmp_path: Path, preloaded: str) -> None:
    first, *_ = told(tmp_path, LD_PRELOAD=preloaded)

    assert first == "False 0 []"


def test_a_process_whose_method_nobody_named_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(METHOD, raising=False)

    with forked_ranks():
        assert METHOD not in os.environ


@only_on_x86_64
def test_the_method_is_as_before_when_no_rank_can_be_started(tmp_path: Path) -> None:
    code = (
        "import os\nfrom workers.forked_ranks import METHOD, forked_ranks\n"
        "try:\n    with forked_ranks():\n        print(os.environ[METHOD])\n        raise OSError\n"
        "except OSError:\n    print(os.environ[METHOD])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, METHOD: "spawn", "LD_PRELOAD": str(intel_openmp())},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == ["fork", "spawn"]

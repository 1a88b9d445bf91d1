"""A CPU engine's ranks begin with all that its process has imported, where that is safe, and end with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cpu_build import only_with_openmp
from workers.forked_ranks import METHOD
from workers.vllm_options import intel_openmp

#: An engine's process that starts a rank as vLLM does, and asks it what it is.
ENGINE = """
import ctypes, multiprocessing, os, sys, threading
from pathlib import Path
from workers.forked_ranks import METHOD, forked_ranks

def rank(sending):
    signal = ctypes.c_int()
    ctypes.CDLL(None).prctl(2, ctypes.byref(signal), 0, 0, 0)  # PR_GET_PDEATHSIG
    threads = {thread.name for thread in threading.enumerate()}
    sending.send((hasattr(sys, "imported_before"), signal.value, sorted(threads & {"parent-watch", "parent-pipe"})))
    if "COMPUTES" in os.environ:
        ctypes.CDLL(os.environ["COMPUTES"]).omp_get_max_threads()
    sending.send((os.getpid(), os.path.exists(f"/dev/shm/__KMP_REGISTERED_LIB_{os.getpid()}_{os.getuid()}")))

def started():
    context = multiprocessing.get_context(os.environ.get(METHOD) or "spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=rank, args=(sending,))
    process.start()
    print(*receiving.recv(), flush=True)
    pid, noted = receiving.recv()
    process.join()
    if "COMPUTES" in os.environ:
        print(noted, os.path.exists(f"/dev/shm/__KMP_REGISTERED_LIB_{pid}_{os.getuid()}"), flush=True)

def count():
    print(len(threading.enumerate()), flush=True)

if __name__ == "__main__":
    sys.imported_before = True
    try:
        with forked_ranks():
            started()
            raise OSError
    except OSError:
        started()
    multiprocessing.get_context("fork").Process(target=count).start()
"""
SPAWNED = "False 0 []"


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


@only_with_openmp
def test_ranks_are_copies_that_end_with_the_engines_process(tmp_path: Path) -> None:
    first, second, other = told(tmp_path, LD_PRELOAD=str(intel_openmp()))

    # By SIGKILL, and by both of the guard's threads
    assert first == "True 9 ['parent-pipe', 'parent-watch']"
    # Whatever is started after the block, also when that failed, is spawned again, and what is forked is no rank.
    assert second == SPAWNED
    assert other == "1"


@only_with_openmp
def test_a_copy_that_ends_takes_the_note_of_its_openmp_along(tmp_path: Path) -> None:
    library = str(intel_openmp())

    copy, note, *_ = told(tmp_path, LD_PRELOAD=library, COMPUTES=library)

    assert copy.startswith("True")
    assert note == "True False", "it was there, and is not left"


@only_with_openmp
@pytest.mark.parametrize(
    ("preloaded", "method"),
    [
        ("", "spawn"),
        ("/nowhere/libiomp5.so", "spawn"),
        ("{intel}:/nowhere/libgomp.so.1", "spawn"),
        ("{intel}", ""),  # not a word of vLLM's
    ],
)
def test_otherwise_ranks_are_spawned(tmp_path: Path, preloaded: str, method: str) -> None:
    environment = {"LD_PRELOAD": preloaded.format(intel=intel_openmp()), METHOD: method}

    first, *_ = told(tmp_path, **environment)

    assert first == SPAWNED

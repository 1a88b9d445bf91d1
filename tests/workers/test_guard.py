"""Real processes: a parent that is killed takes its guarded child with it."""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cpu_build import only_with_openmp
from fleet import wait_for
from workers import guard
from workers.vllm_options import intel_openmp

# The child opens the pipe, arms the guard and says so; the pipe closes when the child is gone, however that happens.
CHILD = """
import ctypes, os, time
from workers import guard
from workers.vllm_options import intel_openmp
pipe = os.open({pipe!r}, os.O_WRONLY)
{arm}
os.write(pipe, b"armed")
time.sleep(600)
"""
PARENT = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {child!r}])
time.sleep(600)
"""
MULTIPROCESSING_PARENT = """
import multiprocessing, time
if __name__ == "__main__":
    child = multiprocessing.get_context({method!r}).Process(target=exec, args=({child!r}, {{}}))
    child.start()
    time.sleep(600)
"""


SHARING = """
import multiprocessing, time
from multiprocessing.shared_memory import SharedMemory
from workers import guard
from workers.vllm_options import intel_openmp

def rank():
    guard.register()
    segment = SharedMemory(create=True, size=4096)
    print(segment.name, flush=True)
    time.sleep(600)

def engine():
    guard.register()
    start(rank)

def start(target):
    child = multiprocessing.get_context({method!r}).Process(target=target)
    child.start()
    time.sleep(600)

if __name__ == "__main__":
    start(engine)
"""


def assert_child_ends_with_parent(pipe: Path, parent_code: str) -> None:
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    parent = subprocess.Popen([sys.executable, "-c", parent_code])
    try:
        assert read_some(reader) == b"armed"
        assert parent.poll() is None
        assert not select.select([reader], [], [], 1.5)[0], "the child ended although its parent lives"
        parent.kill()
        assert read_some(reader) == b"", "the child is alive after its parent's death"
    finally:
        parent.kill()
        parent.wait()
        os.close(reader)


def read_some(reader: int) -> bytes:
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    assert poll.poll(60_000), "nothing happened for 60 s"
    return os.read(reader, 100)


def test_child_of_a_killed_parent_ends(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    child = CHILD.format(pipe=str(pipe), arm="guard.die_with_parent(os.getppid())")
    assert_child_ends_with_parent(pipe, PARENT.format(child=child))


def test_watchdog_alone_is_enough(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    disarm = "ctypes.CDLL(None).prctl(guard.PR_SET_PDEATHSIG, 0, 0, 0, 0)"
    child = CHILD.format(pipe=str(pipe), arm=f"guard.die_with_parent(os.getppid()); {disarm}")
    assert_child_ends_with_parent(pipe, PARENT.format(child=child))


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_register_guards_multiprocessing_children(tmp_path: Path, method: str) -> None:
    pipe = tmp_path / "pipe"
    child = CHILD.format(pipe=str(pipe), arm="guard.register()")
    assert_child_ends_with_parent(pipe, MULTIPROCESSING_PARENT.format(method=method, child=child))


def test_wrong_parent_ends_at_once() -> None:
    code = "import os; from workers import guard; guard.die_with_parent(os.getpid()); print('still here')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, b"")


def test_register_does_nothing_in_the_worker_itself() -> None:
    code = "from workers import guard; import threading; guard.register(); print(threading.active_count())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, b"1\n")


def test_guard_is_loaded_by_vllm_through_its_entry_point() -> None:
    from importlib.metadata import entry_points

    (found,) = [point for point in entry_points(group="vllm.general_plugins") if point.value.startswith("workers.")]
    assert found.load() is guard.register


def test_death_signal_cannot_be_ignored() -> None:
    code = (
        "import ctypes, os; from workers import guard; guard.die_with_parent(os.getppid()); got = ctypes.c_int();"
        "ctypes.CDLL(None).prctl(2, ctypes.byref(got), 0, 0, 0); print(got.value)"  # PR_GET_PDEATHSIG
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    assert int(done.stdout) == signal.SIGKILL


def test_register_keeps_the_terminals_ctrl_c_away() -> None:
    code = """
import multiprocessing, os
from workers import guard
from workers.vllm_options import intel_openmp

def child(group):
    guard.register()
    print(os.getpgrp() == os.getpid() != group, flush=True)

if __name__ == "__main__":
    started = multiprocessing.get_context("fork").Process(target=child, args=(os.getpgrp(),))
    started.start()
    started.join()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "True\n")


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_shared_memory_of_a_killed_workers_children_goes_with_them(tmp_path: Path, method: str) -> None:
    # Given a worker whose child has a child that made a segment, as vLLM's engine process and its ranks are
    main = tmp_path / "main.py"
    main.write_text(SHARING.format(method=method))
    environment = {**os.environ, "PYTHONPATH": str(Path(guard.__file__).parents[1])}
    worker = subprocess.Popen([sys.executable, str(main)], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert worker.stdout is not None
        path = Path("/dev/shm", worker.stdout.readline().strip())
        assert path.is_file()
        # When the worker is killed
        worker.kill()
        # Then the processes end, and Python's resource tracker takes the segment away.
        wait_for(lambda: not path.exists())
        assert worker.stdout.read() == "", "somebody still writes"
    finally:
        worker.kill()
        worker.wait()


def test_what_ranks_share_has_no_name_that_could_stay_behind() -> None:
    # Given a grandchild that has mapped a segment of vLLM's and another one
    names = [Path("/dev/shm", f"test-{os.getpid()}-{kind}") for kind in ("tp:0-[0-1]-cpushm", "psm")]
    inner = (
        "import mmap, sys\n"
        "files = [open(name, 'r+b') for name in sys.argv[1:]]\n"
        "maps = [mmap.mmap(file.fileno(), 4096) for file in files]\n"
        "print('mapped', flush=True)\n"
        "sys.stdin.read()\n"
        "print(maps[0][:4].decode(), flush=True)"
    )
    outer = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', *sys.argv[1:]]).returncode)"
    for name in names:
        name.write_bytes(b"data".ljust(4096))
    process = subprocess.Popen(
        [sys.executable, "-c", outer, inner, *map(str, names)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "mapped\n"

        # When the names are taken away
        guard.unlink_shared_memory()

        # Then only vLLM's is gone, and whoever has it open keeps it.
        assert [name.exists() for name in names] == [False, True]
        assert process.communicate("", timeout=60)[0] == "data\n"
    finally:
        process.kill()
        process.wait()
        for name in names:
            name.unlink(missing_ok=True)


@only_with_openmp
def test_intels_openmp_leaves_no_note_behind() -> None:
    # Given a process that computes with Intel's OpenMP
    library = intel_openmp()
    assert library is not None
    code = "import torch; torch.set_num_threads(2); torch.ones(10**7).sum(); print('computed', flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "LD_PRELOAD": str(library)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    note = Path(f"/dev/shm/__KMP_REGISTERED_LIB_{process.pid}_{os.getuid()}")
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "computed\n"
        assert note.exists()

        # When its note is taken away
        guard.unlink_shared_memory()

        # Then it is gone, and the process misses nothing.
        assert not note.exists()
        process.communicate("go on\n", timeout=60)
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()
        note.unlink(missing_ok=True)


def test_everything_that_was_started_ends_but_what_tidies_up_after_it() -> None:
    code = """
import subprocess, sys, time
from multiprocessing import resource_tracker
from workers import guard
from workers.vllm_options import intel_openmp
resource_tracker.ensure_running()
sleeper = [sys.executable, "-c", "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"]
child = subprocess.Popen(sleeper, stdin=subprocess.PIPE)
while len(guard.descendants(__import__("os").getpid())) < 3:
    time.sleep(0.05)
guard.end_descendants()
print(child.wait(), resource_tracker._resource_tracker._check_alive())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "-9 True\n")

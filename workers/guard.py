"""Children end when the process that started them is gone, however it went.

A worker that is killed with SIGKILL (out of memory, a supervisor's last word) cannot tidy up: vLLM's engine processes
would stay behind with their GPU memory, decode processes with their files. Two guards, because each alone has a hole:

* ``PR_SET_PDEATHSIG`` is immediate, but follows the *thread* that started the child, and is lost if that parent died
  before the call. Whoever starts guarded children must do so from a thread that lives as long as the process.
* A watchdog thread compares ``getppid()`` with the recorded parent. ``getppid() == 1`` would be no sign of death: in a
  container the worker itself may be process 1.

Standard library only: vLLM loads this in each of its processes.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

#: From <linux/prctl.h>.
PR_SET_PDEATHSIG = 1
#: How often the watchdog looks. The kernel's signal does the work; this is the net under it.
CHECK_SECONDS = 1.0


def die_with_parent(parent_pid: int) -> None:
    """End this process, with whatever it is doing, once ``parent_pid`` is no longer its parent.

    ``parent_pid`` is the pid of the parent as the parent knows itself; if it is gone already, this does not return.
    """
    kernel_signal_with_parent()
    if os.getppid() != parent_pid:  # it died before the kernel was asked
        os._exit(1)
    threading.Thread(target=_watch, args=(parent_pid,), name="parent-watch", daemon=True).start()


def kernel_signal_with_parent() -> None:
    """The first of the two guards alone: SIGKILL for this process once the thread that started it is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def register() -> None:
    """Entry point in vLLM's plugin group: guards vLLM's child processes, does nothing in the worker itself."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    # Under the forkserver method the process that counts as parent is not the one that getppid() names, and the server
    # may outlive it: the parent's end of multiprocessing's own pipe tells. Forked siblings may hold that end open, so
    # it is no replacement for the other guards.
    threading.Thread(target=_wait_for, args=(parent,), name="parent-pipe", daemon=True).start()
    # Ctrl-C in a terminal goes to the whole process group, but it is the worker's to answer: its engine works on.
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)
    die_with_parent(os.getppid())


def unlink_shared_memory() -> None:
    """Take away the names of what vLLM's CPU ranks share. What is open stays open; nobody opens it again.

    They have no owner that outlives a SIGKILL: the ranks' segments, and the note by which Intel's OpenMP would find
    itself loaded twice in a process. Python's own segments (``psm_``) have one, its resource tracker.
    """
    for pid in descendants(os.getpid()):
        unlink_openmp_note(pid)
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                path = line.partition("/dev/shm/")[2]
                if "-cpushm" in path:
                    Path("/dev/shm", path).unlink(missing_ok=True)


def unlink_openmp_note(pid: int) -> None:
    """Take away the note of Intel's OpenMP in a process."""
    Path(f"/dev/shm/__KMP_REGISTERED_LIB_{pid}_{os.getuid()}").unlink(missing_ok=True)


def end_descendants() -> None:
    """SIGKILL for whatever this process has started, but for Python's resource tracker, which tidies up after them."""
    unlink_shared_memory()
    for pid in descendants(os.getpid()):
        with contextlib.suppress(OSError):
            if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """The processes that ``pid`` has started, and those that these have, as far as /proc tells; parents first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # After the name, which may hold anything: state, parent.
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for one in found:
        found.extend(children.get(one, ()))
    return found[1:]


def _wait_for(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _watch(parent_pid: int) -> None:
    while os.getppid() == parent_pid:
        time.sleep(CHECK_SECONDS)
    os._exit(1)


def guarded_command(parent_pid: int, command: Sequence[str], cores: Sequence[int] | None = None) -> list[str]:
    """``command`` for a child of the process ``parent_pid`` that ends with it (see `exec_guarded`)."""
    return [sys.executable, "-I", __file__, str(parent_pid), ",".join(map(str, cores or ())), *command]


def exec_guarded(parent_pid: int, cores: Sequence[int], command: list[str]) -> None:
    """Become ``command``, which then ends when ``parent_pid`` does: the kernel's signal outlasts an exec.

    So do ``cores``, to which it is confined with all that it starts; empty: no others than this process is.
    """
    if cores:
        os.sched_setaffinity(0, cores)
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(1)
    os.execvp(command[0], command)


if __name__ == "__main__":
    exec_guarded(int(sys.argv[1]), [int(core) for core in sys.argv[2].split(",") if core], sys.argv[3:])

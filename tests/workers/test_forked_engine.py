"""A CPU engine's process is a copy of one that has imported vLLM beside the worker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

import psutil
import pytest

from cpu_build import only_on_a_cpu
from fleet import gone, wait_for

pytestmark = only_on_a_cpu

#: A worker that starts engines' processes as vLLM does, and asks them what they are.
WORKER = """
import json, multiprocessing, os, signal, sys, time
from multiprocessing import forkserver
from workers.forked_engine import MODULES, forked_engine, import_ahead

def engine(sending):
    sending.send(dict(
        pid=os.getpid(),
        parent=os.getppid(),
        imported=[name for name in MODULES if name in sys.modules],
        environment=[os.environ.get("BEFORE"), os.environ.get("AFTER")],
    ))
    if "STOPS" in os.environ:  # and hears nothing any more
        from workers import guard
        guard.register()
        sending.send(None)
        os.kill(os.getpid(), signal.SIGSTOP)

def say(**what):
    print(json.dumps(what), flush=True)

def started(utils):
    context = utils.get_mp_context()
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=engine, args=(sending,))
    process.start()
    told = receiving.recv()
    if "STOPS" in os.environ:
        receiving.recv()
    say(**told)
    process.join()
"""
#: Three engines: from the server, with another library preloaded, after the block.
THREE = (
    WORKER
    + """
if __name__ == "__main__":
    os.environ["BEFORE"] = "here"
    import_ahead()
    import_ahead()
    try:
        os.killpg(0, signal.SIGINT)  # a terminal's Ctrl-C, while Python starts
        time.sleep(5)
    except KeyboardInterrupt:
        pass
    del os.environ["BEFORE"]
    os.environ["AFTER"] = "here"
    server = forkserver._forkserver._forkserver_pid
    from vllm.v1.engine import utils

    try:
        with forked_engine():
            started(utils)
            say(worker=os.getpid(), server=server, threads=len(os.listdir(f"/proc/{server}/task")))
            before = os.environ.get("LD_PRELOAD", "")
            os.environ["LD_PRELOAD"] = before + ":/nowhere/libother.so"
            started(utils)
            raise OSError
    except OSError:
        os.environ["LD_PRELOAD"] = before
    with forked_engine():
        started(utils)
    say(left=os.listdir(os.environ["TMPDIR"]))
    sys.stdin.read()
"""
)
#: None: its server never comes to an end with vLLM.
SLOW = (
    WORKER
    + """
if __name__ == "__main__":
    import_ahead()
    say(server=forkserver._forkserver._forkserver_pid)
    sys.stdin.read()
"""
)
#: One engine.
ONE = (
    WORKER
    + """
if __name__ == "__main__":
    import_ahead()
    from vllm.v1.engine import utils

    with forked_engine():
        started(utils)
"""
)
#: More than any of these takes, on any machine; only a test that fails waits so long.
SECONDS = 300.0


@contextmanager
def worker(folder: Path, script: str, *, before: Path | None = None, **environment: str) -> Iterator[Worker]:
    """A process that runs ``script`` in a session of its own. ``before``: a folder whose modules come first."""
    main = folder / "worker.py"
    main.write_text(script)
    (folder / "tmp").mkdir()
    paths = [str(before)] if before else []
    with (folder / "errors.txt").open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, str(main)],
            env={
                **os.environ,
                "PYTHONPATH": ":".join([*paths, str(Path(__file__).parents[2])]),
                "VLLM_LOGGING_LEVEL": "ERROR",
                "TMPDIR": str(folder / "tmp"),
                **environment,
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
    late = threading.Timer(SECONDS, process.kill)
    late.start()
    try:
        yield Worker(process, folder / "errors.txt")
    finally:
        late.cancel()
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            cast("IO[str]", pipe).close()


class Worker:
    def __init__(self, process: subprocess.Popen[str], errors: Path) -> None:
        self.process = process
        self.errors = errors

    def says(self) -> dict[str, Any]:
        line = cast("IO[str]", self.process.stdout).readline()
        assert line, self.errors.read_text()[-2000:]
        return cast("dict[str, Any]", json.loads(line))


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `THREE` said, the title of its server, and what stood on stderr before it ended and after."""
    with worker(tmp_path_factory.mktemp("three"), THREE) as running:
        told: dict[str, Any] = {"forked": running.says(), "ids": running.says()}
        told |= {"other": running.says(), "after": running.says(), **running.says()}
        server = told["ids"]["server"]
        told["title"] = " ".join(psutil.Process(server).cmdline()).strip()
        told["errors"] = running.errors.read_text()
        cast("IO[str]", running.process.stdin).close()
        running.process.wait()
        wait_for(lambda: gone(server))
        told["last words"] = running.errors.read_text().removeprefix(told["errors"])
    return told


def test_the_engines_process_has_imported_vllm(three: dict[str, Any]) -> None:
    from workers.forked_engine import MODULES

    assert three["forked"]["parent"] == three["ids"]["server"]
    assert three["forked"]["imported"] == list(MODULES)
    assert three["ids"]["threads"] == 1, "no thread can hold a lock that the copy needs"
    assert three["title"] == "whisper-fleet: fork server"


def test_it_has_the_environment_of_the_worker_as_it_is_now(three: dict[str, Any]) -> None:
    assert three["forked"]["environment"] == [None, "here"]


def test_what_else_has_to_be_preloaded_has_a_process_of_its_own(three: dict[str, Any]) -> None:
    assert three["other"]["parent"] == three["ids"]["worker"]
    assert not three["other"]["imported"]


def test_a_later_engine_is_spawned_as_vllm_does_by_itself(three: dict[str, Any]) -> None:
    assert three["after"]["parent"] == three["ids"]["worker"]


def test_ctrl_c_is_the_workers_to_answer_from_the_first_moment(three: dict[str, Any]) -> None:
    assert three["forked"]["parent"] == three["ids"]["server"], "the first one lived on"
    assert "Traceback" not in three["errors"]


def test_the_server_leaves_no_file_and_says_nothing_at_its_end(three: dict[str, Any]) -> None:
    assert not [name for name in three["left"] if name.startswith(("pymp-", "wf-"))], "the server's socket"
    assert three["last words"] == ""


def test_a_killed_worker_leaves_no_server_in_the_midst_of_its_imports(tmp_path: Path) -> None:
    vllm = tmp_path / "modules" / "vllm"
    vllm.mkdir(parents=True)
    (vllm / "__init__.py").write_text(f"open({str(tmp_path / 'begun')!r}, 'w')\nimport time\ntime.sleep(1000)\n")
    with worker(tmp_path, SLOW, before=tmp_path / "modules") as running:
        server = running.says()["server"]
        wait_for((tmp_path / "begun").exists)

        running.process.kill()

        wait_for(lambda: gone(server))


def test_a_killed_worker_leaves_no_engine_that_hears_nothing(tmp_path: Path) -> None:
    with worker(tmp_path, ONE, STOPS="1") as running:
        engine = running.says()
        try:
            wait_for(lambda: psutil.Process(engine["pid"]).status() == psutil.STATUS_STOPPED)

            running.process.kill()

            wait_for(lambda: gone(engine["pid"]) and gone(engine["parent"]))
        finally:
            for left in (engine["pid"], engine["parent"]):
                with suppress(ProcessLookupError):
                    os.kill(left, signal.SIGKILL)


def test_without_a_server_the_engine_is_spawned_and_one_line_says_why(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 120)
    long.mkdir()
    with worker(tmp_path, ONE, TMPDIR=str(long)) as running:
        assert running.says()["parent"] == running.process.pid
        running.process.wait()

    assert "AF_UNIX path too long" in running.errors.read_text()
    assert not [path for path in long.iterdir() if path.name.startswith(("pymp-", "wf-"))]

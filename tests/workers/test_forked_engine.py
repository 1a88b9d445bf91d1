"""A CPU engine's process is a copy of one that has imported vLLM beside the worker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from cpu_build import only_on_a_cpu
from fleet import wait_for

pytestmark = only_on_a_cpu

#: A worker that starts an engine's process as vLLM does, three times, and asks it what it is.
WORKER = """
import json, multiprocessing, os, signal, sys, threading, time
from multiprocessing import forkserver

def engine(sending):
    sending.send(dict(
        parent=os.getppid(),
        imported={"vllm.v1.engine.core", "vllm.v1.worker.cpu_worker", "workers.cpu_executor"} <= sys.modules.keys(),
        threads=len(os.listdir("/proc/self/task")),
        environment=[os.environ.get("BEFORE"), os.environ.get("AFTER")],
        interrupt=signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
    ))

def started(utils):
    context = utils.get_mp_context()
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=engine, args=(sending,))
    process.start()
    print(json.dumps(receiving.recv()), flush=True)
    process.join()

if __name__ == "__main__":
    from workers.forked_engine import forked_engine, import_ahead

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
    print(json.dumps(dict(worker=os.getpid(), server=server)), flush=True)
    from vllm.v1.engine import utils

    try:
        with forked_engine():
            started(utils)
            preloaded = os.environ.pop("LD_PRELOAD", None)
            os.environ["LD_PRELOAD"] = "/nowhere/libother.so"
            started(utils)
            raise OSError
    except OSError:
        del os.environ["LD_PRELOAD"]
        if preloaded:
            os.environ["LD_PRELOAD"] = preloaded
    started(utils)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `WORKER` said, and what stood on stderr. It was killed, and its server has ended with it."""
    main = tmp_path_factory.mktemp("worker") / "worker.py"
    main.write_text(WORKER)
    with subprocess.Popen(
        [sys.executable, str(main)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "VLLM_LOGGING_LEVEL": "ERROR"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            lines = [json.loads(process.stdout.readline() or "null") for _ in range(4)]
            server = psutil.Process(lines[0]["server"])
            title = " ".join(server.cmdline()).strip()
        finally:
            process.kill()
        wait_for(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE)
        errors = process.communicate()[1]  # the server's too
    return {"ids": lines[0], "forked": lines[1], "other": lines[2], "after": lines[3], "title": title, "errors": errors}


def test_the_engines_process_has_imported_vllm(told: dict[str, Any]) -> None:
    assert told["forked"]["parent"] == told["ids"]["server"]
    assert told["forked"]["imported"]
    assert told["forked"]["threads"] == 1, "no thread that it is not a copy of held a lock"
    assert told["title"] == "whisper-fleet: fork server"


def test_it_has_the_environment_of_the_worker_as_it_is_now(told: dict[str, Any]) -> None:
    assert told["forked"]["environment"] == [None, "here"]


def test_what_else_has_to_be_preloaded_has_a_process_of_its_own(told: dict[str, Any]) -> None:
    assert told["other"]["parent"] == told["ids"]["worker"]
    assert not told["other"]["imported"]


def test_vllms_own_way_is_back_afterwards(told: dict[str, Any]) -> None:
    assert told["after"]["parent"] == told["ids"]["worker"]


def test_ctrl_c_is_the_workers_to_answer_from_the_first_moment(told: dict[str, Any]) -> None:
    assert told["forked"]["parent"] == told["ids"]["server"], "the first one lived on"
    assert "Traceback" not in told["errors"]
    assert "KeyboardInterrupt" not in told["errors"]


def test_the_server_ends_without_a_word(told: dict[str, Any]) -> None:
    assert "leaked" not in told["errors"]

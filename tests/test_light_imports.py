"""What any application imports to enqueue tasks stays light: Flower and every client load these modules."""

from __future__ import annotations

import subprocess
import sys
from importlib import resources

import pytest

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


@pytest.mark.parametrize("package", ["producer", "workers"])
def test_type_checkers_read_the_packages(package: str) -> None:
    assert (resources.files(package) / "py.typed").is_file()

"""The storage module of the registry package `open-dataflow`, without the heavy packages that it names.

It is fetched once, into the repository's .cache, with the one small package that importing that module needs.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

VERSION = "1.0.13"
ROOT = Path(__file__).parent.parent
CACHE = ROOT / ".cache" / f"open-dataflow-{VERSION}"
INSTALL_SECONDS = 180


class NoDataFlowError(Exception):
    """The package could not be fetched."""


def storage_module_or_skip() -> ModuleType:
    """For fixtures: a laptop without a registry skips, CI fails."""
    try:
        if not CACHE.exists():
            _install()
    except NoDataFlowError as error:
        if os.environ.get("CI", "").lower() in ("true", "1"):
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))
    sys.path.append(str(CACHE))
    try:
        return importlib.import_module("dataflow.utils.storage")
    finally:
        sys.path.remove(str(CACHE))


def _install() -> None:
    """Into CACHE, as a whole or not at all."""
    CACHE.parent.mkdir(parents=True, exist_ok=True)
    said = "no installer: neither uv nor pip is here"
    with tempfile.TemporaryDirectory(prefix=f".{CACHE.name}.", dir=CACHE.parent) as made:
        for command in _installers():
            target = Path(made) / "packages"
            arguments = ["--no-deps", "--target", str(target), f"open-dataflow=={VERSION}", "colorlog"]
            try:
                done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=INSTALL_SECONDS)
            except subprocess.TimeoutExpired as error:
                raise NoDataFlowError(f"open-dataflow could not be fetched: {error}") from None
            if done.returncode == 0:
                try:
                    target.rename(CACHE)
                except OSError:
                    if not CACHE.exists():  # else another test run was faster
                        raise
                return
            said = (done.stderr.strip().splitlines() or ["?"])[-1]
            shutil.rmtree(target, ignore_errors=True)
    raise NoDataFlowError(f"open-dataflow could not be fetched: {said}")


def _installers() -> Iterator[list[str]]:
    for uv in (shutil.which("uv"), ROOT / ".cache" / "uv" / "bin" / "uv"):
        if uv is not None and Path(uv).exists():
            yield [str(uv), "pip", "install", "--quiet", "--python", sys.executable]
    for python in (sys.executable, shutil.which("python3")):
        if python is not None:
            yield [python, "-m", "pip", "install", "--quiet"]

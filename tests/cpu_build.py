"""Marks for what only vLLM's CPU build has: ranks that keep encodings; on x86-64 AMD's kernels and Intel's OpenMP.

There a test of them fails if one is missing; beside a GPU build there is nothing to test.
"""

from __future__ import annotations

import platform
import sys

import pytest

from workers.device import device_kind

ON_A_CPU = device_kind() == "cpu"
ON_X86_64 = ON_A_CPU and sys.platform == "linux" and platform.machine() == "x86_64"

only_on_a_cpu = pytest.mark.skipif(not ON_A_CPU, reason="for vLLM's CPU build")
only_on_x86_64 = pytest.mark.skipif(not ON_X86_64, reason="for Linux on x86-64, beside vLLM's CPU build")

"""Marks for what only vLLM's CPU build has: ranks that keep encodings; on x86-64 AMD's kernels and Intel's OpenMP.

There a test of them fails if one is missing; beside a GPU build there is nothing to test.
"""

from __future__ import annotations

import platform
import sys

import pytest

from workers.device import device_kind
from workers.vllm_options import intel_openmp, is_preloadable

ON_A_CPU = device_kind() == "cpu"
ON_X86_64 = ON_A_CPU and sys.platform == "linux" and platform.machine() == "x86_64"

only_on_a_cpu = pytest.mark.skipif(not ON_A_CPU, reason="for vLLM's CPU build")
only_on_x86_64 = pytest.mark.skipif(not ON_X86_64, reason="for Linux on x86-64, beside vLLM's CPU build")

_OPENMP = intel_openmp() if ON_X86_64 else None
#: A checkout with a space in its path has an OpenMP that cannot be preloaded.
PRELOADS = ON_X86_64 and (_OPENMP is None or is_preloadable(_OPENMP))
only_with_openmp = pytest.mark.skipif(not PRELOADS, reason="for Linux on x86-64, where Intel's OpenMP can be preloaded")

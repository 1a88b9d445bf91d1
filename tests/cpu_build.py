"""Where vLLM's CPU build brings libraries of x86-64 along: AMD's kernels (zentorch) and Intel's OpenMP.

There a test of them fails if one is missing; elsewhere there is nothing to test.
"""

from __future__ import annotations

import platform
import sys

import pytest

from workers.device import device_kind

ON_X86_64 = device_kind() == "cpu" and sys.platform == "linux" and platform.machine() == "x86_64"

only_on_x86_64 = pytest.mark.skipif(not ON_X86_64, reason="for Linux on x86-64, beside vLLM's CPU build")

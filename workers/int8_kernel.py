"""vLLM's product of eight-bit layers on a CPU with AMX tiles, fit for Whisper. Imported by a CPU engine's ranks.

vLLM 0.32 has a kernel of its own there (`kernels/linear/scaled_mm/cpu.py`). It takes one row a token and refuses the
batches of Whisper's encoder ("mat1 must be a 2D tensor"; the other kernel's inputs are laid flat since
vllm-project/vllm#33727), and it takes activations of 16 bits only, which vLLM does not look at.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

#: What the kernel takes besides weights of eight bits.
TILE_DTYPES = (torch.bfloat16, torch.float16)


def mend() -> None:
    """Have layers that vLLM builds from now on take [batch, positions, width], and activations of 32 bits."""
    try:
        cpu: Any = importlib.import_module("vllm.model_executor.kernels.linear.scaled_mm.cpu")
    except ImportError:  # a vLLM that has it elsewhere: tests/workers/test_vllm_contract.py tells
        return
    if not isinstance(cpu.check_cpu_sgl_kernel, _Checked):
        cpu.check_cpu_sgl_kernel = _Checked(cpu.check_cpu_sgl_kernel)
        kernel = cpu.CPUInt8ScaledMMLinearKernel
        kernel._apply_weights_sgl = flat(kernel._apply_weights_sgl)


class _Checked:
    """Whether vLLM is to take the kernel for a layer: not in a model of 32 bits (the default type while it loads)."""

    def __init__(self, fits: Callable[[int, int, torch.dtype], bool]) -> None:
        self._fits = fits

    def __call__(self, n: int, k: int, dtype: torch.dtype) -> bool:
        return torch.get_default_dtype() in TILE_DTYPES and self._fits(n, k, dtype)


def flat(product: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A layer's product for one row a token, of inputs of any shape [..., width]."""

    def of_any_shape(self: Any, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        rows = product(self, layer, x.reshape(-1, x.shape[-1]), bias)
        return rows.reshape(*x.shape[:-1], rows.shape[-1])

    return of_any_shape

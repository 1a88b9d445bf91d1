"""What a CPU engine's ranks do besides: vLLM loads `CpuRanks` by its name into its worker processes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from workers.encoder_cache import EncoderCache

#: How vLLM 0.32 multiplies in eight bits where the CPU has AMX tiles: with a kernel for one row a token, which refuses
#: the batches of Whisper's encoder ("mat1 must be a 2D tensor"; vLLM `kernels/linear/scaled_mm/cpu.py`). Its kernel
#: for other CPUs lays them flat itself.
TILES_METHOD = "_apply_weights_sgl"


class CpuRanks:
    """Methods that vLLM adds to its worker class and calls in every rank (`AsyncLLM.collective_rpc`)."""

    model_runner: Any

    def prepare_whisper(self, kept_encodings: int) -> None:
        """Have the loaded model compute in eight bits, and remember what it makes of the last so many windows."""
        model = self.model_runner.model
        flatten_inputs(model.modules())
        if kept_encodings:
            model.embed_multimodal = EncoderCache(model.embed_multimodal, kept_encodings)


def flatten_inputs(modules: Iterable[Any]) -> int:
    """Have a model's eight-bit layers take [batch, positions, width] too; how many of its modules had to learn it."""
    kernels: list[Any] = [getattr(getattr(module, "scheme", None), "kernel", None) for module in modules]
    tiles = [one for one in kernels if getattr(getattr(one, "linear_method", None), "__name__", "") == TILES_METHOD]
    for kernel in tiles:
        kernel.linear_method = _Flat(kernel.linear_method)
    return len(tiles)


class _Flat:
    """A layer's product for one row a token, of inputs of any shape [..., width]."""

    def __init__(self, product: Any) -> None:
        self._product = product

    def __call__(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        rows: torch.Tensor = self._product(layer, x.reshape(-1, x.shape[-1]), bias)
        return rows.reshape(*x.shape[:-1], rows.shape[-1])

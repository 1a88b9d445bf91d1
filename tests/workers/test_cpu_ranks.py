"""The loaded model remembers encodings, and its eight-bit layers take the encoder's batches on every CPU."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed (whisper-fleet without an engine)")

import torch

from workers.cpu_ranks import CpuRanks, flatten_inputs


class Kernel:
    """As vLLM's: ``linear_method`` is what it has chosen for this CPU."""

    def __init__(self, tiles: bool) -> None:
        self.linear_method: Any = self._apply_weights_sgl if tiles else self._apply_weights_onednn

    def _apply_weights_sgl(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if x.dim() != 2:
            raise RuntimeError("mat1 must be a 2D tensor")
        return torch.nn.functional.linear(x, layer.weight, bias)

    def _apply_weights_onednn(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return torch.nn.functional.linear(x, layer.weight, bias)


class Layer(torch.nn.Module):
    def __init__(self, tiles: bool) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3), requires_grad=False)
        self.scheme = SimpleNamespace(kernel=Kernel(tiles))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scheme.kernel.linear_method(self, x, torch.ones(2))


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([Layer(tiles=True), Layer(tiles=False), torch.nn.Linear(3, 2)])
        self.encoded: list[int] = []

    def embed_multimodal(self, *, input_features: torch.Tensor) -> Sequence[torch.Tensor]:
        self.encoded.append(len(input_features))
        return self.layers[0](input_features).unbind(0)


@pytest.mark.parametrize("shape", [(3,), (5, 3), (4, 5, 3), (2, 4, 5, 3), (1, 1500, 3)])
def test_inputs_of_any_shape_are_multiplied_row_by_row(shape: tuple[int, ...]) -> None:
    layer = Layer(tiles=True)
    x = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    if len(shape) != 2:
        with pytest.raises(RuntimeError, match="2D"):
            layer(x)

    assert flatten_inputs([layer]) == 1

    assert torch.equal(layer(x), Layer(tiles=False)(x))


def test_other_layers_stay_as_they_are_and_none_is_changed_twice() -> None:
    model = Model()
    other = model.layers[1].scheme.kernel
    before = other.linear_method

    assert flatten_inputs(model.modules()) == 1
    assert flatten_inputs(model.modules()) == 0

    assert other.linear_method == before


def test_the_loaded_model_takes_batches_and_remembers_from_then_on() -> None:
    ranks, model = CpuRanks(), Model()
    ranks.model_runner = SimpleNamespace(model=model)

    ranks.prepare_whisper(kept_encodings=1)

    window = torch.ones(1, 4, 3)
    first, again = (model.embed_multimodal(input_features=window) for _ in range(2))
    assert model.encoded == [1]
    assert torch.equal(first[0], again[0])

"""Layers of eight bits take what Whisper gives them, whichever kernel vLLM has for this CPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed (whisper-fleet without an engine)")

import torch
from vllm.platforms import current_platform

from cpu_build import only_on_a_cpu
from workers import int8_kernel
from workers.dtype import computes_int8

WIDTH, OUT = 64, 32


def of_rows_only(kernel: Any, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    if x.dim() != 2:
        raise RuntimeError("mat1 must be a 2D tensor")
    return torch.nn.functional.linear(x, layer.weight, bias)


@pytest.mark.parametrize("shape", [(3,), (5, 3), (4, 5, 3), (2, 4, 5, 3), (1, 1500, 3)])
def test_inputs_of_any_shape_are_multiplied_row_by_row(shape: tuple[int, ...]) -> None:
    layer = SimpleNamespace(weight=torch.arange(6.0).reshape(2, 3))
    x = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    if len(shape) != 2:
        with pytest.raises(RuntimeError, match="2D"):
            of_rows_only(None, layer, x)

    found = int8_kernel.flat(of_rows_only)(None, layer, x, torch.ones(2))

    assert torch.equal(found, torch.nn.functional.linear(x, layer.weight, torch.ones(2)))


@pytest.fixture
def default_dtype() -> Any:
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


@pytest.mark.parametrize(("dtype", "taken"), [(torch.bfloat16, True), (torch.float16, True), (torch.float32, False)])
def test_the_kernel_for_tiles_is_for_models_of_16_bits(dtype: torch.dtype, taken: bool, default_dtype: Any) -> None:
    default_dtype(dtype)
    for fits in (True, False):
        asked: list[tuple[int, int, torch.dtype]] = []
        checked = int8_kernel._Checked(lambda *layer, fits=fits, asked=asked: asked.append(layer) or fits)
        assert checked(OUT, WIDTH, torch.int8) is (taken and fits)
        assert asked == [(OUT, WIDTH, torch.int8)] * taken


@only_on_a_cpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_vllms_own_layer_multiplies_batches_of_whispers_type(dtype: torch.dtype, default_dtype: Any) -> None:
    # Given one of vLLM's layers of eight bits, as it is built while a model of this type loads
    from vllm.model_executor.kernels.linear.scaled_mm import cpu
    from vllm.model_executor.kernels.linear.scaled_mm.ScaledMMLinearKernel import Int8ScaledMMLinearLayerConfig

    current_platform.import_kernels()
    int8_kernel.mend()
    default_dtype(dtype)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-127, 128, (OUT, WIDTH), dtype=torch.int8, generator=generator)
    scale = torch.rand((OUT, 1), dtype=torch.float32, generator=generator) / 100
    layer = torch.nn.Module()
    for name, value in {"weight": weight, "weight_scale": scale}.items():
        layer.register_parameter(name, torch.nn.Parameter(value, requires_grad=False))
    for name in ("input_scale", "input_zero_point", "azp_adj"):
        layer.register_parameter(name, None)
    layer.bias = torch.nn.Parameter(torch.ones(OUT, dtype=dtype), requires_grad=False)
    layer.logical_widths = [OUT]
    config = Int8ScaledMMLinearLayerConfig(is_channelwise=True, is_static_input_scheme=False, input_symmetric=True)
    names = ["weight", "weight_scale", "input_scale", "input_zero_point", "azp_adj"]
    kernel = cpu.CPUInt8ScaledMMLinearKernel(config, names)
    expected_weight = weight.float() * scale
    kernel.process_weights_after_loading(layer)
    # The kernel for tiles where this CPU has them; elsewhere the other has to give the same
    tiles = torch.cpu._is_amx_tile_supported() and dtype is torch.bfloat16
    assert (kernel.linear_method.__func__ is type(kernel)._apply_weights_sgl) == tiles

    # When it gets a batch, as from the encoder, and rows, as from the decoder
    for shape in ((2, 5, WIDTH), (7, WIDTH)):
        x = torch.randn(shape, dtype=torch.float32, generator=generator).to(dtype)
        found = kernel.apply_weights(layer, x, layer.bias)

        # Then it gives the product, but for the rounding to eight bits: on CPUs for which a worker takes it, and on
        # no others (or they are refused for nothing)
        assert found.shape == (*shape[:-1], OUT)
        assert found.dtype is dtype
        expected = x.float() @ expected_weight.t() + 1
        exact = bool((found.float() - expected).abs().mean() < 0.02 * expected.abs().mean())
        assert exact is computes_int8()

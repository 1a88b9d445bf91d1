"""What a rank can be asked for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("torch", reason="torch is not installed (whisper-fleet without an engine)")

import torch

from workers.cpu_ranks import CpuRanks


def test_the_loaded_model_remembers_from_then_on() -> None:
    encoded: list[int] = []

    def encode(*, input_features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        encoded.append(len(input_features))
        return input_features.unbind(0)

    ranks = CpuRanks()
    ranks.model_runner = SimpleNamespace(model=SimpleNamespace(embed_multimodal=encode))

    ranks.keep_encodings(windows=1)

    window = torch.ones(1, 4, 3)
    first, again = (ranks.model_runner.model.embed_multimodal(input_features=window) for _ in range(2))
    assert encoded == [1]
    assert torch.equal(first[0], again[0])

"""Tensors to a file, with errors that say what they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def save(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file as PyTorch reads it. Raises OSError, also where the disk is full.

    (To safetensors that is an error of its own kind.)
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from error

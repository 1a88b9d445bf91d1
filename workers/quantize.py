"""A Hugging Face Whisper folder with linear layers of eight bits: weights per output channel, activations per token.

The layout is compressed-tensors' ``int-quantized`` (W8A8), which vLLM learns from ``config.json``: integers of ±127 and
a float32 scale a row, rounded to nearest. Embeddings, convolutions, norms, biases and the output layer keep their type.

Light to import: torch and safetensors are loaded when a model is written.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers.checkpoint import read_json
from workers.errors import ModelLoadError

if TYPE_CHECKING:
    import torch

#: Part of every cache key: something else written gets a new number.
QUANTIZER_VERSION = 1

#: Where ``config.json`` says it.
_CONFIG_KEY = "quantization_config"
_LINEAR = re.compile(r"\.layers\.\d+\..*\b(q_proj|k_proj|v_proj|out_proj|fc1|fc2)\.weight$")
_LARGEST = 127
_EIGHT_BITS = {"num_bits": 8, "type": "int", "symmetric": True}
_QUANTIZATION: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": _EIGHT_BITS | {"strategy": "channel", "dynamic": False},
            "input_activations": _EIGHT_BITS | {"strategy": "token", "dynamic": True},
        }
    },
    "ignore": ["proj_out"],
}


def quantize(folder: Path, target: Path) -> None:
    """Write the model in ``folder`` with eight-bit linear layers into ``target``, an empty folder.

    Raises ModelLoadError for a model that is quantized already or has no layers like Whisper's, OSError where files
    cannot be written.
    """
    from safetensors import SafetensorError, safe_open

    from workers.weights import save

    config = read_json(folder / "config.json")
    if _CONFIG_KEY in config:
        raise ModelLoadError(f"{folder} is quantized already: WHISPER_QUANTIZATION is for float weights")
    tensors: dict[str, torch.Tensor] = {}
    try:
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as weights:
                for name in weights.keys():  # noqa: SIM118 (not a dict)
                    tensors |= _quantized(name, weights.get_tensor(name))
    except SafetensorError as error:
        raise ModelLoadError(f"cannot read the weights in {folder}: {error}") from error
    if not any(name.endswith(".weight_scale") for name in tensors):
        raise ModelLoadError(f"{folder} has no linear layers with Whisper's names")
    for path in folder.iterdir():
        if path.is_file() and path.suffix in (".json", ".txt") and path.name != "model.safetensors.index.json":
            shutil.copyfile(path, target / path.name)
    save(tensors, target / "model.safetensors")
    text = json.dumps(config | {_CONFIG_KEY: _QUANTIZATION}, ensure_ascii=False, indent=2)
    (target / "config.json").write_text(text + "\n", encoding="utf-8")


def _quantized(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """What stands in the new file for one tensor: itself, or integers (rows, columns) and scales (rows, 1)."""
    import torch

    if not _LINEAR.search(name):
        return {name: weight}
    rows = weight.float()
    scale = rows.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / _LARGEST
    integers = (rows / scale).round().clamp(-_LARGEST, _LARGEST).to(torch.int8)
    return {name: integers, f"{name}_scale": scale}

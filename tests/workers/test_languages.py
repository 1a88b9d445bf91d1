"""Languages as people write them; the tables are held against those of transformers."""

import re

import pytest

from workers.errors import TranscriptionError
from workers.languages import (
    ALIASES,
    LANGUAGES,
    LANGUAGES_WITHOUT_SPACES,
    UNSPACED_LETTERS,
    canonical_language,
    language_code,
    language_tokens,
)


def test_tables_are_whispers():
    from transformers.models.whisper.tokenization_whisper import LANGUAGES as THEIRS
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    assert list(LANGUAGES.items()) == list(THEIRS.items())
    assert {name: code for code, name in LANGUAGES.items()} | ALIASES == TO_LANGUAGE_CODE
    assert len(LANGUAGES) == 100
    assert len(ALIASES) == 12


def test_every_code_name_and_alias_in_any_case():
    for code, name in LANGUAGES.items():
        assert language_code(code) == language_code(name) == language_code(f"  {name.upper()} ") == code
    for alias, code in ALIASES.items():
        assert language_code(alias.title()) == code


@pytest.mark.parametrize(
    ("written", "code"),
    [
        ("en-US", "en"),
        ("zh_CN", "zh"),
        ("ZH-Hant-TW", "zh"),
        ("haw-US", "haw"),
        ("Haitian  Creole", "ht"),
        ("yue", "yue"),
    ],
)
def test_tags_and_odd_spelling(written, code):
    assert language_code(written) == code


@pytest.mark.parametrize("written", ["auto", "AUTO", " auto ", "per-window", " Per-Window "])
def test_auto_and_per_window_mean_detect(written):
    assert language_code(written) is None


@pytest.mark.parametrize(
    ("written", "travels"),
    [
        ("auto", "auto"),
        (" AUTO", "auto"),
        ("per-window", "per-window"),
        (" Per-Window ", "per-window"),
        ("German", "de"),
        ("zh_CN", "zh"),
        ("Valencian", "ca"),
    ],
)
def test_language_as_it_travels(written, travels):
    assert canonical_language(written) == travels
    assert canonical_language(travels) == travels


@pytest.mark.parametrize(
    ("written", "hint"),
    [("germn", "german (de)"), ("Spansh", "spanish (es)"), ("portugese", "portuguese (pt)"), ("ennn", "en (english)")],
)
def test_unknown_language_names_what_is_near(written, hint):
    with pytest.raises(TranscriptionError) as caught:
        language_code(written)
    assert caught.value.type == "unknown_language"
    assert repr(written) in caught.value.message
    assert hint in caught.value.message
    assert "`auto` and `per-window` detect" in caught.value.message
    with pytest.raises(TranscriptionError, match="unknown_language"):
        canonical_language(written)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("written", ["", "-", "klingon!", "english-US", "x-en", "<|en|>", "per window", "auto-window"])
def test_what_is_no_language_is_refused(written):
    with pytest.raises(TranscriptionError, match="unknown_language"):
        language_code(written)


def test_languages_without_spaces_are_languages():
    assert LANGUAGES.keys() >= LANGUAGES_WITHOUT_SPACES


@pytest.mark.parametrize("text", ["天气", "𠮷", "ひらがな", "カタカナー", "人々", "ขอบคุณ", "ຂອບໃຈ", "ကျေးဇူး"])
def test_letters_of_scripts_without_spaces(text):
    assert re.fullmatch(f"[{UNSPACED_LETTERS}]+", text)


@pytest.mark.parametrize("text", ["weather", "погода", "تشكر", "감사합니다", "नमस्ते", "123", "。、「」", " "])
def test_letters_of_scripts_with_spaces(text):
    assert not re.search(f"[{UNSPACED_LETTERS}]", text)


def test_language_tokens_keep_whispers_order_and_skip_what_is_missing():
    assert language_tokens({"<|zh|>": 7, "<|en|>": 5, "<|xx|>": 6, "en": 1}) == {"en": 5, "zh": 7}
    assert list(language_tokens({"<|zh|>": 7, "<|en|>": 5})) == ["en", "zh"]

"""The languages that Whisper knows, and the many ways in which people write them.

Source: ``LANGUAGES`` and ``TO_LANGUAGE_CODE`` of openai/whisper (``whisper/tokenizer.py``), in the order of the tokens.
"""

from __future__ import annotations

import difflib
import re

from workers.errors import TranscriptionError

#: Language code (as in Whisper's token ``<|code|>``) -> English name. Cantonese came with large-v3.
LANGUAGES: dict[str, str] = {
    "en": "english",
    "zh": "chinese",
    "de": "german",
    "es": "spanish",
    "ru": "russian",
    "ko": "korean",
    "fr": "french",
    "ja": "japanese",
    "pt": "portuguese",
    "tr": "turkish",
    "pl": "polish",
    "ca": "catalan",
    "nl": "dutch",
    "ar": "arabic",
    "sv": "swedish",
    "it": "italian",
    "id": "indonesian",
    "hi": "hindi",
    "fi": "finnish",
    "vi": "vietnamese",
    "he": "hebrew",
    "uk": "ukrainian",
    "el": "greek",
    "ms": "malay",
    "cs": "czech",
    "ro": "romanian",
    "da": "danish",
    "hu": "hungarian",
    "ta": "tamil",
    "no": "norwegian",
    "th": "thai",
    "ur": "urdu",
    "hr": "croatian",
    "bg": "bulgarian",
    "lt": "lithuanian",
    "la": "latin",
    "mi": "maori",
    "ml": "malayalam",
    "cy": "welsh",
    "sk": "slovak",
    "te": "telugu",
    "fa": "persian",
    "lv": "latvian",
    "bn": "bengali",
    "sr": "serbian",
    "az": "azerbaijani",
    "sl": "slovenian",
    "kn": "kannada",
    "et": "estonian",
    "mk": "macedonian",
    "br": "breton",
    "eu": "basque",
    "is": "icelandic",
    "hy": "armenian",
    "ne": "nepali",
    "mn": "mongolian",
    "bs": "bosnian",
    "kk": "kazakh",
    "sq": "albanian",
    "sw": "swahili",
    "gl": "galician",
    "mr": "marathi",
    "pa": "punjabi",
    "si": "sinhala",
    "km": "khmer",
    "sn": "shona",
    "yo": "yoruba",
    "so": "somali",
    "af": "afrikaans",
    "oc": "occitan",
    "ka": "georgian",
    "be": "belarusian",
    "tg": "tajik",
    "sd": "sindhi",
    "gu": "gujarati",
    "am": "amharic",
    "yi": "yiddish",
    "lo": "lao",
    "uz": "uzbek",
    "fo": "faroese",
    "ht": "haitian creole",
    "ps": "pashto",
    "tk": "turkmen",
    "nn": "nynorsk",
    "mt": "maltese",
    "sa": "sanskrit",
    "lb": "luxembourgish",
    "my": "myanmar",
    "bo": "tibetan",
    "tl": "tagalog",
    "mg": "malagasy",
    "as": "assamese",
    "tt": "tatar",
    "haw": "hawaiian",
    "ln": "lingala",
    "ha": "hausa",
    "ba": "bashkir",
    "jw": "javanese",
    "su": "sundanese",
    "yue": "cantonese",
}

#: Further names -> code.
ALIASES: dict[str, str] = {
    "burmese": "my",
    "valencian": "ca",
    "flemish": "nl",
    "haitian": "ht",
    "letzeburgesch": "lb",
    "pushto": "ps",
    "panjabi": "pa",
    "moldavian": "ro",
    "moldovan": "ro",
    "sinhalese": "si",
    "castilian": "es",
    "mandarin": "zh",
}

#: Smallest vocabulary of a multilingual model (openai/whisper ``Whisper.is_multilingual``); 51864 is English-only.
MULTILINGUAL_VOCAB = 51865

#: Written without spaces between words, so pieces of text are joined without one.
LANGUAGES_WITHOUT_SPACES = frozenset({"zh", "ja", "th", "lo", "my", "yue"})
#: Their letters, for a set in a regular expression: Thai and Lao, Myanmar, kana, Han.
UNSPACED_LETTERS = (
    r"\u0e00-\u0eff\u1000-\u109f\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)

#: What users write to have the language detected: one for the whole recording, or each window its own.
AUTO, PER_WINDOW = "auto", "per-window"

_CODES: dict[str, str] = {
    **{name: code for code, name in LANGUAGES.items()},
    **ALIASES,
    **{code: code for code in LANGUAGES},
}


def language_code(name: str) -> str | None:
    """Whisper's code of a language given by name, alias or code, in any case; ``auto``, ``per-window``: None (detect).

    Of a tag such as ``en-US`` or ``zh_CN`` the first part counts. Raises TranscriptionError ``unknown_language`` with
    the nearest names and codes.
    """
    wanted = " ".join(name.lower().split())
    if wanted in (AUTO, PER_WINDOW):
        return None
    first_part = re.split(r"[-_]", wanted, maxsplit=1)[0]
    code = _CODES.get(wanted) or (first_part if first_part in LANGUAGES else None)
    if code is None:
        raise TranscriptionError("unknown_language", f"unknown language {name!r}{_near(wanted)}{_HOW_TO}")
    return code


def canonical_language(name: str) -> str:
    """``name`` as it travels: a code, ``auto`` or ``per-window``. Raises as `language_code` does."""
    return language_code(name) or (PER_WINDOW if PER_WINDOW in name.lower() else AUTO)


def language_tokens(vocabulary: dict[str, int]) -> dict[str, int]:
    """Language code -> id of its token in a tokenizer's vocabulary, in Whisper's order."""
    return {code: vocabulary[f"<|{code}|>"] for code in LANGUAGES if f"<|{code}|>" in vocabulary}


_HOW_TO = (
    f"; languages are English names or codes ({len(LANGUAGES)}: `workers.languages.LANGUAGES`), "
    "`auto` and `per-window` detect"
)


def _near(wanted: str) -> str:
    matches = difflib.get_close_matches(wanted, _CODES, n=3, cutoff=0.6)
    shown = [
        f"{match} ({_CODES[match]})" if match not in LANGUAGES else f"{match} ({LANGUAGES[match]})" for match in matches
    ]
    return f"; did you mean {' or '.join(shown)}?" if shown else ""

"""One settings object from the environment: names, descriptions, and what a wrong value says."""

from __future__ import annotations

import os
import re

import pytest

from workers.audio import AudioLimits
from workers.errors import SettingsError
from workers.gates import Gates
from workers.settings import Settings, load_settings, variables
from workers.speech_spans import WindowOptions

PASSWORD = "hunter2-secret"
FIELDS = Settings.model_fields


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("WHISPER_") or name == "REDIS_URL":
            monkeypatch.delenv(name)


@pytest.mark.parametrize("name", FIELDS)
def test_every_setting_is_described(name: str) -> None:
    description = FIELDS[name].description

    assert description
    assert description.endswith((".", "}."))


@pytest.mark.parametrize(
    ("variable", "value", "field", "expected"),
    [
        ("WHISPER_MODEL", "openai/whisper-tiny", "model", "openai/whisper-tiny"),
        ("WHISPER_TENSOR_PARALLEL_SIZE", "2", "tensor_parallel_size", 2),
        ("WHISPER_ENGINE", "standin", "engine", "standin"),
        ("WHISPER_ENFORCE_EAGER", "false", "enforce_eager", False),
        ("WHISPER_LEASE_SECONDS", "2.5", "lease_seconds", 2.5),
        ("WHISPER_PATH_MAP", '{"/data": "/mnt/data"}', "path_map", {"/data": "/mnt/data"}),
        ("WHISPER_TEMPERATURES", "[0, 0.5, 1.0]", "temperatures", (0.0, 0.5, 1.0)),
        ("WHISPER_LOGPROB_THRESHOLD", "-0.7", "logprob_threshold", -0.7),
        ("WHISPER_COMPRESSION_RATIO_THRESHOLD", "2.1", "compression_ratio_threshold", 2.1),
        ("WHISPER_NO_SPEECH_THRESHOLD", "1", "no_speech_threshold", 1.0),
        ("WHISPER_GOLDEN_CHECK", "false", "golden_check", False),
        ("WHISPER_AUDIO_ROOTS", '["/data", "/mnt"]', "audio_roots", ("/data", "/mnt")),
        ("WHISPER_AUDIO_ROOTS", "[]", "audio_roots", ()),
        ("WHISPER_AUDIO_ROOTS", "", "audio_roots", None),
        ("WHISPER_URL_SCHEMES", '["https", "abfss"]', "url_schemes", ("https", "abfss")),
        ("WHISPER_URL_HOSTS", '["*.example.org"]', "url_hosts", ("*.example.org",)),
        ("WHISPER_MODEL", "", "model", None),
        ("REDIS_URL", "rediss://:pw@redis.example:6380/1", "redis_url", "rediss://:pw@redis.example:6380/1"),
        ("WHISPER_REDIS_URL", "redis://elsewhere:1/0", "redis_url", None),
    ],
)
def test_environment_names(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, field: str, expected: object
) -> None:
    monkeypatch.setenv(variable, value)

    assert getattr(load_settings(), field) == expected


def test_overrides_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHISPER_MAX_TOKENS", "100")
    monkeypatch.setenv("REDIS_URL", "redis://environment:1/0")

    chosen = load_settings(max_tokens=50, redis_url="redis://caller:1/0")

    assert (chosen.max_tokens, chosen.redis_url) == (50, "redis://caller:1/0")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("WHISPER_DTYPE", "int8"),
        ("WHISPER_TENSOR_PARALLEL_SIZE", "0"),
        ("WHISPER_MAX_TOKENS", "449"),
        ("WHISPER_GPU_MEMORY_UTILIZATION", "1.1"),
        ("WHISPER_VISIBILITY_TIMEOUT_SECONDS", "soon"),
        ("WHISPER_ENGINE", "whisper.cpp"),
        ("WHISPER_PATH_MAP", "/data=/mnt"),
        ("WHISPER_PATH_MAP", '["/data"]'),
        ("WHISPER_CHUNK_ROWS", "65"),
        ("WHISPER_AUDIO_ROOTS", "/data"),
        ("WHISPER_AUDIO_ROOTS", '["data"]'),
        ("WHISPER_AUDIO_ROOTS", '"/data"'),
        ("WHISPER_URL_SCHEMES", "https"),
        ("WHISPER_URL_SCHEMES", '["https://"]'),
        ("WHISPER_URL_SCHEMES", '["HTTPS"]'),
        ("WHISPER_URL_SCHEMES", '["file"]'),
        ("WHISPER_URL_SCHEMES", '["s3", "simplecache"]'),
        ("WHISPER_URL_HOSTS", "example.org"),
        ("WHISPER_MAX_REDIRECTS", "-1"),
        ("WHISPER_TEMPERATURES", "0.2"),
        ("WHISPER_TEMPERATURES", "0.0, 0.2"),
        ("WHISPER_TEMPERATURES", "[]"),
        ("WHISPER_TEMPERATURES", "[0, -0.2]"),
        ("WHISPER_TEMPERATURES", "[0, 1.1]"),
        ("WHISPER_TEMPERATURES", '["hot"]'),
        ("WHISPER_LOGPROB_THRESHOLD", "1"),
        ("WHISPER_LOGPROB_THRESHOLD", "nan"),
        ("WHISPER_MIN_SILENCE_SECONDS", "2.6"),
        ("WHISPER_COMPRESSION_RATIO_THRESHOLD", "0"),
        ("WHISPER_NO_SPEECH_THRESHOLD", "1.1"),
        ("WHISPER_GOLDEN_CHECK", "perhaps"),
    ],
)
def test_wrong_value_names_its_variable(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)

    with pytest.raises(SettingsError) as caught:
        load_settings()

    assert str(caught.value).startswith(variable)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value", "example"),
    [
        ("WHISPER_URL_HOSTS", "example.org", '["example.org"]'),
        ("WHISPER_URL_HOSTS", "a.org, b.org", '["a.org", "b.org"]'),
        ("WHISPER_URL_HOSTS", '["a.org"', '["one", "two"]'),
        ("WHISPER_URL_SCHEMES", "https", '["https"]'),
        ("WHISPER_AUDIO_ROOTS", "/data", '["/data"]'),
        ("WHISPER_TEMPERATURES", "0.2", "[0.2]"),
        ("WHISPER_TEMPERATURES", "0, 0.2", "[0, 0.2]"),
        ("WHISPER_PATH_MAP", "/data", '{"/a": "/b"}'),
        ("WHISPER_PATH_MAP", '["/data"]', '{"/a": "/b"}'),
    ],
)
def test_a_list_in_plain_words_is_told_how_to_be_json(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, example: str
) -> None:
    monkeypatch.setenv(variable, value)

    with pytest.raises(SettingsError, match=f"{re.escape(f'must be JSON, as in {example}')}$") as caught:
        load_settings()
    assert str(caught.value).startswith(f"{variable}=")
    monkeypatch.setenv(variable, example)
    load_settings()  # what it is told will do


def test_every_setting_of_several_values_says_that_it_is_json(monkeypatch: pytest.MonkeyPatch) -> None:
    several = [name for name, field in FIELDS.items() if re.search("tuple|dict", str(field.annotation))]
    assert len(several) >= 5
    for name in several:
        monkeypatch.setenv(variable := f"WHISPER_{name.upper()}", "word")
        with pytest.raises(SettingsError, match=rf"^{variable}='word': must be JSON, as in [\[{{]"):
            load_settings()
        monkeypatch.delenv(variable)


def test_all_wrong_values_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHISPER_DTYPE", "int8")
    monkeypatch.setenv("WHISPER_MAX_TOKENS", "many")

    with pytest.raises(SettingsError, match=r"WHISPER_DTYPE='int8': .*; WHISPER_MAX_TOKENS='many': "):
        load_settings()


@pytest.mark.parametrize("url", [f"amqp://u:{PASSWORD}@h", f"redis://:{PASSWORD}@h:port", f"redis://:{PASSWORD}@h/db"])
@pytest.mark.parametrize("by_argument", [False, True])
def test_wrong_broker_url_is_refused_without_its_password(
    monkeypatch: pytest.MonkeyPatch, url: str, by_argument: bool
) -> None:
    if not by_argument:
        monkeypatch.setenv("REDIS_URL", url)

    with pytest.raises(SettingsError) as caught:
        load_settings(**({"redis_url": url} if by_argument else {}))

    assert str(caught.value).startswith("REDIS_URL=(hidden): ")
    assert "Value error" not in str(caught.value)
    assert PASSWORD not in str(caught.value)
    assert caught.value.__suppress_context__, "a traceback would show what the message hides"


def test_password_is_not_shown_with_the_settings() -> None:
    chosen = load_settings(redis_url=f"redis://:{PASSWORD}@h:1/0")

    assert PASSWORD not in f"{chosen} {chosen!r}"
    assert chosen.redis_url is not None
    assert PASSWORD in chosen.redis_url


def test_settings_do_not_change_once_read() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings().max_tokens = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("lease_seconds", "timeout_seconds", "beat_seconds"), [(10, 60, 10), (10, 5, 1.25), (0.5, 60, 0.5)]
)
def test_a_worker_is_heard_of_several_times_before_it_counts_as_silent(
    lease_seconds: float, timeout_seconds: float, beat_seconds: float
) -> None:
    config = load_settings(lease_seconds=lease_seconds, visibility_timeout_seconds=timeout_seconds)
    assert config.beat_seconds == beat_seconds


@pytest.mark.parametrize("part", [AudioLimits, WindowOptions, Gates])
def test_what_tests_take_for_default_is_what_users_get(part: type[AudioLimits | WindowOptions | Gates]) -> None:
    assert part.from_settings(load_settings()) == part()


@pytest.mark.parametrize("name", [name for name in FIELDS if name.endswith("_seconds")])
def test_no_time_is_without_end(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"WHISPER_{name.upper()}", "inf")
    with pytest.raises(SettingsError, match=rf"^WHISPER_{name.upper()}='inf': "):
        load_settings()


@pytest.mark.parametrize(("name", "value"), [("DECODE_TIMEOUT_SECONDS", "1e7"), ("DECODE_MEMORY_BYTES", "1" * 20)])
def test_what_the_system_would_not_take_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"WHISPER_{name}", value)
    with pytest.raises(SettingsError, match=rf"^WHISPER_{name}="):
        load_settings()


def test_what_is_told_to_a_worker_is_a_setting() -> None:
    assert variables(model="a/b", tensor_parallel_size=2, dtype=None, redis_url="redis://h") == {
        "WHISPER_MODEL": "a/b",
        "WHISPER_TENSOR_PARALLEL_SIZE": "2",
        "REDIS_URL": "redis://h",
    }
    with pytest.raises(KeyError):
        variables(tensor_paralel_size=2)

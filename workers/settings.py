"""One validated settings object, read from the environment (``WHISPER_*`` and ``REDIS_URL``).

Light to import: producers, Flower and the worker all read the same names.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Annotated, Literal, get_origin

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from workers.errors import SettingsError
from workers.redis_url import check_url

DEFAULT_REDIS_URL = "redis://localhost:6379/0"
#: Web servers, and object storage that the worker's own configuration leads to.
URL_SCHEMES = ("http", "https", "s3", "gs", "az", "abfs", "hf")
#: fsspec's names for this machine's files and memory, and for one storage read through another: ways around the roots.
LOCAL_SCHEMES = frozenset(
    (
        *("file", "local", "asynclocal", "memory", "data", "git", "jupyter", "generic", "async_wrapper", "dir", "dask"),
        *("dvc", "reference", "cached", "blockcache", "filecache", "simplecache", "libarchive", "tar", "zip"),
    )
)
#: More than any file or process can have, and less than the system's calls take.
MOST_BYTES = 2**62
#: A time that is waited for, in seconds: the system's and Python's waits take some weeks at most.
WaitSeconds = Annotated[float, Field(le=10 * 86_400)]


class Settings(BaseSettings):
    """Everything that can be set, with its unit in its name. ``None`` means: chosen from the device at start-up."""

    model_config = SettingsConfigDict(env_prefix="WHISPER_", frozen=True, env_ignore_empty=True, allow_inf_nan=False)

    # The model and its engine.
    model: str | None = Field(None, description="Hugging Face id, local folder or `whisper-base` (bundled weights).")
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs (on CPU: core groups) that share one engine.")
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = Field(
        "auto",
        description="Weights and activations; auto: on GPU the checkpoint's (16 bits of float32), on CPU the fastest.",
    )
    quantization: Literal["none", "int8"] = Field(
        "none", description="int8: linear layers in 8 bits (weights and activations), from a copy made once."
    )
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="Share of GPU memory that the engine may take.")
    max_num_seqs: int | None = Field(
        None, ge=1, description="Windows decoded together (16 on CPU; on GPU by its memory, at most 128)."
    )
    encode_batch: int | None = Field(
        None,
        ge=1,
        description="Windows encoded per step: max_num_batched_tokens / 1500 (1 on CPU, 4 or 8 on GPU).",
    )
    encode_together: bool = Field(
        False,
        description="Beside a full batch windows wait until so many can be encoded in one step (not yet measured).",
    )
    max_tokens: int = Field(224, ge=1, le=448, description="Most text tokens of one window.")
    cpu_kv_cache_gib: int = Field(
        1,
        ge=1,
        description="Attention cache of a CPU engine, in GiB (27 windows of whisper-base, 2 of large-v3, in float32).",
    )
    cpu_threads_bind: str | None = Field(None, description="Cores of each rank on CPU, as in `0-3|4-7`.")
    enforce_eager: bool | None = Field(None, description="No CUDA graphs and no compilation (default: on CPU only).")
    request_timeout_seconds: WaitSeconds = Field(
        300, gt=0, description="Longest wait for one window's text, for each batch that is to be decoded first."
    )
    engine_stall_seconds: WaitSeconds = Field(
        180, gt=0, description="An engine with work and without any progress for so long counts as dead."
    )
    engine: Literal["vllm", "standin"] = Field(
        "vllm", description="`standin` is a fake for load tests: it transcribes nothing and says so."
    )
    standin_encode_ms: float = Field(1, ge=0, description="Stand-in: time to encode a window, one after another.")
    standin_step_ms: float = Field(1, ge=0, description="Stand-in: time of a decode step, all windows together.")
    standin_steps: int = Field(5, ge=1, description="Stand-in: decode steps of a window.")
    model_cache: str | None = Field(None, description="Folder for converted models (default: the user's cache folder).")

    # The worker.
    concurrency: int | None = Field(
        None,
        ge=1,
        description="Tasks at once; of more than 2 one is for interactive calls only (half of max_num_seqs, and one).",
    )
    decode_processes: int | None = Field(
        None,
        ge=1,
        description="Audio decode processes, and one for calls (cores, at most 8; beside a GPU twice them, 8 to 32).",
    )
    worker_restarts: int = Field(10, ge=0, description="Times in a row that a worker which failed is started again.")
    drain_seconds: WaitSeconds = Field(60, ge=0, description="Grace for running records after SIGTERM.")
    visibility_timeout_seconds: WaitSeconds = Field(
        60, ge=5, description="After this a silent worker's messages are given out again."
    )
    lease_seconds: WaitSeconds = Field(
        10,
        gt=0,
        description="How often a worker renews its hold on its messages (at least four times in the timeout above).",
    )
    restore_seconds: WaitSeconds = Field(10, gt=0, description="How often workers look for messages of silent workers.")
    retry_seconds: WaitSeconds = Field(
        0.5, ge=0, description="First pause before a row is tried again whose storage or network failed."
    )

    # Audio.
    max_audio_seconds: float = Field(24 * 3600, gt=0, description="Longest recording.")
    span_seconds: float = Field(
        600, ge=10, description="Long recordings are cut into spans of about this length, each at a pause."
    )
    split_seconds: float = Field(
        1200, ge=0, description="A job's recordings beyond this are shared span by span by all workers; 0: never."
    )
    max_audio_bytes: int = Field(8 * 2**30, gt=0, le=MOST_BYTES, description="Largest audio file.")
    max_channels: int = Field(8, ge=1, description="Most channels of a recording that `--channels split` takes apart.")
    max_sample_rate_hz: int = Field(768_000, ge=8_000, description="Highest sample rate.")
    decode_timeout_seconds: WaitSeconds = Field(
        60, gt=0, description="Longest wait for the next piece of decoded audio."
    )
    decode_cpu_seconds: WaitSeconds = Field(3600, gt=0, description="Most processor time to decode one recording.")
    decode_memory_bytes: int = Field(
        4 * 2**30, ge=2**30, le=MOST_BYTES, description="Address space of one decode process."
    )
    download_timeout_seconds: WaitSeconds = Field(3600, gt=0, description="Longest download of one recording.")
    max_redirects: int = Field(5, ge=0, description="Most redirects of one download.")
    audio_roots: tuple[str, ...] | None = Field(
        None, description='Folders below which audio files may lie, as JSON: ["/data"] (default: any).'
    )
    url_schemes: tuple[str, ...] = Field(
        URL_SCHEMES,
        description="Schemes of URLs that are fetched, as JSON; all but http and https need their fsspec package.",
    )
    url_hosts: tuple[str, ...] | None = Field(
        None,
        description='Hosts and buckets to fetch from, as JSON: ["media.example.org", "*.example.com"] (default: any).',
    )
    allow_private_addresses: bool = Field(
        False,
        description="Fetch from hosts without a public address (loopback, private networks), and through a proxy.",
    )
    path_map: dict[str, str] = Field(
        default_factory=dict, description='Path prefixes of the producer and what they are here, as JSON: {"/a": "/b"}.'
    )
    vad_threshold: float = Field(0.5, gt=0, lt=1, description="Speech probability from which a 32 ms frame is speech.")
    # Of a long silence no more than twice `silence.KEPT_SECONDS` stays to be found.
    min_silence_seconds: float = Field(
        0.16, ge=0, le=2.5, description="Shortest pause that ends a stretch of speech (at most 2.5)."
    )
    min_speech_seconds: float = Field(0.1, ge=0, description="Shorter speech is taken for noise.")
    compression_ratio_threshold: float = Field(2.4, gt=0, description="Text that zlib shortens more repeats itself.")
    logprob_threshold: float = Field(
        -1.0, le=0, description="Text whose tokens are less likely on average is tried again."
    )
    no_speech_threshold: float = Field(
        0.6, ge=0, le=1, description="Unlikely text at a higher probability of no speech is taken for silence."
    )
    temperatures: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        (0.0, 0.2, 0.4, 0.6, 0.8, 1.0), min_length=1, description="Temperatures of the tries of a window, as JSON."
    )
    golden_check: bool = Field(True, description="Transcribe a known clip at start; refuse to serve if it is wrong.")
    speech_pad_seconds: float = Field(0.3, ge=0, description="Kept around each stretch of speech.")

    # The producer.
    window_rows: int | None = Field(
        None, ge=1, description="Most rows of a job between sent and journaled (2000, more for large fleets)."
    )
    chunk_rows: int | None = Field(
        None, ge=1, le=64, description="Rows per message (default: 1 to 64, about 60 s of audio in large jobs)."
    )
    stall_seconds: WaitSeconds = Field(
        15, gt=0, description="A job that stands still for so long is looked after: lost rows are sent again."
    )

    redis_url: str | None = Field(
        None,
        validation_alias="REDIS_URL",
        repr=False,  # it may hold a password
        description="The broker (Celery's spelling).",
    )

    @property
    def beat_seconds(self) -> float:
        """How often a worker says that it holds what it holds: several times before that would count as silence."""
        return min(self.lease_seconds, self.visibility_timeout_seconds / 4)

    @field_validator("audio_roots")
    @classmethod
    def _absolute_roots(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for root in value or ():
            if not root.startswith("/"):
                raise ValueError(f"{root!r} must be an absolute path")
        return value

    @field_validator("url_schemes")
    @classmethod
    def _remote_schemes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for scheme in value:
            if scheme in LOCAL_SCHEMES:
                raise ValueError(f"{scheme!r} would lead past WHISPER_AUDIO_ROOTS; files need no scheme")
            if not re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme):
                raise ValueError(f"{scheme!r} is no scheme (lower case, without ://)")
        return value

    @field_validator("redis_url")
    @classmethod
    def _usable_url(cls, value: str | None) -> str | None:
        if value is not None:
            check_url(value)
        return value


def variable(name: str) -> str:
    """The environment variable of a setting. Raises KeyError where there is no such setting."""
    return str(Settings.model_fields[name].validation_alias or f"{Settings.model_config['env_prefix']}{name.upper()}")


def variables(**values: object) -> dict[str, str]:
    """The environment that sets these, but for what is None. Raises KeyError where there is no such setting."""
    return {variable(name): str(value) for name, value in values.items() if value is not None}


def load_settings(**overrides: object) -> Settings:
    """Settings from the environment; ``overrides`` win. Raises SettingsError with one line per wrong setting."""
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        lines = []
        for item in error.errors():
            name = str(item["loc"][0])
            shown = "(hidden)" if name == "REDIS_URL" else repr(item["input"])
            is_no_json = item["type"] in ("tuple_type", "dict_type")
            why = _must_be_json(name, item["input"]) if is_no_json else item["msg"].removeprefix("Value error, ")
            lines.append(f"{variable(name) if name in Settings.model_fields else name}={shown}: {why}")
        raise SettingsError("; ".join(lines)) from None
    except ValueError as error:  # pydantic-settings: a JSON setting that is no JSON, named as `field "path_map"`
        name, cause = str(error).partition('"')[2].partition('"')[0], error.__cause__
        given = cause.doc if isinstance(cause, json.JSONDecodeError) else ""
        raise SettingsError(f"{variable(name)}={given!r}: {_must_be_json(name, given)}") from None


def _must_be_json(name: str, given: object) -> str:
    """What a list or dict should be like: where it can be guessed, what was meant by the words ``given``."""
    example = '{"/a": "/b"}'
    if get_origin(Settings.model_fields[name].annotation) is not dict:
        text = given if isinstance(given, str) else json.dumps(given)
        words: list[object] = ["one", "two"]
        if text and text[0] not in '[{"':
            try:
                words = json.loads(f"[{text}]")
            except ValueError:
                words = [word.strip() for word in text.split(",")]
        example = json.dumps(words, ensure_ascii=False)
    return f"must be JSON, as in {example}"


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The settings of this process, read once."""
    return load_settings()

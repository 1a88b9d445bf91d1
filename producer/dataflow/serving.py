"""What runs the engine: a fleet of this process's own, started when it is first needed, or the one of ``REDIS_URL``."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

from producer.display import Display
from producer.errors import FleetError, UsageError
from producer.job import Job
from producer.keeper import FleetKeeper
from producer.run import RunOptions, reach, run_job
from workers.decoding import DECODER_POSITIONS
from workers.errors import SettingsError
from workers.models import STANDIN, model_slug
from workers.presence import Presence, live_workers
from workers.redis_client import shown_url
from workers.settings import Settings, load_settings, variable, variables

log = logging.getLogger(__name__)

_TENSOR_PARALLEL_SIZE, _MEMORY_UTILIZATION = 1, 0.9


@dataclass(slots=True)
class _Own:
    """The fleet that a serving has started, if any, and the process that did."""

    keeper: FleetKeeper | None = None
    pid: int = field(default_factory=os.getpid)

    @property
    def current(self) -> FleetKeeper | None:
        """The fleet of this process; the keeper of one that forked it has no thread here, and ends without a word."""
        return self.keeper if self.pid == os.getpid() else None

    def stop(self) -> None:
        """End the fleet; nothing where there is none, or where this is a forked child."""
        keeper, self.keeper = self.current, None
        if keeper is not None:
            keeper.stop()


class LocalModelLLMServing_vllm:  # noqa: N801 - DataFlow's name
    """The engine of a pipeline's transcriptions, by the name and arguments that DataFlow has for it.

    Making one starts nothing. Without ``REDIS_URL`` the first transcription starts a private Valkey and a local worker
    that loads ``hf_model_name_or_path`` (a Hugging Face id, a local folder of any name, or a CTranslate2 folder); they
    serve all further transcriptions until `cleanup`, or until Python ends. With ``REDIS_URL`` the transcriptions go to
    its workers, and a model, ``vllm_tensor_parallel_size`` or ``vllm_max_tokens`` that none of them has is an error.

    Arguments that are left at their defaults leave the ``WHISPER_*`` settings as they are; ``vllm_max_tokens=None`` is
    as many as a 30 s window can need. Decoding is greedy and gives the same text every time, so ``vllm_top_p``,
    ``vllm_top_k`` and ``vllm_seed`` change nothing. On the workers of a shared fleet, memory and the folder of
    downloads are their own business. Raises UsageError for what Whisper or this fleet cannot do.
    """

    def __init__(
        self,
        hf_model_name_or_path: str | None = None,
        hf_cache_dir: str | None = None,
        hf_local_dir: str | None = None,
        vllm_tensor_parallel_size: int = _TENSOR_PARALLEL_SIZE,
        vllm_temperature: float | None = None,
        vllm_top_p: float | None = None,
        vllm_max_tokens: int | None = None,
        vllm_top_k: int | None = None,
        vllm_repetition_penalty: float | None = None,
        vllm_seed: int | None = None,
        vllm_max_model_len: int | None = None,
        vllm_gpu_memory_utilization: float = _MEMORY_UTILIZATION,
    ) -> None:
        refused = (
            ("hf_local_dir", hf_local_dir, hf_local_dir is None, "name the folder as hf_model_name_or_path instead"),
            (
                *("vllm_temperature", vllm_temperature, vllm_temperature in (None, 0)),
                "windows are decoded at 0, and at the further WHISPER_TEMPERATURES where that fails",
            ),
            (
                *("vllm_repetition_penalty", vllm_repetition_penalty, vllm_repetition_penalty in (None, 1)),
                "leave it out: loops are found and decoded again",
            ),
            (
                *("vllm_max_model_len", vllm_max_model_len, vllm_max_model_len in (None, DECODER_POSITIONS)),
                f"Whisper's decoder has {DECODER_POSITIONS} positions",
            ),
        )
        for name, value, allowed, advice in refused:
            if not allowed:
                raise UsageError(f"{name}={value!r} is not possible: {advice}")
        self.hf_model_name_or_path = hf_model_name_or_path and os.fspath(hf_model_name_or_path)
        self.hf_cache_dir = hf_cache_dir
        self.vllm_tensor_parallel_size = vllm_tensor_parallel_size
        self.vllm_max_tokens = vllm_max_tokens
        self.vllm_gpu_memory_utilization = vllm_gpu_memory_utilization
        self.settings()
        self._own = _Own()
        self._lock = threading.Lock()
        # At the end of Python, and when nobody has this serving any more.
        weakref.finalize(self, _Own.stop, self._own)

    def start_serving(self) -> None:
        """Start the own fleet now rather than with the first transcription, or check the workers of ``REDIS_URL``.

        Raises FleetError with the worker's own words when the model cannot be loaded.
        """
        settings = self.settings()
        if settings.redis_url is not None:
            self._check_workers(settings.redis_url)
            return
        with self._lock:
            self._started(settings)

    def cleanup(self) -> None:
        """End the own fleet and free its memory. May be called twice; the next transcription starts it again."""
        with self._lock:
            self._own.stop()

    def model_of_jobs(self) -> str | None:
        """The model that a transcription's job is bound to; None for the one that the fleet has.

        Raises UsageError where no worker of ``REDIS_URL`` is what the arguments say.
        """
        settings = self.settings()
        if settings.redis_url is None:
            return None if settings.engine == "standin" else settings.model
        return self._check_workers(settings.redis_url)

    def own_url(self) -> str | None:
        """The broker of the own fleet, while that is running."""
        keeper = self._own.current
        return keeper.url if keeper is not None and keeper.is_ready else None

    def finish(self, job: Job, display: Display) -> Job:
        """Do what is left of ``job``; one after another. Raises FleetError; the same call later resumes."""
        settings = self.settings()
        if settings.redis_url is not None or job.rows == 0:
            return run_job(job, RunOptions(), settings, display)
        with self._lock:
            if self._own.current is None:
                display.waiting("starting a private Valkey and a local worker")
            keeper = self._started(settings)
            try:
                return run_job(job, RunOptions(), settings, display, keeper)
            except FleetError:
                _stop_if_hopeless(keeper, self._own)
                raise

    def settings(self) -> Settings:
        """The environment's settings and the arguments. Raises UsageError for values that are none."""
        arguments = {
            "model": self._model(),
            "tensor_parallel_size": self.vllm_tensor_parallel_size,
            "gpu_memory_utilization": self.vllm_gpu_memory_utilization,
            "max_tokens": self.vllm_max_tokens,
        }
        named = {"model": "hf_model_name_or_path", **{name: f"vllm_{name}" for name in list(arguments)[1:]}}
        try:
            return load_settings(**{name: value for name, value in arguments.items() if value is not None})
        except SettingsError as error:
            message = str(error)
            for name, argument in named.items():
                if arguments[name] is not None:
                    message = message.replace(f"{variable(name)}=", f"{argument}=")
            raise UsageError(message) from None

    def _started(self, settings: Settings) -> FleetKeeper:
        keeper = self._own.current
        if keeper is None:
            self._own.pid = os.getpid()
            keeper = self._own.keeper = FleetKeeper(1, self._environment(), settings.worker_restarts)
        try:
            keeper.wait()
        except BaseException:
            self._own.stop()
            raise
        return keeper

    def _environment(self) -> dict[str, str]:
        """The settings of the own worker that the arguments make."""
        size, share = self.vllm_tensor_parallel_size, self.vllm_gpu_memory_utilization
        return variables(
            model=self._model(),
            max_tokens=self.vllm_max_tokens,
            tensor_parallel_size=None if size == _TENSOR_PARALLEL_SIZE else size,
            gpu_memory_utilization=None if share == _MEMORY_UTILIZATION else share,
        ) | ({} if self.hf_cache_dir is None else {"HF_HUB_CACHE": self.hf_cache_dir})

    def _model(self) -> str | None:
        """The model's name; a folder's absolute path, so that it is one model wherever it is named from."""
        name = self.hf_model_name_or_path
        return os.path.abspath(name) if name and os.path.isdir(name) else name or None  # noqa: PTH100, PTH112

    def _check_workers(self, url: str) -> str | None:
        """The model for jobs on a shared fleet. Raises UsageError where its live workers are others."""
        redis = reach(url)
        try:
            workers = live_workers(redis)
        finally:
            redis.close()
        model = self._model()
        if workers and all(worker.model == STANDIN for worker in workers):
            log.warning("the workers of %s are stand-ins: they transcribe nothing", shown_url(url))
            model = None
        elif workers and model is not None:
            having = [worker for worker in workers if model_slug(worker.model) == model_slug(model)]
            if not having:
                raise UsageError(_disagreement("hf_model_name_or_path", model, [one.model for one in workers], url))
            workers = having
        if self.vllm_tensor_parallel_size != _TENSOR_PARALLEL_SIZE:
            _check_figure("tensor_parallel_size", self.vllm_tensor_parallel_size, workers, url)
        if self.vllm_max_tokens is not None:
            _check_figure("max_tokens", self.vllm_max_tokens, workers, url)
        return model


def _check_figure(name: str, wanted: int, workers: Sequence[Presence], url: str) -> None:
    """Raise UsageError where every worker says another number."""
    there = [getattr(worker, name) for worker in workers]
    if there and wanted not in there and None not in there:
        raise UsageError(_disagreement(f"vllm_{name}", wanted, there, url))


def _disagreement(argument: str, wanted: object, there: Sequence[object], url: str) -> str:
    have = ", ".join(sorted({str(one) for one in there}))
    return (
        f"{argument} is {wanted}, but the workers of REDIS_URL {shown_url(url)} have {have}: "
        f"leave {argument} out, or start a worker with it"
    )


def _stop_if_hopeless(keeper: FleetKeeper, own: _Own) -> None:
    """A fleet that cannot go on is started anew by the next call."""
    try:
        keeper.check()
    except FleetError:
        own.stop()

"""vLLM, loaded and fed. What else knows it is its arguments, requests, processes and decode rules beside this file.

`AsyncLLM` belongs to one event loop: it lives on one loop in one thread that lasts as long as the process, and any
thread may submit windows to it. The thread also owns the engine's child processes: the signal that ends them with
their parent is bound to the thread that started them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import threading
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import Future
from importlib import metadata
from typing import Any

from workers import decoding, startup
from workers.device import Device, batch, device_kind
from workers.errors import EngineLostError, ModelLoadError, TranscriptionError, TransientError
from workers.forked_engine import forked_engine
from workers.groups import Groups
from workers.guard import unlink_shared_memory
from workers.handover import pass_on, settle
from workers.interface import (
    SAMPLE_RATE_HZ,
    WINDOW_SAMPLES,
    EngineFacts,
    EngineLoad,
    WindowRequest,
    WindowResult,
    turn_s,
)
from workers.load_lock import gpus_of, loading_alone
from workers.models import ResolvedModel, model_facts_from
from workers.preparation import prepare
from workers.progress import Progress
from workers.settings import Settings
from workers.socket_names import short_lived_sockets
from workers.soundness import Soundness
from workers.startup import Startup
from workers.vllm_options import CPU_KEPT_ENCODINGS, engine_arguments
from workers.vllm_requests import Inputs, find_tokens, sampling_of

log = logging.getLogger(__name__)

#: How long to wait for a killed process; one stuck in a driver is left to end when it can.
KILL_SECONDS = 5.0


class VllmEngine:
    """A Whisper model in one vLLM engine. Loading takes 35 to 60 s on a CPU; raises ModelLoadError.

    ``engine_args`` and ``sampling`` win over what vLLM's engine and each of its requests get: measurements need that.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        engine_args: Mapping[str, Any] | None = None,
        sampling: Mapping[str, Any] | None = None,
        model: ResolvedModel | None = None,
        parts: Startup | None = None,
    ) -> None:
        """``model``: what `prepare` gave, if it was called before. ``parts`` notes how long each part takes."""
        parts = parts or Startup()
        model = model or prepare(settings, parts)
        self._settings = settings
        self._engine_args = dict(engine_args or {})
        self._sampling_args = dict(sampling or {})
        self._lost: str | None = None
        self._in_flight: set[Future[WindowResult]] = set()
        windows = batch(settings)
        self._progress = Progress(windows.max_num_seqs)
        self._groups = Groups(windows.max_num_seqs, windows.encode_batch if settings.encode_together else 0)
        self._soundness = Soundness()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="vllm-loop", daemon=True).start()
        # Their names go with the first answer: a process that is ready may have sockets that are not connected yet.
        with loading_alone(gpus_of(settings), parts), short_lived_sockets():
            self._load(model, parts)

    @property
    def facts(self) -> EngineFacts:
        """What the loaded model is and can do."""
        return self._facts

    def submit(self, request: WindowRequest) -> Future[WindowResult]:
        """Start one window. Log-mel is computed here, in the caller's thread; decoding joins the engine's batch."""
        if not 0 < len(request.samples) <= WINDOW_SAMPLES:
            raise ValueError(f"a window has 1 to {WINDOW_SAMPLES} samples, not {len(request.samples)}")
        if self._lost is not None:
            raise EngineLostError(self._lost)
        ids = decoding.prompt_ids(request, self._tokens, self._encode)
        rendered, sampling = self._inputs.of(request, ids), self._sampling(request, len(ids))
        # Not the coroutine's own future: `fail` answers for an engine, or an event loop, that never will.
        answer: Future[WindowResult] = Future()
        self._progress.started()
        self._in_flight.add(answer)
        answer.add_done_callback(self._landed)
        if self._lost is not None:  # `fail` may have looked before this one was there
            settle(answer, EngineLostError(self._lost))
            return answer
        self._groups.enter(lambda: self._begin(request, rendered, sampling, answer), urgent=request.urgent)
        return answer

    def healthy(self) -> bool:
        """Whether the engine's processes are alive and it was not given up."""
        return self._lost is None and not self._llm.errored

    def stalled_seconds(self) -> float:
        """How long the windows in flight have given no token; 0.0 without any."""
        return self._progress.stalled_seconds()

    def load(self) -> EngineLoad:
        """How busy it is."""
        return self._progress.load()

    def fail(self, reason: str) -> None:
        """Take the engine for dead: windows in flight fail now, whatever its processes do."""
        self._lost = self._lost or reason
        for answer in list(self._in_flight):
            settle(answer, EngineLostError(self._lost))

    def close(self) -> None:
        """End the engine and its processes; windows in flight fail."""
        self.fail("the engine was closed")
        # It would take the end of vLLM's own queue for a failure, and log it with a trace.
        if (handler := self._llm.output_handler) is not None:
            self._loop.call_soon_threadsafe(handler.cancel)
        with contextlib.suppress(Exception):
            self._llm.shutdown()
        for left in multiprocessing.active_children():  # a hung process does not hear vLLM's polite signal
            left.kill()
            left.join(KILL_SECONDS)
        del self._llm  # left to the interpreter's end, its finaliser complains
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _load(self, model: ResolvedModel, parts: Startup) -> None:
        try:
            with parts.part(startup.ENGINE):
                self._llm = self._run(self._start(model)).result()
        except ModelLoadError:
            raise
        except Exception as error:
            raise ModelLoadError(f"cannot load the model {model.name}: {_first_line(error)}") from error
        unlink_shared_memory()
        self._tokenizer = self._llm.get_tokenizer()
        self._tokens = find_tokens(self._llm.model_config, self._tokenizer)
        try:
            self._inputs = Inputs(self._llm, [self._tokens.start_of_transcript])
        except ModelLoadError:
            self.close()
            raise
        self._facts = self._describe(model, device_kind())
        # The first request initialises kernels lazily; no user's record should wait for that.
        try:
            with parts.part(startup.WARM_UP):
                self._warm_up()
        except (EngineLostError, TranscriptionError) as error:
            self.close()
            raise ModelLoadError(f"the model {model.name} loads but does not answer: {error}") from error

    def _begin(self, request: WindowRequest, rendered: Any, sampling: Any, answer: Future[WindowResult]) -> bool:
        """Give a window to vLLM, unless it has its answer already: cancelled, or failed with the engine."""
        if answer.done():
            return False
        running = self._run(self._decode(request, rendered, sampling))
        running.add_done_callback(lambda _: self._groups.left())
        pass_on(running, answer)
        return True

    def _landed(self, answer: Future[WindowResult]) -> None:
        self._in_flight.discard(answer)
        self._progress.ended()

    def _run(self, coroutine: Any) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    async def _start(self, model: ResolvedModel) -> Any:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = engine_arguments(model.path_or_id, self._settings) | self._engine_args
        with forked_engine():
            llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
        try:
            # vLLM itself waits for ever where the engine's process ends or stands still now.
            async with asyncio.timeout(self._settings.request_timeout_seconds):
                await llm.collective_rpc("order_encodings")
                await llm.collective_rpc("gather_rows_together")
                if device_kind() == "cpu":
                    await llm.collective_rpc("keep_encodings", args=(CPU_KEPT_ENCODINGS * arguments["max_num_seqs"],))
        except Exception as error:
            llm.shutdown()
            if isinstance(error, TimeoutError):
                raise ModelLoadError(f"the model {model.name} loads but its engine does not answer") from error
            raise
        _note_outputs(llm, self._progress)
        return llm

    def _describe(self, model: ResolvedModel, device: Device) -> EngineFacts:
        facts = model_facts_from(self._llm.model_config.hf_config.to_dict(), self._tokenizer.get_vocab())
        return EngineFacts(
            model=model.name,
            revision=model.revision,
            device=device,
            version=metadata.version("whisper-fleet"),
            tasks=facts.tasks,
            languages=facts.languages,
            max_num_seqs=batch(self._settings).max_num_seqs,
            tensor_parallel_size=self._settings.tensor_parallel_size,
            max_tokens=self._settings.max_tokens,
        )

    def _warm_up(self) -> None:
        import numpy as np

        noise = np.random.default_rng(0).normal(0, 0.01, SAMPLE_RATE_HZ).astype(np.float32)
        self.submit(WindowRequest(noise, task="transcribe", language=self._facts.languages[0])).result()

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _decode_text(self, ids: Any) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def _sampling(self, request: WindowRequest, prompt_length: int) -> Any:
        return sampling_of(request, self._tokens, self._settings.max_tokens, prompt_length, self._sampling_args)

    async def _decode(self, request: WindowRequest, rendered: Any, sampling: Any) -> WindowResult:
        from vllm.exceptions import VLLMValidationError
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        output: Any = None
        seconds = self._settings.request_timeout_seconds * self._progress.batches()
        try:
            # Past the deadline the task is cancelled, which makes vLLM abort the request.
            async with asyncio.timeout(seconds):
                # vLLM takes the lowest first, and of equals the one that came first.
                priority = int(turn_s(request.urgent, time.monotonic()))
                async for part in self._llm.generate(rendered, sampling, uuid.uuid4().hex, priority=priority):
                    output = part  # the last one is final
        except TimeoutError:
            raise TransientError("engine_timeout", f"the engine did not answer a window within {seconds:g} s") from None
        except VLLMValidationError as error:
            raise TranscriptionError("bad_argument", _first_line(error)) from error
        except EngineDeadError as error:
            self._lost = self._lost or "its processes have ended"
            raise EngineLostError(_first_line(error)) from error
        except EngineGenerateError as error:  # this request's own; the engine goes on
            raise TransientError("engine_error", _first_line(error.__cause__ or error)) from error
        result = output.outputs[0] if output is not None else None
        if result is not None and result.finish_reason == "abort":
            # Not at our word: its processes were told to end, and say so before they are gone. The text is a part.
            self._lost = self._lost or "its processes are ending"
            raise EngineLostError("the engine ended in the middle of a window")
        if result is None or result.finish_reason in ("error", None):
            raise TransientError("engine_error", "the engine gave up on a window")
        logprobs = [{id: entry.logprob for id, entry in step.items()} for step in result.logprobs]
        flags = ("repetition",) if result.finish_reason == "repetition" else ()
        try:
            self._soundness.check(result.token_ids, logprobs, decoding.rules_of(request, self._tokens))
        except EngineLostError as error:
            log.critical("The engine is to be given up: %s.", error)
            self._lost = self._lost or str(error)
            raise
        return decoding.parse_output(
            result.token_ids,
            logprobs,
            request,
            self._tokens,
            self._decode_text,
            flags,
            ran_out=result.finish_reason in ("length", "repetition"),
        )


def _note_outputs(llm: Any, progress: Progress) -> None:
    """Note whatever the engine's processes send: tokens of running windows come long before the first window's end.

    vLLM tells nobody of single steps unless it collects statistics, so this listens at the client's side of the queue
    (vLLM 0.26 to 0.33: `AsyncLLM._run_output_handler`).
    """
    client = llm.engine_core
    receive = client.get_output_async

    async def received() -> Any:
        outputs = await receive()
        progress.moved()
        return outputs

    client.get_output_async = received


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:500]

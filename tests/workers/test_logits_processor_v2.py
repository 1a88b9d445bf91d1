"""The V2 runner's logits processor in a runner's life: slots are given out again, requests come, go and resume."""

from __future__ import annotations

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_logits_processor import params
from test_rules import BEGIN, GERMAN, PAUSED, SIZE, TASK, TIMED, UNTIMED, batch
from vllm.v1.sample.logits_processor import validate_logits_processors_parameters
from vllm.v1.worker.gpu.sample.logits_processor import (
    LogitsContext,
    LogitsProcRequestState,
    build_custom_logits_processors_params_validator,
)

from workers.decoding import Rules
from workers.device import Device
from workers.logits_processor_v2 import WhisperRulesV2
from workers.settings import load_settings
from workers.vllm_options import RUNNER, logits_processor, prepare_environment

SLOTS = 4
#: None is a request without rules.
KINDS: list[Rules | None] = [TIMED, UNTIMED, PAUSED, GERMAN, None]


class Runner:
    """The buffers of vLLM's V2 runner (`vllm/v1/worker/gpu/states.py`), on the CPU, and the requests in its slots."""

    def __init__(self) -> None:
        self.tokens = torch.full((SLOTS, 64), BEGIN + 99, dtype=torch.int32)  # as an earlier request may leave it
        self.prompt_len, self.prefill_len, self.total_len = torch.zeros((3, SLOTS), dtype=torch.int32)
        buffers = {
            "all_token_ids": SimpleNamespace(gpu=self.tokens),
            "prompt_len": SimpleNamespace(gpu=self.prompt_len),
            "prefill_len": SimpleNamespace(gpu=self.prefill_len),
            "total_len": SimpleNamespace(gpu=self.total_len),
        }
        states = LogitsProcRequestState(device=torch.device("cpu"), max_num_reqs=SLOTS, vocab_size=SIZE, **buffers)
        self.processor = WhisperRulesV2(None, states)  # type: ignore[arg-type]
        self.requests: dict[int, tuple[Rules | None, list[int]]] = {}

    def add(self, slot: int, rules: Rules | None, said: list[int]) -> None:
        """A new request, or one that resumes with what it has said."""
        prompt = [BEGIN + 900] * slot + [25]  # nothing in a prompt was said, whatever it is
        self.tokens[slot, : len(prompt) + len(said)] = torch.tensor(prompt + said, dtype=torch.int32)
        self.prompt_len[slot] = len(prompt)
        self.prefill_len[slot] = self.total_len[slot] = len(prompt) + len(said)
        self.requests[slot] = (rules, list(said))
        assert self.processor.add_request(slot, params(rules)) == (rules is not None)

    def apply(self, logits: torch.Tensor, slots: list[int]) -> torch.Tensor:
        self.processor.apply_staged_writes()
        index, blank = torch.tensor(slots), torch.zeros(len(slots), dtype=torch.long)
        context = LogitsContext(index, index, np.array(slots), blank, blank, blank, np.array(slots))
        return self.processor.apply(logits, context)

    def say(self, slot: int, token: int) -> None:
        """What the runner does after sampling (`_post_update_kernel`)."""
        self.tokens[slot, self.total_len[slot]] = token
        self.total_len[slot] += 1
        self.requests[slot][1].append(token)


def wanted(logits: torch.Tensor, rules: Rules | None, said: list[int]) -> list[float]:
    row = logits[None].clone()
    return row[0].tolist() if rules is None else batch(row, [rules], [said])[0].tolist()


@settings(max_examples=25)
@given(st.data())
def test_every_step_of_changing_batches_follows_the_rules_of_whoever_is_in_a_slot(data: st.DataObject) -> None:
    runner = Runner()
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    for _ in range(data.draw(st.integers(2, 10))):
        # Given slots that are freed, and given to new requests
        for slot in range(SLOTS):
            change = data.draw(st.sampled_from(["stay", "stay", "stay", "leave", "join"]))
            if change == "join":
                runner.add(slot, data.draw(st.sampled_from(KINDS)), [])
            elif change == "leave":
                runner.requests.pop(slot, None)
        slots = data.draw(st.permutations(sorted(runner.requests)))
        if not slots:
            continue
        logits = torch.randn((len(slots), SIZE), generator=generator) * 3

        # When the step's logits are masked
        masked = runner.apply(logits.clone(), slots)

        # Then each row is what the rules make of its own request, and the likeliest token is said
        for row, slot in enumerate(slots):
            assert masked[row].tolist() == wanted(logits[row], *runner.requests[slot]), (slot, runner.requests[slot])
            runner.say(slot, int(masked[row].argmax()))


def test_a_slots_pauses_end_with_its_request() -> None:
    # Given a request with pauses, and one without that gets its slot while another has some
    runner = Runner()
    runner.add(1, PAUSED, [27, TASK, BEGIN, 7])
    runner.apply(torch.zeros((1, SIZE)), [1])
    runner.add(1, TIMED, [27, TASK, BEGIN, 7])
    runner.add(0, PAUSED, [27, TASK, BEGIN, 7])
    logits = torch.linspace(1, 0, SIZE).repeat(2, 1)

    masked = runner.apply(logits.clone(), [1, 0])

    assert masked[0].tolist() == wanted(logits[0], TIMED, [27, TASK, BEGIN, 7])
    assert masked[1].tolist() == wanted(logits[1], PAUSED, [27, TASK, BEGIN, 7])
    assert masked[0].tolist() != masked[1].tolist()


def test_a_request_that_was_preempted_goes_on_where_it_was() -> None:
    said = [27, TASK, BEGIN, 5, BEGIN + 40, BEGIN + 40, 6]
    runner = Runner()
    runner.add(2, TIMED, said)
    logits = torch.linspace(0, 1, SIZE)

    assert runner.apply(logits[None].clone(), [2])[0].tolist() == wanted(logits, TIMED, said)


@pytest.mark.parametrize(("device", "given", "runner"), [("cuda", None, 1), ("cuda", "0", 1), ("cuda", "1", 2)])
def test_the_processor_is_one_that_the_chosen_runner_takes(
    device: Device, given: str | None, runner: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an environment in which the user names a runner, or none
    monkeypatch.setattr(os, "environ", {} if given is None else {RUNNER: given})

    # When the environment is prepared
    prepare_environment(load_settings(), device)

    # Then vLLM's own loader for that runner takes the class, and lets a request's rules pass
    names = [logits_processor()]
    if runner == 2:
        build_custom_logits_processors_params_validator(names)(params(TIMED))
        with pytest.raises(ValueError, match="not a subclass"):
            build_custom_logits_processors_params_validator(["workers.logits_processor:WhisperRules"])
    else:
        validate_logits_processors_parameters(names, params(TIMED))
        assert names == ["workers.logits_processor:WhisperRules"]


def test_on_a_cpu_the_runner_is_vllms_own_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RUNNER, raising=False)

    assert logits_processor() == "workers.logits_processor:WhisperRules"

"""The decode rules on their way through vLLM's own types: both model runners' processors do what `rules` says."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_rules import BEGIN, GERMAN, NO_TIMESTAMPS, PAUSED, SIZE, TASK, TIMED, UNTIMED, batch, random_logits
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcRequestState

from workers import logits_processor
from workers.decoding import Rules
from workers.logits_processor import EXTRA_ARGUMENT, WhisperRules
from workers.logits_processor_v2 import WhisperRulesV2
from workers.rules import to_device

#: Requests at different points: forced steps, the beginning of the text, inside a segment, between segments.
REQUESTS: list[tuple[Rules, list[int]]] = [
    (UNTIMED, []),
    (GERMAN, []),
    (TIMED, [27, TASK]),
    (TIMED, [27, TASK, BEGIN, 5, 6]),
    (TIMED, [27, TASK, BEGIN, 5, BEGIN + 40]),
    (PAUSED, [27, TASK, BEGIN, 5]),
    (TIMED, [27, TASK, BEGIN, 5, BEGIN + 40, BEGIN + 40]),
    (UNTIMED, [27, TASK, NO_TIMESTAMPS, 7]),
]


def params(rules: Rules | None) -> SamplingParams:
    """As another process gets them: lists instead of tuples."""
    if rules is None:
        return SamplingParams()
    return SamplingParams(extra_args={EXTRA_ARGUMENT: json.loads(json.dumps(rules.as_dict()))})


def logits_of(rows: int) -> torch.Tensor:
    return torch.tensor([random_logits(row, 3.0, 0.0) for row in range(rows)])


def expected(logits: torch.Tensor) -> torch.Tensor:
    rules, said = zip(*REQUESTS, strict=True)
    return batch(logits.clone(), rules, said)


def v1(requests: list[tuple[Rules | None, list[int]]]) -> WhisperRules:
    processor = WhisperRules(None, torch.device("cpu"), False)  # type: ignore[arg-type]
    added = [(row, params(rules), None, said) for row, (rules, said) in enumerate(requests)]
    processor.update_state(BatchUpdate(batch_size=len(requests), removed=[], added=added, moved=[]))
    return processor


def test_v1_applies_the_rules_to_every_row() -> None:
    logits = logits_of(len(REQUESTS))
    assert v1(list(REQUESTS)).apply(logits.clone()).tolist() == expected(logits).tolist()


def test_v1_follows_requests_to_other_rows_and_leaves_others_alone() -> None:
    # Given a batch in which row 1 has no rules, and rows 0 and 2 change places
    processor = v1([REQUESTS[3], (None, []), REQUESTS[4]])
    processor.update_state(BatchUpdate(3, removed=[], added=[], moved=[(0, 2, MoveDirectionality.SWAP)]))
    logits = logits_of(3)
    # When the rules are applied
    result = processor.apply(logits.clone())
    # Then each request has its own, and row 1 is as it was
    assert result[1].tolist() == logits[1].tolist()
    for row, (rules, said) in ((0, REQUESTS[4]), (2, REQUESTS[3])):
        assert result[row].tolist() == batch(logits[row : row + 1].clone(), [rules], [said])[0].tolist()


def test_v1_takes_a_full_batch_as_it_is_wherever_its_requests_have_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Picking rows costs copies, and on a GPU a list of them to send."""
    sent: list[tuple[int, ...]] = []
    to_device = logits_processor.to_device

    def noted(values: torch.Tensor, device: torch.device) -> torch.Tensor:
        sent.append(tuple(values.shape))
        return to_device(values, device)

    processor = v1([REQUESTS[5], (None, []), REQUESTS[4], REQUESTS[3]])
    monkeypatch.setattr(logits_processor, "to_device", noted)
    # Given that row 1 is done and the last one takes its place
    moved = [(3, 1, MoveDirectionality.UNIDIRECTIONAL)]
    processor.update_state(BatchUpdate(3, removed=[1], added=[], moved=moved))
    logits = logits_of(3)
    # When
    result = processor.apply(logits.clone())
    # Then each request has its own rules, and one table of numbers was sent
    inside = [REQUESTS[5], REQUESTS[3], REQUESTS[4]]
    rules, said = zip(*inside, strict=True)
    assert result.tolist() == batch(logits.clone(), rules, said).tolist()
    assert sent == [(3, 7)]


def test_nobody_waits_for_what_is_sent_to_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """From pageable memory CUDA waits for all that it has been given: the step that is being computed."""
    calls: list[object] = []

    def pinned(values: torch.Tensor) -> torch.Tensor:
        calls.append("pinned")
        return values

    def to(values: torch.Tensor, device: object, *, non_blocking: bool) -> torch.Tensor:
        calls.append((device, non_blocking))
        return values

    monkeypatch.setattr(torch.Tensor, "pin_memory", pinned)
    monkeypatch.setattr(torch.Tensor, "to", to)
    gpu = torch.device("cuda", 0)

    to_device(torch.zeros(1), gpu)

    assert calls == ["pinned", (gpu, True)]


def test_v1_sees_the_tokens_that_are_said_after_the_request_was_added() -> None:
    said = [27, TASK]
    processor = v1([(TIMED, said)])
    for token in (BEGIN + 3, 5, BEGIN + 90, BEGIN + 90, 6):
        said.append(token)
        logits = logits_of(1)
        wanted = batch(logits.clone(), [TIMED], [said])
        assert processor.apply(logits).tolist() == wanted.tolist()


def v2(requests: list[tuple[Rules | None, list[int]]], slots: list[int]) -> tuple[WhisperRulesV2, LogitsContext]:
    """The processor with its requests in ``slots`` of the runner's buffers, each with a prompt of two tokens."""
    tokens = torch.full((16, 64), 999, dtype=torch.int32)
    prompt_len, total_len = torch.zeros(16, dtype=torch.int32), torch.zeros(16, dtype=torch.int32)
    for slot, (_, said) in zip(slots, requests, strict=True):
        tokens[slot, : 2 + len(said)] = torch.tensor([25, 25, *said], dtype=torch.int32)
        prompt_len[slot], total_len[slot] = 2, 2 + len(said)
    buffers = {
        "all_token_ids": SimpleNamespace(gpu=tokens),
        "prompt_len": SimpleNamespace(gpu=prompt_len),
        "prefill_len": SimpleNamespace(gpu=prompt_len),
        "total_len": SimpleNamespace(gpu=total_len),
    }
    states = LogitsProcRequestState(device=torch.device("cpu"), max_num_reqs=16, vocab_size=SIZE, **buffers)
    processor = WhisperRulesV2(None, states)  # type: ignore[arg-type]
    for slot, (rules, _) in zip(slots, requests, strict=True):
        assert processor.add_request(slot, params(rules)) == (rules is not None)
    processor.apply_staged_writes()
    index = torch.tensor(slots)
    blank = torch.zeros(len(slots), dtype=torch.long)
    return processor, LogitsContext(index, index, np.array(slots), blank, blank, blank, np.array(slots))


def test_v2_applies_the_rules_to_every_row_whatever_slot_it_has() -> None:
    processor, context = v2(list(REQUESTS), [9, 3, 0, 15, 7, 8, 1, 2])
    logits = logits_of(len(REQUESTS))
    assert processor.apply(logits.clone(), context).tolist() == expected(logits).tolist()


def test_v2_leaves_rows_without_rules_alone() -> None:
    processor, context = v2([REQUESTS[3], (None, [1, 2])], [4, 5])
    logits = logits_of(2)
    result = processor.apply(logits.clone(), context)
    rules, said = REQUESTS[3]
    assert result[0].tolist() == batch(logits[:1].clone(), [rules], [said])[0].tolist()
    assert result[1].tolist() == logits[1].tolist()


def test_requests_without_rules_are_left_alone() -> None:
    WhisperRules.validate_params(SamplingParams())
    logits = logits_of(1)
    assert v1([(None, [])]).apply(logits.clone()).tolist() == logits.tolist()
    assert not v1([]).is_argmax_invariant()


@pytest.mark.parametrize("plain", [{"language": 1}, {**TIMED.as_dict(), "unheard_of": 1}, "rules"])
@pytest.mark.parametrize("processor", [WhisperRules, WhisperRulesV2])
def test_other_rules_are_refused(processor: type[WhisperRules] | type[WhisperRulesV2], plain: object) -> None:
    with pytest.raises(ValueError, match="whisper"):
        processor.validate_params(SamplingParams(extra_args={EXTRA_ARGUMENT: plain}))


def test_english_only_rules_travel_too() -> None:
    bare = replace(UNTIMED, languages=())
    logits = logits_of(1)
    assert v1([(bare, [])]).apply(logits.clone()).tolist() == batch(logits, [bare], [[]]).tolist()

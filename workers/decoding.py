"""Whisper's decoder: its tokens, the rules of a request, and from generated tokens back to text and figures.

Token ids are looked up by name, never written down: they differ between checkpoints. Timestamps are arithmetic on ids
(`<|notimestamps|>` + 1 is 0.00 s, 0.02 s a step), because some tokenizers do not list them. Pure Python: no torch.
Sources: openai/whisper `decoding.py` and `transcribe.py`; Radford et al. 2022, section 2.3 and 4.5.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workers.errors import ModelLoadError, TranscriptionError
from workers.interface import SAMPLE_RATE_HZ, WindowRequest, WindowResult, WindowSegment
from workers.languages import LANGUAGES
from workers.messages import TASKS, Task

#: Seconds per timestamp token (openai/whisper `tokenizer.timestamp_begin`).
TIMESTAMP_SECONDS = 0.02
#: The first timestamp lies within the first second (openai/whisper `max_initial_timestamp`).
MAX_INITIAL_STEPS = 50
#: A letter of Georgian, Burmese or Amharic is two to three tokens: fast speech is up to 40 of them a second.
TOKENS_BASE, TOKENS_PER_SECOND = 24, 40
#: What ends a clause: a pause is heard after it.
PUNCTUATION = ".,;:?!…。、，；：？！।،؛؟۔"
#: The flag of a text that ends before the speech does.
CUT_OFF = "cut_off"
#: What is decoded of a letter whose last tokens are missing.
HALF_A_LETTER = "\ufffd"
#: In `Rules.language`: whichever the model hears.
ANY_LANGUAGE = -1
#: Positions of Whisper's decoder; the prompt before the text takes at most half of them.
DECODER_POSITIONS = 448
MAX_PROMPT_TOKENS = 223


@dataclass(frozen=True, slots=True)
class Tokens:
    """Ids of the special tokens of one checkpoint."""

    end_of_text: int
    start_of_transcript: int
    start_of_previous: int
    no_speech: int
    no_timestamps: int
    tasks: Mapping[Task, int]
    languages: Mapping[str, int]
    suppressed: tuple[int, ...] = ()
    suppressed_at_begin: tuple[int, ...] = ()
    punctuation: tuple[int, ...] = ()

    @property
    def timestamp_begin(self) -> int:
        """The id of ``<|0.00|>``."""
        return self.no_timestamps + 1

    @classmethod
    def of(
        cls,
        vocabulary: Mapping[str, int],
        *,
        suppressed: Sequence[int] = (),
        suppressed_at_begin: Sequence[int] = (),
        punctuation: Sequence[int] = (),
    ) -> Tokens:
        """Look the tokens up by name. Raises ModelLoadError for a tokenizer that is not Whisper's."""

        def find(*names: str) -> int:
            for name in names:
                if name in vocabulary:
                    return vocabulary[name]
            raise ModelLoadError(f"this tokenizer has no token {names[0]}: not a Whisper model")

        # English-only checkpoints list the language tokens too, but were never trained with them.
        multilingual = vocabulary.get("<|endoftext|>") != 50256
        return cls(
            end_of_text=find("<|endoftext|>"),
            start_of_transcript=find("<|startoftranscript|>"),
            start_of_previous=find("<|startofprev|>"),
            no_speech=find("<|nospeech|>", "<|nocaptions|>"),
            no_timestamps=find("<|notimestamps|>"),
            tasks={task: find(f"<|{task}|>") for task in TASKS} if multilingual else {},
            languages={c: vocabulary[f"<|{c}|>"] for c in LANGUAGES if f"<|{c}|>" in vocabulary}
            if multilingual
            else {},
            suppressed=tuple(suppressed),
            suppressed_at_begin=tuple(suppressed_at_begin),
            punctuation=tuple(punctuation),
        )


@dataclass(frozen=True, slots=True)
class Rules:
    """What the decoder may say in one request, as it travels to the logits processor.

    The first steps are forced: ``language`` (an id, or ANY_LANGUAGE for one of ``languages``) and ``task`` unless
    ``languages`` is empty, then ``<|notimestamps|>`` unless ``timestamps``. The rest applies to what follows.
    """

    language: int
    task: int
    timestamps: bool
    #: First and last step (0.02 s) of each stretch in which timestamps are favoured, one after another.
    pauses: tuple[int, ...]
    # From here on the same for every request of a checkpoint.
    languages: tuple[int, ...]
    end_of_text: int
    no_timestamps: int
    suppressed: tuple[int, ...]
    suppressed_at_begin: tuple[int, ...]
    punctuation: tuple[int, ...]

    @property
    def forced_steps(self) -> int:
        """How many of the generated tokens are no text."""
        return (2 if self.languages else 0) + (not self.timestamps)

    def as_dict(self) -> dict[str, object]:
        """The rules as plain data (sampling parameters cross a process border)."""
        return {field: getattr(self, field) for field in self.__slots__}

    @classmethod
    def of_dict(cls, plain: Mapping[str, Any]) -> Rules:
        """The rules from their plain form. Raises TypeError for another form."""
        lists = ("pauses", "languages", "suppressed", "suppressed_at_begin", "punctuation")
        values: dict[str, Any] = {name: tuple(value) if name in lists else value for name, value in plain.items()}
        return cls(**values)


def rules_of(request: WindowRequest, tokens: Tokens) -> Rules:
    """One request's rules: language and task are forced steps, so one pass over the audio gives all figures."""
    known = bool(tokens.languages) and request.language is not None
    return Rules(
        language=tokens.languages[request.language or ""] if known else ANY_LANGUAGE,
        task=tokens.tasks.get(request.task, -1),
        timestamps=request.timestamps,
        pauses=tuple(round(time_s / TIMESTAMP_SECONDS) for pause in request.pauses for time_s in pause),
        languages=tuple(tokens.languages.values()),
        end_of_text=tokens.end_of_text,
        no_timestamps=tokens.no_timestamps,
        suppressed=tokens.suppressed,
        suppressed_at_begin=tokens.suppressed_at_begin,
        punctuation=tokens.punctuation,
    )


def most_tokens(request: WindowRequest) -> int:
    """No speech needs more text tokens than this: a loop in a short window ends soon."""
    return int(TOKENS_BASE + TOKENS_PER_SECOND * len(request.samples) / SAMPLE_RATE_HZ)


def prompt_ids(request: WindowRequest, tokens: Tokens, encode: Callable[[str], list[int]]) -> list[int]:
    """The decoder's prompt: ``[<|startofprev|> text] <|startoftranscript|>``; the rest are forced steps.

    Raises TranscriptionError ``bad_argument`` for a text of too many tokens.
    """
    words = (request.prompt or "").strip()
    if not words:
        return [tokens.start_of_transcript]
    # Words like `<|endoftext|>` would be tokens that end the prompt.
    text = [id for id in encode(" " + words) if id < tokens.end_of_text]
    if len(text) > MAX_PROMPT_TOKENS:
        raise TranscriptionError(
            "bad_argument", f"prompt: {len(text)} tokens, at most {MAX_PROMPT_TOKENS} are possible: shorten it"
        )
    return [tokens.start_of_previous, *text, tokens.start_of_transcript]


def parse_output(
    ids: Sequence[int],
    logprobs: Sequence[Mapping[int, float]],
    request: WindowRequest,
    tokens: Tokens,
    decode: Callable[[Sequence[int]], str],
    flags: tuple[str, ...] = (),
    *,
    ran_out: bool = False,
) -> WindowResult:
    """Text, segments and figures of one finished request.

    ``ran_out``: it ended for want of tokens, or in a loop where ``flags`` have ``repetition``.

    ``ids``: generated tokens, forced ones included. ``logprobs``: one mapping per token, id -> natural log of the
    model's own probability, with the generated token in each and ``no_speech`` in the first.
    """
    decode = _each_once(decode)
    forced = rules_of(request, tokens).forced_steps
    language, language_probability = "en", 1.0
    if tokens.languages:
        language = request.language or next(code for code, id in tokens.languages.items() if id == ids[0])
        language_probability = math.exp(logprobs[0][tokens.languages[language]])
    said = list(ids[forced:])
    words = [id for id in said if id < tokens.end_of_text]
    # Timestamps do not count: the model's own probability of one is spread over its neighbours (openai/whisper takes it
    # after its rules, which leave fewer), and says nothing of the words.
    scores = [logprobs[forced + step][id] for step, id in enumerate(said) if id <= tokens.end_of_text]
    text = decode(words).strip()
    seconds = len(request.samples) / SAMPLE_RATE_HZ
    segments = _segments(said, tokens, decode, seconds) if request.timestamps else ()
    whole = _whole(said, tokens, decode, seconds) if request.timestamps else None
    if not ran_out:
        whole = (whole or ("", ())) if segments else None
        whole = None if whole is None or whole[1] == segments else whole
    else:
        text = text.rstrip(HALF_A_LETTER)
        if whole is None and "repetition" not in flags:
            flags = (*flags, CUT_OFF)
        elif whole is None and request.timestamps:
            whole = ("", ())
    return WindowResult(
        text=text,
        language=language,
        language_probability=language_probability,
        no_speech_prob=math.exp(logprobs[0][tokens.no_speech]),
        # openai/whisper divides by one more than the text tokens, as the end of text counts too.
        avg_logprob=sum(scores) / (len(words) + 1),
        compression_ratio=compression_ratio(text),
        temperature=request.temperature,
        segments=segments,
        flags=flags,
        whole=whole,
        finished=not ran_out,
    )


def _each_once(decode: Callable[[Sequence[int]], str]) -> Callable[[Sequence[int]], str]:
    """``decode``, which remembers: a window's segments are wanted twice, on the thread that hears of every token."""
    known: dict[tuple[int, ...], str] = {(): ""}

    def decoded(ids: Sequence[int]) -> str:
        key = tuple(ids)
        if key not in known:
            known[key] = decode(ids)
        return known[key]

    return decoded


def _whole(
    said: Sequence[int], tokens: Tokens, decode: Callable[[Sequence[int]], str], window_seconds: float
) -> tuple[str, tuple[WindowSegment, ...]] | None:
    """What is said up to the last timestamp that ends a segment, None without one (openai/whisper `transcribe.py`)."""
    kept = list(said)
    while kept and kept[-1] < tokens.timestamp_begin:
        kept.pop()
    segments = _segments(kept, tokens, decode, window_seconds)
    words = [id for id in kept if id < tokens.end_of_text]
    return (decode(words).strip(), segments) if segments else None


def compression_ratio(text: str) -> float:
    """How much zlib shortens the text: over 2.4 it repeats itself (openai/whisper `transcribe.py`)."""
    data = text.encode("utf-8")
    return len(data) / len(zlib.compress(data)) if data else 0.0


def _segments(
    said: Sequence[int], tokens: Tokens, decode: Callable[[Sequence[int]], str], window_seconds: float
) -> tuple[WindowSegment, ...]:
    """Text between timestamps. Text after the last timestamp is kept: it ends with the window."""
    segments: list[WindowSegment] = []
    start, words = 0.0, list[int]()

    def close(end: float) -> None:
        text = decode(words).strip().rstrip(HALF_A_LETTER)
        if text:
            segments.append(WindowSegment(start, max(start, min(end, window_seconds)), text))
        words.clear()

    for id in said:
        if id >= tokens.timestamp_begin:
            time_s = (id - tokens.timestamp_begin) * TIMESTAMP_SECONDS
            close(time_s)
            start = min(time_s, window_seconds)
        elif id < tokens.end_of_text:
            words.append(id)
    close(window_seconds)
    return tuple(segments)

"""One window until its text can be trusted: tried again at higher temperatures, the least bad try kept and flagged.

Source: openai/whisper `transcribe.py` (decode_with_fallback). There one try begins when the one before has failed. Here
the tries do not wait behind other windows, the last four begin at once when two have failed (they nearly always fail
too; but of a list the third may well agree with the second), and an engine with little to do gets them even earlier: so
that a job does not end, and nobody who calls waits, with one window in the batch, six times in a row. The answer is the
same: tries are judged in their order.
"""

from __future__ import annotations

import difflib
import re
import zlib
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from workers.gates import MISSED_SECONDS, Gates, Verdict, least_bad, settled, words
from workers.interface import Engine, WindowRequest, WindowResult
from workers.languages import UNSPACED_LETTERS
from workers.later import Later

#: What a window is flagged with when no try was good.
FLAGS = {
    Verdict.LIST: ("repetition",),
    Verdict.LOW_CONFIDENCE: ("low_confidence",),
    Verdict.EMPTY: ("empty",),
    Verdict.REPETITIVE: ("repetition",),
    Verdict.LOOP_BEHIND: ("repetition",),
    Verdict.REPETITION: ("repetition",),
    Verdict.SILENCE: ("no_speech",),
    Verdict.GOOD: (),
}
#: Fewer words than this may well be said and be in the prompt too; in a script without spaces so many letters: a name
#: has up to six.
ECHO_WORDS, ECHO_LETTERS = 3, 7
#: Share of equal letters from which two tries heard the same speech: a prompt is there to correct its spelling.
SAME_SPEECH = 0.6
_UNSPACED = re.compile(f"[{UNSPACED_LETTERS}]")
#: A window whose first tries failed, so many, will need most of the others.
HOPELESS_TRIES = 2


@dataclass(slots=True)
class _Window:
    """One window on its way through the tries."""

    request: WindowRequest
    speech_seconds: float
    identity: str
    answer: Future[WindowResult] = field(default_factory=Future)
    tries: list[tuple[WindowResult, Verdict]] = field(default_factory=list)
    #: Tries that were begun before their turn, by number.
    ahead: dict[int, Future[WindowResult]] = field(default_factory=dict)

    def done(self) -> None:
        """No further try is needed: those that were begun leave the engine to others."""
        for unneeded in self.ahead.values():
            unneeded.cancel()


class FallbackDecoder:
    """Decodes windows with retries. Safe from any thread; close it before the engine."""

    def __init__(self, engine: Engine, gates: Gates) -> None:
        self._engine = engine
        self.gates = gates
        self._later = Later("retry")

    def submit(self, request: WindowRequest, speech_seconds: float, identity: str) -> Future[WindowResult]:
        """Start one window. ``identity`` (row and window) seeds the sampling, so that reruns agree."""
        window = _Window(request, speech_seconds, identity)
        self._try(window)
        return window.answer

    def close(self) -> None:
        """Start no more retries."""
        self._later.close()

    def _try(self, window: _Window) -> None:
        number = len(window.tries)
        asked = window.ahead.pop(number, None) or self._ask(window, number)
        if number:
            most = len(self.gates.temperatures)
            # The next one may well hear the same list as the last.
            hopeless = number >= HOPELESS_TRIES and (number > HOPELESS_TRIES or window.tries[-1][1] is not Verdict.LIST)
            end = most if hopeless else min(number + self._room(), most)
            try:
                for later in range(number + 1, end):
                    if later not in window.ahead:
                        window.ahead[later] = self._ask(window, later)
            except BaseException:
                asked.cancel()
                window.done()
                raise
        asked.add_done_callback(lambda future: self._judge(window, future))

    def _room(self) -> int:
        """How many tries the engine has room for while half of its batch stays free, the one just begun included."""
        load = self._engine.load()
        return 1 + self._engine.facts.max_num_seqs // 2 - load.running - load.waiting

    def _ask(self, window: _Window, number: int) -> Future[WindowResult]:
        temperature = self.gates.temperatures[number]
        request = window.request
        if number:
            seed = zlib.crc32(f"{window.identity}/{temperature}".encode())
            # The language stays what the first try heard: sampled at a high temperature it would be any.
            language = request.language or window.tries[0][0].language
            request = replace(request, language=language, temperature=temperature, seed=seed, urgent=True)
        elif temperature:
            request = replace(request, temperature=temperature, seed=zlib.crc32(window.identity.encode()))
        return self._engine.submit(request)

    def _judge(self, window: _Window, future: Future[WindowResult]) -> None:
        """Runs in the engine's thread: decides only, and leaves work to others."""
        try:
            result = future.result()
            verdict = self.gates.judge(result, window.speech_seconds)
            window.tries.append((result, verdict))
            answer = settled(window.tries)
            if answer is None and len(window.tries) == len(self.gates.temperatures):
                answer = least_bad(window.tries)
            if answer is not None:
                self._finish(window, *answer)
            else:
                self._later.run(window.answer, lambda: self._try(window))
        except BaseException as error:  # noqa: BLE001 - whatever it is, the one who waits for the window gets it
            window.done()
            window.answer.set_exception(error)

    def _finish(self, window: _Window, result: WindowResult, verdict: Verdict) -> None:
        window.done()
        flags = tuple(dict.fromkeys((*result.flags, *FLAGS[verdict])))
        if verdict is Verdict.SILENCE:
            flags = FLAGS[verdict]  # what was wrong with its text is gone with it
            result = replace(result, text="", segments=(), whole=None)
            if window.speech_seconds >= MISSED_SECONDS:  # voice activity does not agree
                flags = tuple(dict.fromkeys((*flags, *FLAGS[Verdict.EMPTY])))
        result = replace(result, flags=flags, attempts=len(window.tries))
        if echoes(result.text, window.request.prompt):
            self._later.run(window.answer, lambda: self._without_prompt(window, result))
        else:
            window.answer.set_result(result)

    def _without_prompt(self, window: _Window, result: WindowResult) -> None:
        """Was it said, or only repeated from the prompt? Heard much the same without the prompt, it was said."""

        def compare(future: Future[WindowResult]) -> None:
            other = future.result()
            if _likeness(other.text, result.text) >= SAME_SPEECH:
                window.answer.set_result(result)
            else:
                flags = (*other.flags, "prompt_echo")
                attempts = result.attempts + other.attempts
                window.answer.set_result(replace(other, flags=flags, attempts=attempts))

        request = replace(window.request, prompt=None, urgent=True)
        other = self.submit(request, window.speech_seconds, f"{window.identity}/no-prompt")
        # Not in the engine's thread: two long texts take it a while.
        other.add_done_callback(lambda future: self._later.run(window.answer, lambda: compare(future)))


def echoes(text: str, prompt: str | None) -> bool:
    """Whether a text only repeats words of its prompt, as Whisper does over silence."""
    said, given = words(text), words(prompt or "")
    starts = range(len(given) - len(said) + 1)
    share = sum(ECHO_WORDS if _UNSPACED.match(one) else ECHO_LETTERS for one in said)
    return share >= ECHO_WORDS * ECHO_LETTERS and any(given[at : at + len(said)] == said for at in starts)


def _likeness(text: str, other: str) -> float:
    """Share of letters that two texts have in the same order, 0 to 1."""
    return difflib.SequenceMatcher(None, " ".join(words(text)), " ".join(words(other)), autojunk=False).ratio()

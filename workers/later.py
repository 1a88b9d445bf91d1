"""Work that follows on an engine's answer, in threads of its own: the engine's own thread only decides.

Log-mel of a retry, for one, is computed where it is submitted, and the engine's loop has to stay free for its answers.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from workers.errors import EngineLostError
from workers.interface import WindowResult


class Later:
    """Runs work on which a window's answer depends: whatever goes wrong with it reaches the one who waits."""

    def __init__(self, name: str) -> None:
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix=name)
        self._closed = False
        self._waiting: set[Future[None]] = set()

    def run(self, answer: Future[WindowResult], work: Callable[[], None]) -> None:
        """Run ``work`` soon. Its exception becomes the exception of ``answer``, and so does the end of this worker."""

        def end() -> None:
            answer.set_exception(EngineLostError("the worker is ending"))

        def guarded() -> None:
            if self._closed:  # while it was on its way to a thread
                end()
                return
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - whatever it is, the one who waits for the window gets it
                answer.set_exception(error)

        def done(waiting: Future[None]) -> None:
            self._waiting.discard(waiting)
            if waiting.cancelled():  # closed while it waited
                end()

        if self._closed:
            end()
            return
        try:
            waiting = self._threads.submit(guarded)
        except RuntimeError:  # closed just now
            end()
        else:
            self._waiting.add(waiting)
            waiting.add_done_callback(done)

    def close(self) -> None:
        """Start nothing more; what has not begun fails its answer."""
        self._closed = True
        self._threads.shutdown(wait=False)
        # Not `cancel_futures`: an answer that fails may lead here again, and that holds the lock of `submit`.
        for waiting in list(self._waiting):
            waiting.cancel()

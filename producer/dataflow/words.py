"""What is said on the command line's behalf, in the words of a pipeline: arguments instead of options."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager

from producer.errors import FleetError

_ARGUMENTS = {
    "--cache-path": "cache_path",
    "--force": "force=True",
    "--language": "language",
    "--media-key": "media_key",
    "--model": "hf_model_name_or_path",
    "--output-key": "output_key",
    "--prefix": "file_name_prefix",
    "--task": "task",
}
_OPTION = re.compile("|".join(map(re.escape, _ARGUMENTS)))
# Rows are never reused here, and there is no command to run again.
_OTHERS = (
    (re.compile(r" \(and keep answers with --reuse [^)]*\)"), ""),
    (re.compile("run the same command"), "run it again"),
)


def in_arguments(message: str) -> str:
    """``message`` with each option of ``whisper-fleet`` as the argument that it is in a pipeline."""
    for pattern, text in _OTHERS:
        message = pattern.sub(text, message)
    return _OPTION.sub(lambda found: _ARGUMENTS[found[0]], message)


@contextmanager
def arguments_named() -> Iterator[None]:
    """Errors of the block name arguments, not options of a command line."""
    try:
        yield
    except FleetError as error:
        message = in_arguments(str(error))
        if message == str(error):
            raise
        same = copy.copy(error)
        same.args = (message,)
        raise same from error

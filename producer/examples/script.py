"""Transcribe the recordings that are named on the command line: ``python script.py call.wav https://.../talk.mp3``.

Uses the fleet of REDIS_URL, or, without one, one of its own on this machine. A line a recording, as they come.
"""

from __future__ import annotations

import sys

from producer import Client, FleetError, Transcript


def main(sources: list[str]) -> int:
    """The exit code: 1 where a recording failed, 2 where there is no fleet."""
    try:
        return _transcribe(sources)
    except FleetError as error:
        print(error, file=sys.stderr)
        return 2


def _transcribe(sources: list[str]) -> int:
    failed = 0
    with Client() as client:
        for source, outcome in client.submit_many(sources):
            if isinstance(outcome, Transcript):
                print(source, outcome.language, outcome.text, sep="\t", flush=True)
            else:
                failed += 1
                print(f"{source}: {outcome}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

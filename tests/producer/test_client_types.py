"""What a type checker knows of an answer is what `Client` and `AsyncClient` give."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

#: An application's own checks. A row's audio may be a list, and is then answered by one: its type cannot say which.
TYPED = """
from pathlib import Path
from typing import Any, assert_type

from producer import AsyncClient, Client, Transcript
from producer.calls import Audio, Result
from workers.messages import Item

Row = dict[str, Any]

def of_threads(client: Client, path: Path, row: Row, several: list[str], any_audio: Audio) -> None:
    for call in (client.transcribe, client.translate):
        assert_type(call("call.wav", start_s=1.0).result(), Transcript)
        assert_type(call(path, channels="mix").result(), Transcript)
        assert_type(call(path, channels="split").result(), Result)
        assert_type(call(row).result(), Transcript | list[Item])
        assert_type(call({"audio": path, "id": 7}, channels="mix").result(), Transcript | list[Item])
        assert_type(call(row, channels="split").result(), Result | list[Item])
        assert_type(call(several).result(), list[Item])
        assert_type(call([path], channels="split").result(), list[Item])
        assert_type(call(any_audio).result(), Transcript | list[Item])

async def of_asyncio(client: AsyncClient, path: Path, row: Row, several: list[str]) -> None:
    for call in (client.transcribe, client.translate):
        assert_type(await (await call("call.wav", start_s=1.0)).result(), Transcript)
        assert_type(await (await call(path, channels="mix")).result(), Transcript)
        assert_type(await (await call(path, channels="split")).result(), Result)
        assert_type(await (await call(row)).result(), Transcript | list[Item])
        assert_type(await (await call({"audio": path}, channels="mix")).result(), Transcript | list[Item])
        assert_type(await (await call(row, channels="split")).result(), Result | list[Item])
        assert_type(await (await call(several)).result(), list[Item])

def in_vain(client: Client, row: Row) -> None:
    client.transcribe(row).result().text  # type: ignore[union-attr]
"""


def test_answers_have_the_types_of_what_is_sent(tmp_path: Path) -> None:
    (tmp_path / "typed.py").write_text(TYPED)

    # From the repository's root: with the settings of its own check, and what that has found out already.
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", str(tmp_path / "typed.py")],
        cwd=Path(__file__).parents[2],
        text=True,
        capture_output=True,
        timeout=300,
        check=False,
    )

    assert checked.returncode == 0, checked.stdout + checked.stderr

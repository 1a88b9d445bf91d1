"""Celery without this package: an environment of its own sends tasks and reads results."""

from __future__ import annotations

import json
import re
from pathlib import Path

from fleet import Fleet
from plain_celery import PlainCelery

README = Path(__file__).parent.parent.parent / "README.md"
CLIENT = """
import json, os
from celery import Celery
client = Celery("my-app", broker=os.environ["REDIS_URL"], backend=os.environ["REDIS_URL"])
"""


def test_environment_has_celery_and_not_this_package(plain_celery: PlainCelery, standin_fleet: Fleet) -> None:
    code = "import celery\nfrom importlib.util import find_spec\nprint([find_spec(n) for n in ('workers', 'producer')])"

    done = plain_celery.run(code, standin_fleet.environment())

    assert done.stdout == "[None, None]\n", done.stderr


def test_example_of_the_readme_gets_its_transcript(
    plain_celery: PlainCelery, standin_fleet: Fleet, samples: Path
) -> None:
    (example,) = [
        block
        for block in re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        if 'send_task("whisper.transcribe"' in block
    ]
    assert "/data/call.wav" in example
    example = example.replace("/data/call.wav", str(samples / "en_train.flac"))

    done = plain_celery.run(f"import os\nREDIS_URL = os.environ['REDIS_URL']\n{example}", standin_fleet.environment())

    assert done.stdout.startswith("stand-in "), done.stderr


def test_error_has_its_type_and_message(plain_celery: PlainCelery, standin_fleet: Fleet) -> None:
    code = f"""{CLIENT}
try:
    client.send_task("whisper.transcribe", [[{{"audio": "/none.wav"}}]], queue="transcribe").get(timeout=120)
except Exception as error:
    print(json.dumps([type(error).__name__, *error.args]))
"""

    done = plain_celery.run(code, standin_fleet.environment())

    name, type, message = json.loads(done.stdout)
    assert (name, type) == ("TranscriptionError", "file_not_found")
    assert "/none.wav" in message


def test_bulk_priority_needs_two_transport_options(
    plain_celery: PlainCelery, standin_fleet: Fleet, samples: Path
) -> None:
    # Given a client with the two options that contract.md names
    contract = (README.parent / "workers" / "contract.md").read_text(encoding="utf-8")
    options = {"sep": ":", "priority_steps": [0, 5]}
    assert f"client.conf.broker_transport_options = {json.dumps(options)}" in contract
    code = f"""{CLIENT}
client.conf.broker_transport_options = {options}
records = [{{"audio": {str(samples / "en_train.flac")!r}}}]
call = client.send_task("whisper.translate", kwargs={{"records": records}}, queue="translate", priority=5)
print(call.get(timeout=120)[0]["text"])
"""

    done = plain_celery.run(code, standin_fleet.environment())

    # Then its message goes where the workers look for it
    assert done.stdout.startswith("stand-in "), done.stderr


#: An application of its own: a task, and a worker for Celery's default queue.
APPLICATION = f"""{CLIENT}
from celery import chain, chord
from celery.contrib.testing.worker import start_worker

@client.task(name="my-app.upper")
def upper(results):
    return json.dumps(results).upper()

def transcribe(**record):
    return client.signature("whisper.transcribe", [[record]], queue="transcribe")

def answered(call, queue=None):
    with start_worker(client, pool="solo", perform_ping_check=False, queues=queue, shutdown_timeout=60):
        print(call.get(timeout=120))
"""


def test_next_link_of_a_chain_is_done_by_its_own_worker(
    plain_celery: PlainCelery, standin_fleet: Fleet, samples: Path
) -> None:
    # Given a task of the application's own that follows a transcription, in no queue by name and in one
    audio = str(samples / "en_train.flac")
    code = f"""{APPLICATION}
answered(chain(transcribe(audio={audio!r}), upper.s()).apply_async())
answered(chain(transcribe(audio={audio!r}), upper.s().set(queue="mine")).apply_async(), "mine")
"""

    done = plain_celery.run(code, standin_fleet.environment())

    # Then it is not sent to the fleet's workers, who do not have it
    first, second = done.stdout.splitlines() or [done.stderr] * 2
    assert '"TEXT": "STAND-IN ' in first
    assert first == second


def test_chord_of_transcriptions_ends_in_the_application_s_task(
    plain_celery: PlainCelery, standin_fleet: Fleet, samples: Path
) -> None:
    audio = str(samples / "en_train.flac")
    code = f"""{APPLICATION}
calls = [transcribe(audio={audio!r}, start_s=start / 10) for start in range(3)]
answered(chord(calls)(upper.s()))
try:
    answered(chord([*calls, transcribe(audio="/none.wav")])(upper.s()))
except Exception as error:
    print(error)
"""

    done = plain_celery.run(code, standin_fleet.environment())

    good, bad = done.stdout.splitlines() or [done.stderr] * 2
    assert len(set(re.findall(r'"TEXT": "(STAND-IN \w+)', good))) == 3
    assert "file_not_found" in bad

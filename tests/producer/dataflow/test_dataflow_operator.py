"""WhisperTranscriptionGenerator: the steps of the guide, in every format, on a fleet of stand-ins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pytest
from job_files import processes_at, read_rows, write_rows

import producer
from fleet import Fleet, clean_environment
from producer.dataflow import FileStorage, LocalModelLLMServing_vllm, WhisperTranscriptionGenerator
from producer.dataflow.operator import MADE, WRITING
from producer.errors import UsageError
from producer.job import load_job

#: The steps of DataFlow's guide in a pipeline class; only the import is ours.
GUIDE = """
from producer.dataflow import LocalModelLLMServing_vllm, FileStorage, WhisperTranscriptionGenerator

class WhisperPipeline:
    def __init__(self):
        self.llm_serving = LocalModelLLMServing_vllm(
            hf_model_name_or_path="./models/whisper-large-v3", # set to your own model path
            vllm_tensor_parallel_size=2,
            vllm_max_tokens=None,
            vllm_gpu_memory_utilization=0.7
        )
        self.storage = FileStorage(
            first_entry_file_name="your_path.jsonl",
            cache_path="./cache",
            file_name_prefix="whisper_transcription",
            cache_type="jsonl",
            media_key="audio",
            media_type="audio"
        )
        self.generator = WhisperTranscriptionGenerator(self.llm_serving)

    def forward(self):
        self.generator.run(
            storage=self.storage.step(),
            task="transcribe",              # Indicates that the task is speech transcription
            language="mandarin",            # Spoken language in the audio; default is "english"
            use_no_time_stamps=True,        # Whether to use the no-timestamp format; default is True
            output_key="transcription"      # Key for the output result
        )
        self.generator.run(
            storage=self.storage.step(),
            task="translate",               # Indicates that the task is speech translation
            language="mandarin",            # Spoken language in the audio; default is "english"
            use_no_time_stamps=True,        # Whether to use the no-timestamp format; default is True
            output_key="transcription"      # Key for the output result
        )

WhisperPipeline().forward()
"""


def header(folder: Path, step: int, prefix: str = "p") -> dict[str, Any]:
    return json.loads((folder / "cache" / f"{prefix}_step{step}.job" / "job.json").read_text())  # type: ignore[no-any-return]


def test_the_guides_steps_run_with_only_the_import_line_added(folder: Path) -> None:
    # Given the guide's row, a directory to work in, and nothing that was started before
    write_rows(folder / "your_path.jsonl", [{"audio": ["a.wav"]}])
    environment = clean_environment(WHISPER_ENGINE="standin", TMPDIR=str(folder))
    # When its pipeline runs
    done = subprocess.run([sys.executable, "-c", GUIDE], env=environment, cwd=folder, capture_output=True, text=True)
    # Then both steps are there, the second with the text in place of the first one's, and nothing goes on
    assert done.returncode == 0, done.stderr
    first, second = (folder / "cache" / f"whisper_transcription_step{number}.jsonl" for number in (1, 2))
    (row,) = read_rows(first)
    assert row["audio"] == ["a.wav"]
    assert row["transcription"].startswith("stand-in ")
    assert [list(row) for row in read_rows(second)] == [["audio", "transcription"]]
    assert [header(folder, number, "whisper_transcription")["task"] for number in (1, 2)] == ["transcribe", "translate"]
    assert header(folder, 2, "whisper_transcription")["options"]["language"] == "zh"
    assert processes_at(folder) == []
    assert list(folder.glob("whisper-fleet-*")) == []


def test_the_example_makes_two_steps(standin_fleet: Fleet, folder: Path) -> None:
    write_rows(folder / "data.jsonl", [{"audio": ["a.wav"]}])
    example = Path(producer.__file__).parent / "examples" / "two_step_pipeline.py"
    subprocess.run(
        [sys.executable, str(example), "data.jsonl"], env=standin_fleet.environment(), cwd=folder, check=True
    )
    (row,) = read_rows(folder / "cache" / "two_steps_step2.jsonl")
    assert list(row) == ["audio", "transcription", "english"]


def test_arguments_have_the_guides_defaults(generator: WhisperTranscriptionGenerator, folder: Path) -> None:
    write_rows(folder / "data.jsonl", [{"audio": "a.wav"}])
    key = generator.run(FileStorage("data.jsonl", file_name_prefix="p").step())
    assert key == "transcription"
    done = header(folder, 1)
    assert (done["task"], done["options"]["language"], done["options"]["timestamps"]) == ("transcribe", "en", False)
    assert done["audio_root"] == str(folder)


def test_other_operators_fit_between_two_transcriptions(generator: WhisperTranscriptionGenerator, folder: Path) -> None:
    # Given a table with columns of every kind, and a recording that is missing
    rows = [
        {"id": "007", "audio": ["a.wav"], "n": 2**70, "nothing": None},
        {"id": "1e5", "audio": ["gone.wav"], "x": 0.1},
        {"id": "3", "audio": ["a.wav", "gone.wav"], "end_s": 2.0},
    ]
    write_rows(folder / "data.jsonl", rows)
    storage = FileStorage("data.jsonl", file_name_prefix="p")
    # When an operator on DataFrames works between two transcriptions
    generator.run(storage.step(), use_no_time_stamps=False, details=True)
    between = storage.step()
    frame = between.read("dataframe")
    frame["words"] = frame["transcription"].map(lambda text: len(str(text).split()))
    between.write(frame[frame["id"] != "1e5"])
    generator.run(storage.step(), task="translate", output_key="english")
    # Then every step has the columns of those before, as they were
    first, last = (read_rows(folder / "cache" / f"p_step{number}.jsonl") for number in (1, 3))
    assert [{name: row[name] for name in given} for row, given in zip(first, rows, strict=True)] == rows
    assert first[0]["transcription_segments"][0].keys() == {"start", "end", "text"}
    assert first[0]["transcription_details"]["duration"] > 5
    assert "transcription_error" not in first[0]
    assert first[1]["transcription"] is None
    assert first[1]["transcription_error"]["type"] == "file_not_found"
    assert [text is None for text in first[2]["transcription"]] == [False, True]
    assert [row["words"] for row in last] == [2, 3]
    assert [
        {name: value for name, value in row.items() if name not in ("words", "english", "english_error")}
        for row in last
    ] == [
        first[0],
        first[2],
    ]


def test_the_output_column_is_replaced_with_all_that_belongs_to_it(
    generator: WhisperTranscriptionGenerator, folder: Path
) -> None:
    write_rows(folder / "data.jsonl", [{"audio": "a.wav", "transcription": "old", "transcription_error": {}, "z": 1}])
    generator.run(FileStorage("data.jsonl", file_name_prefix="p").step())
    (row,) = read_rows(folder / "cache" / "p_step1.jsonl")
    assert list(row) == ["audio", "z", "transcription"]
    assert row["transcription"].startswith("stand-in")


def test_an_empty_table_stays_empty(generator: WhisperTranscriptionGenerator, folder: Path) -> None:
    (folder / "data.jsonl").write_text("\n")
    (folder / "data.json").write_text("[]")
    (folder / "data.csv").write_text("audio,id\n")
    pd.DataFrame({"audio": [], "id": []}).to_parquet(folder / "data.parquet")
    for first, kind in [(name, name) for name in ("jsonl", "json", "csv", "parquet")] + [
        ("csv", "parquet"),
        ("json", "pickle"),
        ("parquet", "pickle"),
    ]:
        name = f"{first}_{kind}"
        storage = FileStorage(f"data.{first}", file_name_prefix=name, cache_type=kind)  # type: ignore[arg-type]
        generator.run(storage.step())
        generator.run(storage.step(), task="translate", output_key="english")
        assert storage.step().read("dict") == [], name


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"task": "summarise"}, "task 'summarise': must be one of transcribe, translate"),
        ({"language": "englisch"}, "language englisch: unknown language 'englisch'; did you mean english"),
        ({"output_key": "audio"}, "output_key 'audio' would overwrite the audio column"),
        ({"output_key": ""}, "output_key is empty"),
        ({"output_key": None}, "must be text"),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_written(
    generator: WhisperTranscriptionGenerator, folder: Path, arguments: dict[str, Any], words: str
) -> None:
    write_rows(folder / "data.jsonl", [{"audio": "a.wav"}])
    with pytest.raises(UsageError, match=words) as caught:
        generator.run(FileStorage("data.jsonl").step(), **arguments)
    assert "--" not in str(caught.value)
    assert not (folder / "cache").exists()


@pytest.mark.parametrize("name", ["English", "EN", "mandarin", "Castilian", "yue", "auto"])
def test_languages_have_any_name(generator: WhisperTranscriptionGenerator, folder: Path, name: str) -> None:
    write_rows(folder / "data.jsonl", [])
    generator.run(FileStorage("data.jsonl", file_name_prefix="p").step(), language=name)
    codes = {"English": "en", "EN": "en", "mandarin": "zh", "Castilian": "es"}
    assert header(folder, 1)["options"]["language"] == codes.get(name, name)


@pytest.mark.parametrize(("name", "kind"), [("data.jsonl", "jsonl"), ("data.json", "json")])
def test_other_options_at_the_same_step_are_refused_and_force_starts_over(
    generator: WhisperTranscriptionGenerator, folder: Path, name: str, kind: str
) -> None:
    # Given a step that is done
    (folder / name).write_text('{"audio": "a.wav"}\n')
    storage = FileStorage(name, file_name_prefix="p", cache_type=kind).step()  # type: ignore[arg-type]
    generator.run(storage)
    target = folder / "cache" / f"p_step1.{kind}"
    before = target.read_bytes()
    # When another is asked for at its place
    with pytest.raises(UsageError, match=r"task was 'transcribe', now 'translate'.*force=True.*file_name_prefix"):
        generator.run(storage, task="translate")
    assert target.read_bytes() == before
    # Then force starts over
    generator.run(storage, task="translate", output_key="english", force=True)
    rows = storage.step().read("dict") if kind == "jsonl" else json.loads(target.read_text())
    assert [list(row) for row in rows] == [["audio", "english"]]


def test_a_file_that_no_transcription_made_is_not_overwritten(
    generator: WhisperTranscriptionGenerator, folder: Path
) -> None:
    for kind in ("jsonl", "json"):
        write_rows(folder / f"data.{kind}", [{"audio": "a.wav"}])
        storage = FileStorage(f"data.{kind}", file_name_prefix=f"of_{kind}", cache_type=kind).step()  # type: ignore[arg-type]
        path = Path(storage.write([{"audio": "precious"}]))
        before = path.read_bytes()
        with pytest.raises(UsageError, match="no job of this cache made it: overwrite it with force=True"):
            generator.run(storage)
        assert path.read_bytes() == before
        generator.run(storage, force=True)
        assert path.read_bytes() != before


def test_a_call_that_is_refused_leaves_the_rows_of_the_other_as_they_are(
    generator: WhisperTranscriptionGenerator, folder: Path
) -> None:
    """The other may still be running: it compares them with what it was begun with before it writes its step."""
    # Given a table whose job was made
    write_rows(folder / "data.jsonl", [{"audio": "a.wav"}])
    storage = FileStorage("data.jsonl", file_name_prefix="p", cache_type="json").step()
    generator.run(storage)
    job = load_job(folder / "cache" / "p_step1.rows" / "rows_step1.jsonl")
    assert job is not None
    # When the table has changed, and is refused at its place
    write_rows(folder / "data.jsonl", [{"audio": "a.wav"}, {"audio": "a.wav"}])
    with pytest.raises(UsageError, match="the input has changed"):
        generator.run(storage)
    # Then the first job's rows are there, and with force those of the second take their place
    job.check_input()
    generator.run(storage, force=True)
    assert len(list((folder / "cache" / "p_step1.rows").glob("rows-*.jsonl"))) == 1


def test_a_program_that_ends_while_it_writes_its_table_can_be_run_again(
    generator: WhisperTranscriptionGenerator, folder: Path
) -> None:
    write_rows(folder / "data.jsonl", [{"audio": "a.wav"}])
    storage = FileStorage("data.jsonl", file_name_prefix="p", cache_type="json").step()
    generator.run(storage)
    target, made = folder / "cache" / "p_step1.json", folder / "cache" / "p_step1.rows" / MADE
    (done, signature) = target.read_bytes(), made.read_bytes()
    made.write_text(WRITING)
    generator.run(storage)
    assert (target.read_bytes(), made.read_bytes()) == (done, signature)
    target.write_text("[]")
    with pytest.raises(UsageError, match="no job of this cache made it"):
        generator.run(storage)


@pytest.mark.parametrize("kind", ["jsonl", "pickle"])
def test_a_transcription_that_another_operator_writes_over_is_kept_aside(
    generator: WhisperTranscriptionGenerator, folder: Path, kind: Literal["jsonl", "pickle"]
) -> None:
    write_rows(folder / "data.jsonl", [{"audio": "a.wav"}])
    storage = FileStorage("data.jsonl", file_name_prefix="p", cache_type=kind).step()

    def rows(name: str) -> Any:
        return FileStorage(str(folder / "cache" / f"{name}.{kind}")).step().read("dict")

    for number in (1, 2):
        generator.run(storage, force=True)
        done = (folder / "cache" / f"p_step1.{kind}").read_bytes()
        transcribed = rows("p_step1")
        with pytest.raises(UsageError, match=r"holds a set|not of int"):
            storage.write([{"audio": {"a.wav"}}] if kind == "jsonl" else [1])
        assert (folder / "cache" / f"p_step1.{kind}").read_bytes() == done, "nothing was written: it stays"
        assert rows("p_step1") == transcribed
        storage.write([{"audio": "a.wav", "new": True}])
        assert (folder / "cache" / f"p_step1.before{number}.{kind}").read_bytes() == done
        assert rows(f"p_step1.before{number}") == transcribed
        assert rows("p_step1") == [{"audio": "a.wav", "new": True}]


def test_what_is_no_storage_or_serving_is_refused(generator: WhisperTranscriptionGenerator) -> None:
    with pytest.raises(UsageError, match=r"storage is a PosixPath: it must be a FileStorage"):
        generator.run(Path("data.jsonl"))
    with pytest.raises(UsageError, match=r"llm_serving is a builtins\.str"):
        WhisperTranscriptionGenerator("whisper")  # type: ignore[arg-type]


def test_importing_loads_nothing_heavy(standin_fleet: Fleet, folder: Path) -> None:
    # Given a pipeline of jsonl, in a Python that has no pandas and no pyarrow
    write_rows(folder / "data.jsonl", [{"audio": ["a.wav"]}])
    code = (
        "import sys; sys.modules.update(pandas=None, pyarrow=None)\n"
        "from producer.dataflow import *\n"
        "serving = LocalModelLLMServing_vllm()\n"
        "storage = FileStorage('data.jsonl', file_name_prefix='p')\n"
        "WhisperTranscriptionGenerator(serving).run(storage.step())\n"
        "print([name for name in ('numpy', 'torch', 'vllm') if name in sys.modules])\n"
        "print(len(storage.step().read('dict')))\n"
        "storage.read()\n"
    )
    # When it runs
    environment = {**os.environ, "REDIS_URL": standin_fleet.url}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=folder, capture_output=True, text=True)
    # Then only the DataFrame asks for them, in one line
    assert done.stdout.splitlines() == ["[]", "1"], done.stderr
    assert done.stderr.splitlines()[-1].endswith("a DataFrame needs pandas: pip install '.[dataflow]' in a checkout")


def test_a_serving_that_disagrees_is_refused_before_the_job_is_made(folder: Path, joined: Fleet) -> None:
    write_rows(folder / "data.jsonl", [{"audio": "a.wav"}])
    generator = WhisperTranscriptionGenerator(LocalModelLLMServing_vllm(vllm_tensor_parallel_size=2))
    with pytest.raises(UsageError, match=r"vllm_tensor_parallel_size is 2, but the workers of REDIS_URL .* have 1"):
        generator.run(FileStorage("data.jsonl").step())
    assert not (folder / "cache").exists()

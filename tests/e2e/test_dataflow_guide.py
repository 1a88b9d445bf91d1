"""The steps of DataFlow's speech guide on real weights: what is said, and the same in English."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleet import Fleet
from producer.dataflow import FileStorage, LocalModelLLMServing_vllm, WhisperTranscriptionGenerator
from rows import SAMPLES, read_rows


class WhisperPipeline:
    """As DataFlow's users write it."""

    def __init__(self, model: str) -> None:
        self.llm_serving = LocalModelLLMServing_vllm(
            hf_model_name_or_path=model,
            vllm_tensor_parallel_size=1,
            vllm_max_tokens=None,
            vllm_gpu_memory_utilization=0.7,
        )
        self.storage = FileStorage(
            first_entry_file_name="data.jsonl",
            cache_path="./cache",
            file_name_prefix="whisper_transcription",
            cache_type="jsonl",
            media_key="audio",
            media_type="audio",
        )
        self.generator = WhisperTranscriptionGenerator(self.llm_serving)

    def forward(self) -> None:
        self.generator.run(
            storage=self.storage.step(),
            task="transcribe",
            language="mandarin",
            use_no_time_stamps=True,
            output_key="transcription",
        )
        self.generator.run(
            storage=self.storage.step(),
            task="translate",
            language="mandarin",
            use_no_time_stamps=False,
            output_key="english",
        )


def test_the_guides_pipeline_hears_mandarin_and_says_it_in_english(
    real_fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given the guide's row, with a path that starts at the working directory
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REDIS_URL", real_fleet.url)
    (tmp_path / "audio").symlink_to(SAMPLES / "audio")
    (tmp_path / "data.jsonl").write_text('{"audio": ["audio/zh_weather.wav"]}\n')
    # When its steps run
    pipeline = WhisperPipeline("openai/whisper-base")
    pipeline.forward()
    pipeline.llm_serving.cleanup()
    # Then the first wrote what is said, and the second what it means
    (row,) = read_rows(tmp_path / "cache" / "whisper_transcription_step2.jsonl")
    assert "今天" in row["transcription"]
    assert "today" in row["english"].lower()
    assert row["english_segments"][-1]["end"] > row["english_segments"][0]["start"] >= 0

"""A pipeline of two steps: what is said in each recording, and the same in English.

    python two_step_pipeline.py data.jsonl [MODEL]

``data.jsonl`` has a line for each recording, as in {"audio": ["talk.mp3"]}. The steps are written to ./cache; the same
command again goes on where it was interrupted.
"""

from __future__ import annotations

import sys

from producer.dataflow import FileStorage, LocalModelLLMServing_vllm, WhisperTranscriptionGenerator


class TwoStepPipeline:
    """Transcribes, then translates."""

    def __init__(self, first_entry_file_name: str, model: str | None = None) -> None:
        self.storage = FileStorage(
            first_entry_file_name=first_entry_file_name,
            cache_path="./cache",
            file_name_prefix="two_steps",
            cache_type="jsonl",
            media_key="audio",
            media_type="audio",
        )
        self.llm_serving = LocalModelLLMServing_vllm(hf_model_name_or_path=model)
        self.generator = WhisperTranscriptionGenerator(self.llm_serving)

    def forward(self) -> None:
        """Run both steps on one engine."""
        self.generator.run(storage=self.storage.step(), task="transcribe", language="auto", output_key="transcription")
        self.generator.run(storage=self.storage.step(), task="translate", language="auto", output_key="english")
        self.llm_serving.cleanup()


if __name__ == "__main__":
    TwoStepPipeline(*sys.argv[1:3]).forward()

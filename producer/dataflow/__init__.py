"""The DataFlow way: the same names as in a DataFlow pipeline, with a fleet behind them.

A pipeline class of DataFlow's speech guide runs as it stands with this one line:

    from producer.dataflow import FileStorage, LocalModelLLMServing_vllm, WhisperTranscriptionGenerator

Importing it loads neither pandas nor pyarrow: they come with the extra ``dataflow`` and are loaded where a DataFrame or
a format other than JSON is read or written.
"""

from __future__ import annotations

from producer.dataflow.operator import WhisperTranscriptionGenerator
from producer.dataflow.serving import LocalModelLLMServing_vllm
from producer.dataflow.storage import FileStorage

__all__ = ["FileStorage", "LocalModelLLMServing_vllm", "WhisperTranscriptionGenerator"]

"""Streams frames from Kafka through a FiFa-MLLM engine and answers with verdicts."""

__version__ = "0.1.0"

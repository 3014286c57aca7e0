"""Learns FiFa-MLLM: annotate pairs, train, evaluate, export. The only package that may hold torch for long."""

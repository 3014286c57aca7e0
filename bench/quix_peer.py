"""One run of Quix Streams for `make overhead`, in an environment of its own (requirements/peers.txt): it asks for an older confluent-kafka than ours.

Reads frames, answers each with the bytes and headers that the bare loop writes, commits once a second; prints seconds and CPU seconds as JSON.
"""

import argparse
import base64
import json
import time
from pathlib import Path
from typing import Any

from quixstreams import Application


def main() -> None:
    """Run until so many records are answered."""
    parser = argparse.ArgumentParser(description="What a record costs in Quix Streams.")
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--run", required=True, help="consumer group")
    parser.add_argument("--records", type=int, required=True)
    parser.add_argument("--guarantee", choices=("at-least-once", "exactly-once"), required=True)
    parser.add_argument("--frames", required=True, help="topic")
    parser.add_argument("--verdicts", required=True, help="topic")
    parser.add_argument("--answer", type=Path, required=True, help="JSON file: value and header values in base64")
    options = parser.parse_args()
    cpu = time.process_time()
    answer = json.loads(options.answer.read_text())
    value = base64.b64decode(answer["value"])
    headers = [(name, base64.b64decode(data)) for name, data in answer["headers"]]
    app = Application(
        broker_address=options.bootstrap,
        consumer_group=options.run,
        auto_offset_reset="earliest",
        commit_interval=1.0,
        processing_guarantee=options.guarantee,
        producer_extra_config={"linger.ms": 5},
        auto_create_topics=False,
        loglevel="ERROR",
    )
    began = 0.0

    def judge(_: Any) -> bytes:
        nonlocal began
        began = began or time.perf_counter()
        return value

    frames = app.topic(options.frames, key_deserializer="bytes", value_deserializer="bytes")
    verdicts = app.topic(options.verdicts, key_serializer="bytes", value_serializer="bytes")
    stream = app.dataframe(frames).apply(judge)
    stream = stream.set_headers(lambda *_: headers)
    stream.to_topic(verdicts)
    app.run(count=options.records, collect=False)
    print(json.dumps({"wall": time.perf_counter() - began, "cpu": time.process_time() - cpu}))


if __name__ == "__main__":
    main()

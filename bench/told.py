"""What verdicts say of their streams, and what one member says of the same frames that nothing disturbs."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from fifa_stream.config import KafkaSettings, Settings, StreamSettings
from fifa_stream.records import Verdict
from fifa_stream.runner import Runner
from fifa_stream.testing import FakeClock, InlineWorker, MemoryBroker, MemoryConsumer, MemoryProducer, ToyProcessor
from fifa_stream.topic_reader import read_topic

Told = dict[tuple[int, int], list[str]]
"""By partition and offset of the input, what each of its answers says of its stream."""


def told(records: Iterable[Any]) -> Told:
    """Of verdict records."""
    found: Told = {}
    for record in records:
        verdict = Verdict.from_bytes(record.value or b"")
        assert verdict.input is not None
        parts = verdict.model_dump_json(include={"timeline", "segments", "stream"})
        found.setdefault((verdict.input.partition, verdict.input.offset), []).append(parts)
    return found


def undisturbed(kafka: KafkaSettings, streams: StreamSettings) -> Told:
    """What one member says of the frames of a topic that holds everything in memory and sees nothing fail."""
    logs: dict[int, list[Any]] = defaultdict(list)
    for record in read_topic(kafka, kafka.frames_topic):
        logs[record.partition].append(record)
    num_partitions, clock = 1 + max(logs), FakeClock()
    broker = MemoryBroker({kafka.frames_topic: num_partitions, kafka.verdicts_topic: num_partitions, kafka.dead_letters_topic: 1})
    for number, log in logs.items():
        broker.rewrite(kafka.frames_topic, number, log)
    settings = Settings(
        kafka=KafkaSettings(**kafka.model_dump(include={"frames_topic", "verdicts_topic", "dead_letters_topic"})),
        streams=streams.model_copy(update={"memory": "volatile"}),
    )
    runner = Runner(
        settings,
        ToyProcessor(),
        consumer=(consumer := MemoryConsumer(broker, settings.kafka.group_id, clock=clock)),
        open_producer=lambda: MemoryProducer(broker),
        worker=InlineWorker,
        clock=clock,
    )
    consumer.subscribe(kafka.frames_topic, runner)
    while len(broker.records(kafka.verdicts_topic)) < sum(map(len, logs.values())):
        runner.turn()
    return told(broker.records(kafka.verdicts_topic))

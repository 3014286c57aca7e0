"""Dead letters of a real worker: listed, shown, sent again byte for byte, whatever they try on the terminal. And topics read to their end."""

import json
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import kafka as kafka_python
import pytest
from typer.testing import CliRunner

from fifa_stream.cli import app
from fifa_stream.cluster import BrokerError, create_topics
from fifa_stream.config import KafkaSettings
from fifa_stream.exits import ExitCode
from fifa_stream.records import DeadLetter, Headers, RawRecord, Reason, RecordError, dead_letter_record
from fifa_stream.topic_reader import Span, read_topic

from .apache_kafka import ApacheKafka

pytestmark = pytest.mark.usefixtures("clean_environment")

HOSTILE = "\x1b]0;owned\x07\x1b[2J\r\n\u202egpj.exe\x9b31m [bold red]markup[/] \u2028"
HEADERS: Headers = (("stream-id", b"cam"), ("x-note", HOSTILE.encode()), ("x-note", b""), ("dlq-topic", b"elsewhere"), ("x-\x1b[5m", b"blink"))
BAD_IMAGE = b"bad" + bytes(range(256)) * 40


def invoke(kafka: KafkaSettings, *arguments: str) -> Any:
    names = ("bootstrap_servers", "frames_topic", "verdicts_topic", "dead_letters_topic")
    return CliRunner().invoke(app, ["dead-letters", *arguments], env={f"FIFA_KAFKA__{name.upper()}": getattr(kafka, name) for name in names})


def put(kafka: KafkaSettings, topic: str, *records: tuple[bytes | None, bytes | None, Headers], partition: int | None = None) -> None:
    producer = kafka_python.KafkaProducer(**kafka.client_options(), batch_size=256 << 10, linger_ms=20)
    try:
        futures = [producer.send(topic, key=key, value=value, headers=list(headers), partition=partition) for key, value, headers in records]
        for future in futures:
            future.get(timeout=60)
    finally:
        producer.close(timeout=10)


def put_and_await_letters(stream: Any, *records: tuple[bytes | None, bytes | None, Headers]) -> list[RawRecord]:
    """Frames that a worker makes dead letters of; the letters."""
    kafka = stream.settings
    before = len(list(read_topic(kafka, kafka.dead_letters_topic)))
    put(kafka, kafka.frames_topic, *records)
    while len(letters := list(read_topic(kafka, kafka.dead_letters_topic))) < before + len(records):
        assert stream.workers[-1].process.poll() is None, "".join(stream.workers[-1].lines)
    return letters[before:]


def rows(kafka: KafkaSettings, *options: str) -> list[dict[str, Any]]:
    listed = invoke(kafka, "list", "--json", *options)
    assert listed.exit_code == 0, listed.output
    return [json.loads(line) for line in listed.stdout.splitlines()]


def assert_harmless(text: str) -> None:
    assert all(line.isprintable() for line in text.split("\n")), "a control character reached the terminal"


def test_letters_of_a_worker_are_listed_shown_and_sent_again_byte_for_byte(embedded: str, new_stream: Any, tmp_path: Path) -> None:
    stream = new_stream(embedded)
    kafka = stream.settings
    worker = stream.start_worker()
    worker.wait_ready()
    sent = [(b"cam", BAD_IMAGE, HEADERS), (None, b"bad", ()), (b"\xff\x1b[2J", b"bad", ()), (b"cam", None, (("stream-id", b"cam"),))]
    letters = [DeadLetter.of(raw) for raw in put_and_await_letters(stream, *sent)]
    assert sorted(letter.reason for letter in letters) == ["empty_value", "invalid_header", "undecodable_image", "undecodable_image"]

    # list
    listed = invoke(kafka, "list")
    assert listed.exit_code == 0, listed.output
    assert_harmless(listed.output)
    assert "4 dead letters: undecodable_image 2" in listed.output
    assert [row["reason"] for row in rows(kafka, "--reason", "empty_value")] == ["empty_value"]
    assert len(rows(kafka, "--limit", "3")) == 3
    in_an_hour = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    assert rows(kafka, "--since", in_an_hour) == [] and len(rows(kafka, "--since", "10m")) == 4

    # show
    (whole,) = [letter for letter in letters if letter.raw.value == BAD_IMAGE]
    name = f"{whole.raw.partition}/{whole.raw.offset}"
    saved = tmp_path / "original"
    shown = invoke(kafka, "show", name, "--save", str(saved))
    assert shown.exit_code == 0, shown.output
    assert_harmless(shown.output)
    assert "x-note: ?]0;owned?" in shown.output and "[bold red]markup[/]" in shown.output and "0000  62 61 64 00 01" in shown.output
    assert saved.read_bytes() == BAD_IMAGE
    again = invoke(kafka, "show", name, "--save", str(saved))
    assert again.exit_code == ExitCode.USAGE and saved.read_bytes() == BAD_IMAGE

    # replay, first to a topic that nobody reads
    create_topics(kafka, {"mended": 3}, replication=1)
    dry = invoke(kafka, "replay", "--topic", "mended", "--dry-run")
    assert dry.exit_code == 0 and "4 would be sent, 4 to mended" in dry.output
    assert_harmless(dry.output)
    assert list(read_topic(kafka, "mended")) == [], "a dry run sends nothing"
    replayed = invoke(kafka, "replay", "--topic", "mended")
    assert replayed.exit_code == 0 and "4 sent, 4 to mended" in replayed.output
    mended = {(raw.key, raw.value, raw.headers) for raw in read_topic(kafka, "mended")}
    assert mended == {(key, value, (*headers, ("dlq-replayed", b"1"))) for key, value, headers in sent}

    # then to where they lay: the worker fails again, and counts
    assert invoke(kafka, "replay", "--partition", "0", "--offset", str(whole.raw.offset), "--limit", "1").exit_code == 0
    while len(tried := [row for row in rows(kafka) if row["tries"] == 2]) < 1:
        assert worker.process.poll() is None
    assert tried[0]["original"].startswith(f"{kafka.frames_topic}/{whole.partition}/"), "same topic and partition"
    assert tried[0]["value_sha256"] == whole.value_sha256
    assert worker.end(signal.SIGTERM) == 0


class Unreadable(str):
    """A name of a header as a producer on librdkafka may send it."""

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return b"x-\xff\x1b[2J\xc3"


def test_a_header_whose_name_is_no_text_stops_nobody_and_keeps_its_bytes(embedded: str, new_stream: Any) -> None:
    stream = new_stream(embedded)
    kafka = stream.settings
    worker = stream.start_worker()
    worker.wait_ready()
    headers = (("stream-id", b"cam"), (Unreadable("x"), b"1"), ("after", b"2"))
    letters = put_and_await_letters(stream, (b"cam", b"bad", headers), (b"cam", b"bad", ()))
    assert worker.end(signal.SIGTERM) == 0
    named = [letter for letter in letters if letter.headers[0][0] == "stream-id"]
    assert [name.encode() for name, _ in named[0].headers[:3]] == [b"stream-id", b"x-\xff\x1b[2J\xc3", b"after"]
    shown = invoke(kafka, "show", f"{named[0].partition}/{named[0].offset}")
    assert shown.exit_code == 0, shown.output
    assert_harmless(shown.output)
    create_topics(kafka, {"named": 1}, replication=1)
    assert invoke(kafka, "replay", "--topic", "named").exit_code == 0
    assert any(name.encode() == b"x-\xff\x1b[2J\xc3" for raw in read_topic(kafka, "named") for name, _ in raw.headers)
    assert len(rows(kafka, "--records")) == 2


def test_no_letter_is_left_out_of_json_however_many_there_are_and_however_many_headers_one_has(embedded: str, new_stream: Any) -> None:
    kafka = new_stream(embedded).settings
    error = RecordError(Reason.INVALID_HEADER, "no text")
    many = tuple((f"h{number}", b"") for number in range(1_100))
    frames = (RawRecord(kafka.frames_topic, 0, number, 0, b"cam", b"image", many if number == 7 else ()) for number in range(120))
    letters = (dead_letter_record(raw, error, group="g", keep_value=True) for raw in frames)
    put(kafka, kafka.dead_letters_topic, *((one.key, one.value, one.headers) for one in letters))
    listed = rows(kafka, "--records")
    assert [row["original"].rpartition("/")[2] for row in listed] == [str(number) for number in range(120)]
    assert len(listed[7]["record"]["headers"]) == 1_101, "and dlq-replayed"
    assert len(rows(kafka, "--limit", "3")) == 3
    assert "120 dead letters" in invoke(kafka, "list").output


def test_what_is_no_letter_is_counted_and_its_text_stays_away_from_the_terminal(embedded: str, new_stream: Any) -> None:
    kafka = new_stream(embedded).settings
    put(kafka, kafka.dead_letters_topic, (b"k", b"v", (("dlq-reason", HOSTILE.encode()),)), (b"k", b"v", ()))
    for command in (("list",), ("replay", "--dry-run")):
        result = invoke(kafka, *command)
        assert result.exit_code == 0 and "2 records on the topic are no letters of ours" in result.output
        assert_harmless(result.output)
    shown = invoke(kafka, "show", "0/0")
    assert shown.exit_code == ExitCode.SOME_FAILED and "has no dlq- headers of ours" in shown.output


def test_a_forged_letter_cannot_steer_the_terminal(embedded: str, new_stream: Any) -> None:
    """Whoever may write to the topic may write our headers too."""
    kafka = new_stream(embedded).settings
    names = ["reason", "error", "topic", "partition", "offset", "timestamp", "attempts", "consumer-group", "version", "value-sha256", "kept"]
    values = [HOSTILE, HOSTILE, "frames", "0", "1", "9" * 18, "1", HOSTILE, "1", HOSTILE, "all"]
    forged = tuple((f"dlq-{name}", value.encode()) for name, value in zip(names, values, strict=True))
    put(kafka, kafka.dead_letters_topic, (HOSTILE.encode(), b"v", (*HEADERS, *forged)))
    for command in (("list",), ("list", "--json"), ("show", "0/0"), ("replay",), ("replay", "--dry-run")):
        result = invoke(kafka, *command)
        assert_harmless(result.output)
        assert result.exit_code == (ExitCode.SOME_FAILED if command[0] == "replay" else 0), "its digest is none"


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        pytest.param(("show", "0/99"), ExitCode.SOME_FAILED, "there is no letter 0/99", id="no such letter"),
        pytest.param(("show", "0/\x1b[2J"), ExitCode.USAGE, "names no letter", id="no coordinates"),
        pytest.param(("show", "9/0"), ExitCode.BROKER, "has no partition 9", id="no such partition"),
        pytest.param(("list", "--reason", "bad_luck"), ExitCode.USAGE, "choose from empty_value", id="no such reason"),
        pytest.param(("list", "--since", "yesterday"), ExitCode.USAGE, "is no time", id="no time"),
        pytest.param(("replay", "--offset", "3"), ExitCode.USAGE, "--partition", id="offset of which partition"),
    ],
)
def test_a_wrong_request_is_one_line_and_its_status(embedded: str, new_stream: Any, arguments: tuple[str, ...], status: ExitCode, says: str) -> None:
    result = invoke(new_stream(embedded).settings, *arguments)
    assert result.exit_code == status, result.output
    (line,) = result.stderr.strip().splitlines()
    assert says in line and line.isprintable()


def test_a_topic_is_read_to_its_end_in_order(bootstrap_servers: str, new_stream: Any) -> None:
    kafka = new_stream(bootstrap_servers).settings
    for partition in (0, 2):  # 1 stays empty
        put(kafka, kafka.frames_topic, *[(b"k", b"%d" % number, ()) for number in range(700)], partition=partition)
    records = list(read_topic(kafka, kafka.frames_topic))
    assert len(records) == 1_400
    for partition in (0, 2):
        assert [record.value for record in records if record.partition == partition] == [b"%d" % number for number in range(700)]
    assert [record.offset for record in read_topic(kafka, kafka.frames_topic, Span(partition=2, offset=697))] == [697, 698, 699]
    assert list(read_topic(kafka, kafka.frames_topic, Span(partition=2, offset=10_000))) == []
    assert list(read_topic(kafka, kafka.frames_topic, Span(since_ms=records[0].timestamp_ms + 3_600_000))) == []
    with pytest.raises(BrokerError, match="there is no topic 'none'"):
        list(read_topic(kafka, "none"))


@pytest.mark.kafka
def test_aborted_and_open_transactions_are_neither_read_nor_waited_for(apache: ApacheKafka, new_stream: Any) -> None:
    kafka = new_stream(apache.bootstrap_servers).settings
    producer = kafka_python.KafkaProducer(**kafka.client_options(), transactional_id="t")
    try:
        producer.init_transactions()
        for is_kept in (True, False):
            producer.begin_transaction()
            producer.send(kafka.frames_topic, b"kept" if is_kept else b"aborted", partition=0).get(timeout=60)
            if is_kept:
                producer.commit_transaction()
            else:
                producer.abort_transaction()
        assert [record.value for record in read_topic(kafka, kafka.frames_topic)] == [b"kept"]
        producer.begin_transaction()
        producer.send(kafka.frames_topic, b"open", partition=0).get(timeout=60)
        assert [record.value for record in read_topic(kafka, kafka.frames_topic)] == [b"kept"]
        producer.abort_transaction()
    finally:
        producer.close(timeout=10)

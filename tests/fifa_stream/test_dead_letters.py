"""Limits by run and ratio, letters that fit, and letters read back as what they were."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.record.default_records import DefaultRecordBatchBuilder
from pydantic import ValidationError

from fifa_stream.config import DeadLetterSettings, KafkaSettings
from fifa_stream.dead_letter_tools import replay
from fifa_stream.dead_letters import REMEDIES, DeadLetterGuard, TooManyDeadLetters, fitted_dead_letter
from fifa_stream.exits import EXPECTED_ERRORS, ExitCode
from fifa_stream.offsets import Assignment, Ticket
from fifa_stream.records import DeadLetter, Kept, NotADeadLetter, OutRecord, RawRecord, Reason, RecordError
from fifa_stream.runner import HEADER_BYTES

DOCS = Path(__file__).resolve().parents[2] / "docs" / "dead-letters.md"
P0, P1 = (Ticket(RawRecord("frames", number, 0, 0, None, b"", ()), Assignment()) for number in range(2))
"""Records of two partitions."""
BAD = Reason.UNDECODABLE_IMAGE
ERROR = RecordError(BAD, "cut short")


def guard(**limits: Any) -> DeadLetterGuard:
    return DeadLetterGuard(DeadLetterSettings(**limits))


def stops_at(watch: DeadLetterGuard, answers: list[Reason | None]) -> int | None:
    """Number of the answer that is refused."""
    for number, reason in enumerate(answers):
        try:
            watch.answered(P0, reason)
        except TooManyDeadLetters:
            return number
    return None


@pytest.mark.parametrize("num_headers", [0, 5_000, 349_000])
def test_a_letter_can_be_sent_however_many_headers_the_frame_had(num_headers: int) -> None:
    def sent_bytes(record: RawRecord | OutRecord) -> int:
        return int(DefaultRecordBatchBuilder.estimate_size_in_bytes(record.key, record.value, list(record.headers)))

    most = KafkaSettings().max_request_bytes
    frame = RawRecord("frames", 0, 0, 0, b"k", b"", (("a", b""),) * num_headers)
    frame = frame._replace(value=b"x" * (most - sent_bytes(frame) - 4))
    assert sent_bytes(frame) <= most, "the broker took it"
    letter = fitted_dead_letter(frame, ERROR, group="g", keep_image=True, max_bytes=most - HEADER_BYTES)
    assert sent_bytes(letter) <= most


def test_the_worker_stops_before_a_run_is_complete_and_says_what_to_do() -> None:
    watch = guard(max_run=3)
    watch.answered(P0, Reason.EMPTY_VALUE)
    watch.answered(P0, BAD)
    with pytest.raises(TooManyDeadLetters) as caught:
        watch.answered(P0, BAD)
    text = str(caught.value)
    for part in ("3 records in a row of frames/0", "2 of them for undecodable_image", "dead_letters.max_run is 3", "dead-letters list"):
        assert part in text
    assert "\n" not in text


def test_a_verdict_ends_a_run_and_partitions_are_counted_apart() -> None:
    watch = guard(max_run=2)
    for _ in range(50):
        watch.answered(P0, BAD)
        watch.answered(P1, BAD)
        watch.answered(P0, None)
        watch.answered(P1, None)
    watch.answered(P0, BAD)
    with pytest.raises(TooManyDeadLetters):
        watch.answered(P0, BAD)


def test_a_ratio_counts_once_enough_was_answered() -> None:
    assert stops_at(guard(max_run=0, max_ratio=0.5, window=10, min_answers=5), [BAD, BAD, BAD, BAD, None, BAD]) == 5
    assert stops_at(guard(max_run=0, max_ratio=0.5, window=10, min_answers=4), [None, BAD] * 100) is None, "half is not above half"


def test_a_ratio_looks_back_on_the_window_only() -> None:
    assert stops_at(guard(max_run=0, max_ratio=0.5, window=4, min_answers=4), [None] * 1_000 + [BAD] * 10) == 1_002


def test_limits_can_be_turned_off() -> None:
    assert stops_at(guard(max_run=0, max_ratio=1, window=4, min_answers=1), [BAD] * 1_000) is None


def test_a_partition_that_comes_back_begins_anew() -> None:
    watch = guard(max_run=2)
    watch.answered(P0, BAD)
    watch.answered(P1, BAD)
    watch.answered(Ticket(P0.record, Assignment()), BAD)
    with pytest.raises(TooManyDeadLetters):
        watch.answered(P1, BAD)


@given(
    answers=st.lists(st.sampled_from([None, None, BAD, Reason.EMPTY_VALUE]), max_size=80),
    max_run=st.integers(0, 6),
    max_ratio=st.sampled_from([0.2, 0.5, 0.9, 1.0]),
    window=st.integers(1, 12),
    data=st.data(),
)
def test_the_guard_says_what_counting_says(answers: list[Reason | None], max_run: int, max_ratio: float, window: int, data: st.DataObject) -> None:
    min_answers = data.draw(st.integers(1, window))

    def expected() -> int | None:
        for number, reason in enumerate(answers):
            seen = answers[: number + 1]
            last = seen[-window:]
            dead = [answer for answer in last if answer is not None]
            runs = max_run > 0 and len(seen) >= max_run and None not in seen[-max_run:]
            if reason is not None and (runs or (len(last) >= min_answers and len(dead) > max_ratio * len(last))):
                return number
        return None

    assert stops_at(guard(max_run=max_run, max_ratio=max_ratio, window=window, min_answers=min_answers), answers) == expected()


def test_a_ratio_that_would_never_count_is_refused() -> None:
    with pytest.raises(ValidationError, match="min_answers 20 must not be above window 10"):
        DeadLetterSettings(window=10, min_answers=20)


def test_too_many_dead_letters_end_the_program_with_stopped() -> None:
    assert "fifa_stream.dead_letters.TooManyDeadLetters" in EXPECTED_ERRORS[ExitCode.STOPPED]


def test_every_reason_has_a_remedy_and_the_page_has_both() -> None:
    page = DOCS.read_text("utf-8")
    assert REMEDIES.keys() == set(Reason)
    rows = [f"| `{reason.value}` | {REMEDIES[reason]} |" for reason in Reason]
    assert "\n".join(rows) in page


def frame(value: bytes | None = b"image", key: bytes | None = b"k", headers: tuple[tuple[str, bytes], ...] = (("x", b"1"),)) -> RawRecord:
    return RawRecord("frames", 2, 17, 1_700_000_000_000, key, value, headers)


def on_topic(record: OutRecord, offset: int = 5) -> RawRecord:
    return RawRecord("dead", 0, offset, 1_700_000_001_000, record.key, record.value, record.headers)


def letter_of(raw: RawRecord, *, keep_image: bool = True, max_bytes: int = 1 << 20) -> DeadLetter:
    return DeadLetter.of(on_topic(fitted_dead_letter(raw, ERROR, group="g", keep_image=keep_image, max_bytes=max_bytes)))


def test_a_letter_is_read_back() -> None:
    letter = letter_of(frame())
    assert (letter.reason, letter.error, letter.group, letter.kept) == ("undecodable_image", "cut short", "g", Kept.ALL)
    assert (letter.topic, letter.partition, letter.offset, letter.timestamp_ms, letter.attempts) == ("frames", 2, 17, 1_700_000_000_000, 1)
    assert letter.value_sha256 == hashlib.sha256(b"image").hexdigest() and letter.is_whole


NAMES = st.text(max_size=8) | st.sampled_from(["dlq-reason", "dlq-kept", "dlq-topic", "dlq-replayed", "stream-id"])


@given(
    key=st.none() | st.binary(max_size=20),
    value=st.none() | st.binary(max_size=200),
    headers=st.lists(st.tuples(NAMES, st.binary(max_size=20)), max_size=14),
)
def test_an_original_comes_back_as_it_was_whatever_its_headers(key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]]) -> None:
    """But for a header that counts replays, which is ours, and a record without key and value, which cannot be sent."""
    raw = frame(value, key, tuple(headers))
    record = letter_of(raw).original()
    kept = tuple((name, data) for name, data in headers if name != "dlq-replayed")
    assert (record.key, record.headers[:-1]) == (key, kept)
    assert record.value == (b"" if key is None and value is None else value)
    assert record.headers[-1][0] == "dlq-replayed"


def test_every_replay_is_counted() -> None:
    raw = frame()
    for attempt in (1, 2, 3):
        letter = letter_of(raw)
        assert letter.attempts == attempt
        record = letter.original()
        assert [data for name, data in record.headers if name == "dlq-replayed"] == [str(attempt).encode()]
        raw = RawRecord("frames", 2, 17 + attempt, 0, record.key, record.value, record.headers)


@pytest.mark.parametrize("count", [b"", b"-1", b"one", b"9" * 5_000, b"\xd9\xa3", b"\xff"])
def test_a_count_that_is_none_does_not_count(count: bytes) -> None:
    assert letter_of(frame(headers=(("dlq-replayed", count),))).attempts == 1


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        pytest.param({"keep_image": False}, Kept.HEADERS, id="told to leave it out"),
        pytest.param({"max_bytes": 600}, Kept.HEADERS, id="image too large"),
        pytest.param({"max_bytes": 100}, Kept.NOTHING, id="all too large"),
    ],
)
def test_a_letter_says_what_it_left_out_and_is_not_replayed(options: dict[str, Any], kept: Kept) -> None:
    letter = letter_of(frame(b"x" * 500), **options)
    assert (letter.kept, letter.is_whole, letter.raw.value) == (kept, False, b"")
    assert (letter.raw.key, letter.headers) == ((b"k", (("x", b"1"),)) if kept is Kept.HEADERS else (None, ()))
    assert letter.value_sha256 == hashlib.sha256(b"x" * 500).hexdigest()
    (outcome,) = replay(KafkaSettings(), [letter], dry_run=True)
    assert outcome.record is None and "left out" in outcome.skipped


def test_where_nothing_is_to_be_left_out_a_letter_is_whole() -> None:
    """A claim is in the headers."""
    letter = letter_of(frame(None), keep_image=False)
    assert letter.is_whole and letter.original().value is None


@pytest.mark.parametrize("topic", [".", ".."])
def test_a_letter_of_a_stranger_that_names_no_topic_stops_nobodys_replay(topic: str) -> None:
    (outcome,) = replay(KafkaSettings(), [replace(letter_of(frame()), topic=topic)], dry_run=True)
    assert outcome.record is None and "no topic" in outcome.skipped


@pytest.mark.parametrize("topic", ["fifa.verdicts", "fifa.dead-letters", "fifa.shadow", "fifa.state"])
def test_a_letter_of_a_stranger_makes_nobody_write_answers(topic: str) -> None:
    kafka = KafkaSettings(shadow_topic="fifa.shadow", state_topic="fifa.state")
    (outcome,) = replay(kafka, [replace(letter_of(frame()), topic=topic)], dry_run=True)
    assert outcome.record is None and "where answers go" in outcome.skipped


def test_a_value_that_was_changed_is_not_replayed() -> None:
    record = fitted_dead_letter(frame(), ERROR, group="g", keep_image=True, max_bytes=1 << 20)
    (outcome,) = replay(KafkaSettings(), [DeadLetter.of(on_topic(OutRecord(record.key, b"other", record.headers)))], dry_run=True)
    assert outcome.record is None and "digest" in outcome.skipped


def test_nothing_is_replayed_to_the_dead_letters_topic() -> None:
    (outcome,) = replay(KafkaSettings(), [letter_of(frame())], topic="fifa.dead-letters", dry_run=True)
    assert outcome.record is None and outcome.skipped


def changed(name: str, data: bytes) -> tuple[tuple[str, bytes], ...]:
    headers = fitted_dead_letter(frame(), ERROR, group="g", keep_image=True, max_bytes=1 << 20).headers
    return tuple((key, data if key == name else value) for key, value in headers)


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param((), id="no headers"),
        pytest.param((("dlq-reason", b"empty_value"),), id="one of ours"),
        pytest.param((*changed("", b""), ("more", b"")), id="something behind them"),
        pytest.param(changed("dlq-topic", b"../\x1b[2J"), id="topic that cannot be"),
        pytest.param(changed("dlq-offset", b"9" * 5_000), id="absurdly long number"),
        pytest.param(changed("dlq-attempts", b"two"), id="no number"),
        pytest.param(changed("dlq-kept", b"some"), id="kept what"),
    ],
)
def test_what_the_worker_did_not_write_is_no_letter(headers: tuple[tuple[str, bytes], ...]) -> None:
    with pytest.raises(NotADeadLetter) as caught:
        DeadLetter.of(RawRecord("dead", 0, 5, 0, b"k", b"image", headers))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300


@given(st.lists(st.tuples(st.text(max_size=5) | st.sampled_from([name for name, _ in changed("", b"")]), st.binary(max_size=9)), max_size=14))
def test_whatever_lies_on_the_topic_only_not_a_dead_letter_comes_out(headers: list[tuple[str, bytes]]) -> None:
    for ours in ((), changed("dlq-error", b"\xff\x1b")):
        try:
            DeadLetter.of(RawRecord("dead", 0, 5, 0, None, None, (*headers, *ours)))
        except NotADeadLetter:
            assert not ours

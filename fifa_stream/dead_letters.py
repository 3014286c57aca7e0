"""Dead letters: how large one may be, and how many there may be before the worker stops.

TooManyDeadLetters   a partition turns into dead letters: stop before this one is written and its offset committed
"""

from collections import Counter, deque
from dataclasses import dataclass

from fifa_stream.config import DeadLetterSettings
from fifa_stream.offsets import Assignment, Partition, Ticket
from fifa_stream.records import OutRecord, RawRecord, Reason, RecordError, dead_letter_record

REMEDIES = {
    Reason.EMPTY_VALUE: "Send the encoded image as the record's value, or a claim (docs/claims.md).",
    Reason.INVALID_HEADER: "Mend the header that the error names; headers and key are UTF-8.",
    Reason.RECORD_TOO_LARGE: "Send a smaller image or a claim, or raise limits.max_record_bytes; for a verdict raise kafka.max_request_bytes.",
    Reason.UNSUPPORTED_MEDIA: "Send JPEG, PNG or WebP, or H.264 in MP4 where the extra `video` is installed.",
    Reason.MEDIA_MISMATCH: "Make content-type what the bytes are, or leave it out.",
    Reason.UNDECODABLE_IMAGE: "The image is damaged or cut short: look at `dead-letters show --save`, and at what encodes it.",
    Reason.IMAGE_TOO_LARGE: "Send a smaller image, or raise limits.max_pixels.",
    Reason.IMAGE_TOO_SMALL: "Send an image in which a face can be seen.",
    Reason.UNDECODABLE_VIDEO: "The chunk is damaged or not self-contained: each one begins with a key frame and holds its own parameter sets.",
    Reason.VIDEO_TOO_LONG: "Send shorter chunks.",
    Reason.CLAIM_FORBIDDEN: "Add the place to claims.allowed, if frames may lie there.",
    Reason.CLAIM_UNAVAILABLE: "The object is gone, expired or not readable for the worker: keep objects for longer than the topic lags. Then replay.",
    Reason.CLAIM_MISMATCH: "The object was overwritten or cut short after the claim was made: give every image a name of its own.",
}
"""What to do about each reason; docs/dead-letters.md is held to this."""


def fitted_dead_letter(raw: RawRecord, error: RecordError, *, group: str, keep_image: bool, max_bytes: int) -> OutRecord:
    """As much of the input as fits `max_bytes` (key, value, headers, as they are sent): all of it, else all but the image, else where and why."""
    whole = dead_letter_record(raw, error, group=group, keep_value=keep_image)
    if _sent_bytes(whole) <= max_bytes:
        return whole
    without_image = dead_letter_record(raw, error, group=group, keep_value=False)
    if _sent_bytes(without_image) <= max_bytes:
        return without_image
    return dead_letter_record(raw, error, group=group, keep_value=False, keep_headers=False)


def _sent_bytes(record: OutRecord) -> int:
    """With the lengths that stand before names and values of headers: of thousands of short ones they are the greater part."""
    return record.size + sum(_length_bytes(len(name.encode())) + _length_bytes(len(data)) for name, data in record.headers)


def _length_bytes(number: int) -> int:
    """Of Kafka's zigzag varint."""
    return max(1, ((number << 1).bit_length() + 6) // 7)


class TooManyDeadLetters(Exception):
    """A partition is turning into dead letters, which an operator should look at. The message says which, how many, why most of them, what to do."""


@dataclass(slots=True)
class _Stay:
    """What is remembered of one stay of a partition."""

    assignment: Assignment
    window: deque[Reason | None]
    """The last answers; None is a verdict."""
    num_dead: int = 0
    """In the window."""
    run: int = 0
    """Dead letters since the last verdict."""


class DeadLetterGuard:
    """Counts answers by partition and stops the worker before a limit of `dead_letters` is passed. One thread; answers come in the order of their
    records.

    The counts begin anew with every assignment and every start. So a topic that only makes dead letters still advances, by less than `max_run` of
    them for each restart, and every restart is an exit 70 that an operator can see.
    """

    def __init__(self, limits: DeadLetterSettings) -> None:
        self._limits = limits
        self._stays: dict[Partition, _Stay] = {}

    def answered(self, ticket: Ticket, reason: Reason | None) -> None:
        """Before an answer is sent: None for a verdict. Raises TooManyDeadLetters, and then this letter must be neither sent nor committed."""
        limits, partition = self._limits, (ticket.record.topic, ticket.record.partition)
        stay = self._stays.get(partition)
        if stay is None or stay.assignment is not ticket.assignment:  # assigned anew, or begun again at the last commit
            stay = self._stays[partition] = _Stay(ticket.assignment, deque())
        if len(stay.window) == limits.window and stay.window.popleft() is not None:
            stay.num_dead -= 1
        stay.window.append(reason)
        if reason is None:
            stay.run = 0
            return
        stay.run += 1
        stay.num_dead += 1
        if limits.max_run and stay.run >= limits.max_run:
            self._stop(partition, stay, f"{stay.run} records in a row", "max_run", limits.max_run)
        answers = len(stay.window)
        if answers >= limits.min_answers and stay.num_dead > limits.max_ratio * answers:
            self._stop(partition, stay, f"{stay.num_dead} of the last {answers} records", "max_ratio", limits.max_ratio)

    def _stop(self, partition: Partition, stay: _Stay, found: str, setting: str, limit: float) -> None:
        ((reason, count),) = Counter(reason for reason in stay.window if reason is not None).most_common(1)
        topic, number = partition
        raise TooManyDeadLetters(
            f"{found} of {topic}/{number} cannot become verdicts, {count} of them for {reason.value}; stopped before the last one is committed "
            f"(dead_letters.{setting} is {limit:g}): see 'fifa-stream dead-letters list', then mend what sends or judges them, or raise the limit"
        )

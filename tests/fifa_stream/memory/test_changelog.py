"""Snapshots on the wire, and which of them hold at an offset."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fifa_stream.cluster import BrokerError
from fifa_stream.config import KafkaSettings
from fifa_stream.memory.changelog import KafkaChangelog, Restore, snapshot_record
from fifa_stream.memory.partition import Snapshot
from fifa_stream.records import RawRecord
from fifa_stream.testing import FakeClock
from fifa_stream.watchdog import Watchdog


def written(snapshots: Sequence[Snapshot], *, group: str = "g") -> list[RawRecord]:
    records = [snapshot_record(group, snapshot) for snapshot in snapshots]
    return [RawRecord("state", 0, offset, 0, record.key, record.value, record.headers) for offset, record in enumerate(records)]


def restored(records: Sequence[RawRecord], begin: int) -> list[Snapshot]:
    restore = Restore("g", begin)
    for record in records:
        restore.add(record)
    return list(restore.snapshots())


SNAPSHOTS = st.builds(Snapshot, st.text(max_size=20), st.integers(0, 2**62), st.integers(-1, 2**62), st.binary(max_size=30))


@given(SNAPSHOTS)
def test_a_snapshot_comes_back_as_it_was(snapshot: Snapshot) -> None:
    assert restored(written([snapshot]), snapshot.next_offset) == [snapshot]
    assert restored(written([snapshot]), snapshot.next_offset - 1) == []


def test_of_each_stream_the_newest_holds_that_stands_for_no_record_to_come() -> None:
    log = written([Snapshot("a", 3, 0, b"a3"), Snapshot("b", 4, 0, b"b4"), Snapshot("a", 9, 0, b"a9"), Snapshot("b", 12, 0, None)])
    assert {(one.stream_id, one.state) for one in restored(log, 8)} == {("a", b"a3"), ("b", b"b4")}
    assert {(one.stream_id, one.state) for one in restored(log, 9)} == {("a", b"a9"), ("b", b"b4")}
    assert {(one.stream_id, one.state) for one in restored(log, 12)} == {("a", b"a9")}
    assert restored(log, 2) == []


def test_what_a_member_writes_after_it_was_replaced_does_not_come_back() -> None:
    log = written([Snapshot("a", 3, 0, b"a3"), Snapshot("a", 9, 0, b"a9"), Snapshot("a", 5, 0, b"late"), Snapshot("a", 9, 0, b"again")])
    assert restored(log, 20) == [Snapshot("a", 9, 0, b"again")]


def test_groups_beside_each_other_have_their_own() -> None:
    log = [*written([Snapshot("a", 3, 0, b"ours")]), *written([Snapshot("a", 4, 0, b"theirs")], group="h"), *written([], group="g2")]
    assert len({record.key for record in log}) == 2
    assert restored(log, 10) == [Snapshot("a", 3, 0, b"ours")]


def test_records_that_are_no_snapshots_are_left_out_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    (good,) = written([Snapshot("a", 3, 0, b"a3")])
    bad = [
        good._replace(headers=()),
        good._replace(headers=(("fifa-next-offset", b"x"), ("fifa-timestamp-ms", b"0"))),
        good._replace(headers=(("other", b"1"), ("fifa-timestamp-ms", b"0"))),
        good._replace(key=b"g\0\xff"),
        good._replace(key=None),
    ]
    restore = Restore("g", 10)
    for record in [*bad, good, *bad]:
        restore.add(record)
    assert list(restore.snapshots()) == [Snapshot("a", 3, 0, b"a3")]
    assert restore.num_unreadable == 8 and len(caplog.records) == 1


@pytest.mark.parametrize("num_failures", [0, 3, 1_000])
def test_a_broker_that_is_away_is_asked_again_for_half_a_minute(monkeypatch: pytest.MonkeyPatch, num_failures: int) -> None:
    clock, signs_of_life, tries = FakeClock(), [0], [0]

    def read(self: KafkaChangelog, begins: object) -> dict[int, list[Snapshot]]:
        tries[0] += 1
        if tries[0] <= num_failures:
            raise BrokerError("no broker")
        return {0: []}

    def lives() -> None:
        signs_of_life[0] += 1

    monkeypatch.setattr(KafkaChangelog, "_read", read)
    changelog = KafkaChangelog(KafkaSettings(), is_tansu=False, watchdog=Watchdog(), alive=lives, clock=clock, pause=clock.advance)
    if num_failures < 1_000:
        assert changelog.read({0: 5}) == {0: []} and signs_of_life == [num_failures]
    else:
        with pytest.raises(BrokerError, match="no broker"):
            changelog.read({0: 5})
        assert 15 <= clock.now <= 30

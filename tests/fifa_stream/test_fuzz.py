"""Hostile records through the real loop, in a process of their own: each has one answer, the process lives on and its memory is flat."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench import fuzz
from fifa_stream.config import KafkaSettings
from fifa_stream.records import OutRecord, Verdict, parse_frame, verdict_record
from fifa_stream.testing import MemoryBroker, toy_result

ROOT = Path(__file__).resolve().parents[2]
KAFKA = KafkaSettings()


@pytest.mark.parametrize("count", [600, pytest.param(10_000, marks=pytest.mark.slow)])
def test_every_hostile_record_has_one_answer(count: int) -> None:
    command = [sys.executable, "-X", "faulthandler", "-m", "bench.fuzz", "--records", str(count)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"{count} records" in ended.stdout


def test_a_record_is_a_function_of_seed_and_number(tmp_path: Path) -> None:
    (tmp_path / "allowed").mkdir()
    made = [fuzz.hostile(1, number, tmp_path) for number in range(60)]
    assert [fuzz.hostile(1, number, tmp_path) for number in reversed(range(60))] == made[::-1]
    assert len({record.kind for record in made}) > 10


def test_an_answer_that_is_missing_and_one_too_many_are_noticed(tmp_path: Path) -> None:
    broker = MemoryBroker(fuzz.TOPICS)
    feeder = fuzz.Feeder(broker, [0, 1, 2], 1, tmp_path, lambda: None)
    (tmp_path / "allowed").mkdir()
    feeder()
    first, second, third = broker.records(KAFKA.frames_topic)
    for raw in (first, first, second):
        frame = parse_frame(raw._replace(headers=(), key=None, value=b"image"), max_value_bytes=100)
        verdict = toy_result(frame)
        assert isinstance(verdict, Verdict)
        broker.append(KAFKA.verdicts_topic, OutRecord(None, verdict_record(verdict, frame).value, ()), partition=0)
    feeder()
    assert sorted(fault.split(" ")[0] + fault[fault.index(" has") :] for fault in feeder.tally.faults) == [
        f"{first.place} has 2 answers",
        f"{third.place} has 0 answers",
    ]


@pytest.mark.parametrize(("rss_mib", "is_sound"), [(119.0, True), (121.0, False)])
def test_memory_may_grow_by_a_fifth(rss_mib: float, is_sound: bool) -> None:
    assert fuzz.Tally(rss_settled_mib=100.0, rss_mib=rss_mib).is_sound is is_sound

"""A second engine is compared, promoted and taken back while frames stream: no frame is lost, none is answered twice."""

import signal
from collections import Counter
from typing import Any

import pytest

from fifa_stream.cluster import create_topics
from fifa_stream.records import Verdict
from fifa_stream.testing import TOY_CANDIDATE, TOY_ENGINE
from fifa_stream.topic_reader import read_topic

pytestmark = pytest.mark.kafka

NUM_FRAMES = 900


def test_promotion_and_rollback_under_load_lose_and_double_nothing(apache: Any, new_stream: Any) -> None:
    stream = new_stream(apache.bootstrap_servers, processing_guarantee="exactly_once", shadow_topic="roll-out.shadow-verdicts")
    create_topics(stream.settings, {"roll-out.shadow-verdicts": 3}, replication=1)

    def start(roll_out: str, pod: int) -> Any:
        # The one value that changes; a pod keeps its transactional id, as the chart gives it one.
        settings = {"FIFA_ENGINE__CANDIDATE": "/engines/next", "FIFA_ENGINE__SHADOW_SHARE": "1.0", "FIFA_ENGINE__ROLL_OUT": roll_out}
        worker = stream.start_worker(frame_ms=1.0, environment=settings, transactional_id=f"pod-{pod}")
        worker.wait_ready()
        return worker

    pods = [start("shadow", pod) for pod in (0, 1)]
    for roll_out in ("promoted", "shadow"):
        stream.send([b"image"] * NUM_FRAMES)
        for pod, worker in enumerate(pods):  # one after the other, as a rolling update does
            assert worker.end(signal.SIGTERM) == 0, "".join(worker.lines)
            pods[pod] = start(roll_out, pod)
    stream.send([b"image"] * NUM_FRAMES)

    assert stream.keeps_its_promise() == 0
    for worker in pods:
        assert worker.end(signal.SIGTERM) == 0, "".join(worker.lines)
    verdicts = [Verdict.from_bytes(record.value or b"") for record in read_topic(stream.settings, stream.settings.verdicts_topic)]
    second = [Verdict.from_bytes(record.value or b"") for record in read_topic(stream.settings, "roll-out.shadow-verdicts")]
    engines = Counter(verdict.engine.manifest_sha256 for verdict in verdicts)
    assert min(engines[TOY_ENGINE.manifest_sha256], engines[TOY_CANDIDATE.manifest_sha256]) > 0, "both answered in their time"
    assert Counter(verdict.id for verdict in second) == Counter(verdict.id for verdict in verdicts)
    by_id = {verdict.id: verdict.engine.manifest_sha256 for verdict in verdicts}
    assert all(verdict.engine.manifest_sha256 != by_id[verdict.id] for verdict in second), "never the engine that answered"

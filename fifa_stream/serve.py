"""A worker process: engine, clients, health and signals around the loop (`fifa_stream.runner`)."""

import contextlib
import gc
import importlib.util
import logging
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from types import FrameType

from fifa_stream import __version__
from fifa_stream.claims import ClaimStore
from fifa_stream.cluster import BrokerError, Cluster, find_cluster
from fifa_stream.config import ConfigError, KafkaSettings, Settings
from fifa_stream.consume import Consumer, KafkaConsumer
from fifa_stream.engine_thread import FrameProcessor
from fifa_stream.memory.changelog import Changelog, KafkaChangelog
from fifa_stream.produce import KafkaProducer, Producer, check_topics
from fifa_stream.records import EngineIdentity
from fifa_stream.runner import Outcome, Runner
from fifa_stream.shadow import Shadow
from fifa_stream.telemetry import ENGINE_INFO, ENGINE_LOAD_SECONDS, SHADOW_FRAMES, SHADOW_INFO, WORKER_INFO, Health, HealthServer, Meter
from fifa_stream.tracing import open_tracing
from fifa_stream.watchdog import Watchdog

logger = logging.getLogger(__name__)


def load_pipeline(settings: Settings, *, is_shadow: bool = False) -> FrameProcessor:
    """Open the engine bundle that answers, or the one that is compared and explains nothing, and build what turns frames into verdicts.

    Raises EngineError.
    """
    # Imported here: the loop itself needs no inference runtime, and toys run without one.
    from engines.analyzer import Analyzer
    from engines.bundle import bundled_engine, open_bundle
    from fifa_stream.decode import DecodeLimits
    from fifa_stream.detect import DetectLimits
    from fifa_stream.infer import FramePipeline, PipelineLimits
    from fifa_stream.video import VideoLimits

    engine, limits, video = settings.engine, settings.limits, settings.video
    max_bytes = max(limits.max_record_bytes, settings.claims.max_bytes)  # each way in has its own limit before
    if is_shadow == (engine.roll_out == "promoted"):
        folder, digest = engine.folder or bundled_engine(), engine.pinned_digest
    else:
        assert engine.candidate is not None, "settings are checked when they are made"
        folder, digest = engine.candidate, engine.candidate_digest
    bundle = open_bundle(folder, threads=engine.threads, pinned_digest=digest)
    pipeline_limits = PipelineLimits(
        decode=DecodeLimits(max_image_bytes=max_bytes, max_pixels=limits.max_pixels),
        detect=DetectLimits(max_side_px=limits.max_side, max_faces=limits.max_faces, min_face_px=limits.min_face_px),
        max_batch_faces=settings.batch.max_faces,
        explain="never" if is_shadow else engine.explain,
        video=VideoLimits(
            max_bytes=max_bytes,
            max_pixels=min(limits.max_pixels, video.max_pixels),
            sample_fps=video.sample_fps,
            max_frames=video.max_frames,
            max_duration_s=video.max_duration_s,
            max_decoded_frames=video.max_decoded_frames,
            decode_timeout_s=video.decode_timeout_s,
        ),
        max_explained_frames=video.max_explained_frames,
    )
    role = "compared" if is_shadow else "answers"
    logger.info("engine loaded: role=%s name=%s version=%s manifest=%s", role, bundle.manifest.name, bundle.manifest.version, bundle.manifest.digest)
    follows = settings.streams.memory != "off" and settings.streams.appearance and not is_shadow
    analyzer = Analyzer(bundle, operating_point=engine.operating_point, appearance=follows)
    return FramePipeline(pipeline_limits, analyzer, bundle, stream_points=engine.stream_operating_points)


@contextlib.contextmanager
def stop_on_signals(runner: Runner) -> Iterator[None]:
    """SIGTERM and SIGINT drain; a second one abandons what is in flight. Main thread only."""

    def handle(number: int, frame: FrameType | None) -> None:
        runner.stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def spare_the_collector() -> None:
    """Keep what is loaded out of garbage collection, and make collections rare: a record is a dozen tuples that live for milliseconds and form no
    cycle, and looking through those of a full pipeline again and again took a tenth of the loop's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


class Clients:
    """The clients of a broker, on the library that kafka.client names."""

    def check(self, settings: Settings) -> None:
        """Look the topics up. Raises TopicError."""
        check_topics(settings.kafka, has_state=settings.has_state_topic)

    def consumer(self, kafka: KafkaSettings, cluster: Cluster, max_poll_records: int) -> Consumer:
        """The member of the group."""
        if kafka.client == "confluent-kafka":
            from fifa_stream.confluent import ConfluentConsumer

            return ConfluentConsumer(kafka, is_tansu=cluster.is_tansu)
        return KafkaConsumer(kafka, is_tansu=cluster.is_tansu, max_poll_records=max_poll_records)

    def producers(self, kafka: KafkaSettings) -> Callable[[], Producer]:
        """Makes producers; with exactly_once all under one transactional id, so that each ends what the one before left open."""
        name = None
        if kafka.processing_guarantee == "exactly_once":
            name = kafka.transactional_id or f"{kafka.group_id}-{uuid.uuid4()}"
        if kafka.client == "confluent-kafka":
            from fifa_stream.confluent import ConfluentProducer

            return lambda: ConfluentProducer(kafka, transactional_id=name)
        return lambda: KafkaProducer(kafka, transactional_id=name)

    def changelog(self, settings: Settings, cluster: Cluster, *, watchdog: Watchdog, alive: Callable[[], object]) -> Changelog | None:
        """Where streams.memory = topic reads what is remembered."""
        if not settings.has_state_topic:
            return None
        return KafkaChangelog(settings.kafka, is_tansu=cluster.is_tansu, watchdog=watchdog, alive=alive)


def require_client(kafka: KafkaSettings) -> None:
    """The library that kafka.client names must be installed. Raises ConfigError."""
    if kafka.client == "confluent-kafka" and importlib.util.find_spec("confluent_kafka") is None:
        raise ConfigError("setting kafka.client confluent-kafka: the package is not installed; pip install 'fifa-stream[confluent]'")


def refuse_pretence(kafka: KafkaSettings) -> None:
    """Of a broker whose transactions do not hold. Raises BrokerError where they are asked for."""
    if kafka.processing_guarantee == "exactly_once":
        raise BrokerError(
            f"kafka.processing_guarantee exactly_once needs transactions that hold, and the broker at {kafka.bootstrap_servers} is Tansu, which "
            "shows aborted records to read_committed readers; use Apache Kafka 2.5 or newer, or set at_least_once"
        )


def _load(load_processor: Callable[[], FrameProcessor], settings: Settings, meter: Meter) -> FrameProcessor:
    began = time.monotonic()
    processor = load_processor()
    meter.set(ENGINE_LOAD_SECONDS, time.monotonic() - began)
    kafka = settings.kafka
    meter.set_all(ENGINE_INFO, {_labels(processor.engine): 1})
    meter.set_all(WORKER_INFO, {(__version__, kafka.group_id, kafka.frames_topic, kafka.processing_guarantee): 1})
    return processor


def _labels(engine: EngineIdentity) -> tuple[str, ...]:
    return engine.name, engine.version, engine.manifest_sha256, engine.backend, engine.precision


def _load_shadow(load: Callable[[], FrameProcessor], settings: Settings, meter: Meter) -> Shadow | None:
    if settings.engine.roll_out == "off":
        return None
    processor = load()
    meter.set_all(SHADOW_INFO, {_labels(processor.engine): 1})
    for outcome in ("agreed", "disagreed", "failed"):
        meter.add(SHADOW_FRAMES, 0, outcome=outcome)
    return Shadow(processor.engine, processor.process, share=settings.engine.shadow_share, meter=meter)


def serve(
    settings: Settings,
    load_processor: Callable[[], FrameProcessor],
    *,
    load_shadow: Callable[[], FrameProcessor] | None = None,
    clients: Clients | None = None,
) -> Outcome:
    """Run against Kafka until a signal; `load_shadow` is called where engine.roll_out compares two.

    Raises ConfigError, BrokerError, TopicError, PortTaken, EngineError and what `Runner.run` does.
    """
    clients = clients or Clients()
    health, meter = Health(), Meter()
    with contextlib.ExitStack() as stack:
        if settings.runtime.health_port:
            server = HealthServer(health, meter, host=settings.runtime.health_host, port=settings.runtime.health_port)
            stack.callback(server.close)
        store = ClaimStore(settings.claims)
        require_client(settings.kafka)
        tracing = open_tracing(settings.telemetry, group=settings.kafka.group_id, meter=meter)
        stack.callback(tracing.close)
        cluster = find_cluster(settings.kafka, access=True)
        if cluster.is_tansu:
            refuse_pretence(settings.kafka)
            logger.warning("the broker is Tansu: in memory, for demonstration; nothing survives its end")
        watchdog = Watchdog()
        watchdog.start()
        stack.callback(watchdog.close)
        processor = _load(load_processor, settings, meter)
        shadow = None if load_shadow is None else _load_shadow(load_shadow, settings, meter)
        open_producer = clients.producers(settings.kafka)
        clients.check(settings)
        consumer = clients.consumer(settings.kafka, cluster, settings.batch.max_frames * 2)
        runner = Runner(
            settings,
            processor,
            consumer=consumer,
            open_producer=open_producer,
            meter=meter,
            health=health,
            watchdog=watchdog,
            store=store,
            tracing=tracing,
            score_baseline=settings.telemetry.score_baseline or processor.score_baseline,
            shadow=shadow,
            changelog=clients.changelog(settings, cluster, watchdog=watchdog, alive=health.turn),
        )
        spare_the_collector()
        with stop_on_signals(runner):
            return runner.run()

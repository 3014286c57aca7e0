"""The settings tree of the serving program, and the only reader of the environment.

`Settings(...)` is built from values alone; `load` adds a TOML file and `FIFA_` variables, which win over the file. Built once, in the CLI.
"""

import functools
import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

if TYPE_CHECKING:
    from fifa_stream.oauth import ClientCredentialsTokens, FileTokens

ENV_PREFIX = "FIFA_"
ENV_DELIMITER = "__"

SNAPSHOT_BYTES, TRACK_BYTES, TRACK_PLACES = 8 << 10, 2_000, 10
"""At most, in kafka.state_topic: a stream, each of its tracks, and how often a track names a record. 1,206 bytes of a track were measured beside the
names (`bench.stream_memory`)."""

_SECRETS = ("ssl_password", "sasl_password", "sasl_oauth_client_secret")
"""Of KafkaSettings: each may be given by value or, under NAME_file, by a file."""


class ConfigError(Exception):
    """The settings cannot be used; the message names the setting, the value and the remedy, and never holds a secret."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class KafkaSettings(_Section):
    """Where frames come from and verdicts go to."""

    client: Literal["kafka-python", "confluent-kafka"] = "kafka-python"
    """Library that `run` reads and writes with. confluent-kafka (librdkafka) takes less time a record and needs the extra `confluent`;
    docs/transport.md. What only looks at a cluster uses kafka-python either way."""
    bootstrap_servers: str = Field("localhost:9092", min_length=1)
    """Comma-separated host:port list."""
    group_id: str = Field("fifa-stream", min_length=1)
    """Consumer group; its members share the partitions of the frames topic."""
    frames_topic: str = Field("fifa.frames", pattern=r"^[a-zA-Z0-9._-]{1,249}$")
    """Input."""
    verdicts_topic: str = Field("fifa.verdicts", pattern=r"^[a-zA-Z0-9._-]{1,249}$")
    """Output, keyed by stream id."""
    dead_letters_topic: str = Field("fifa.dead-letters", pattern=r"^[a-zA-Z0-9._-]{1,249}$")
    """Records that cannot become a verdict, with the reason."""
    shadow_topic: str | None = Field(None, pattern=r"^[a-zA-Z0-9._-]{1,249}$")
    """What the engine says that does not answer, while engine.roll_out compares two; unset: nothing is written, the figures remain."""
    state_topic: str = Field("fifa.stream-state", pattern=r"^[a-zA-Z0-9._-]{1,249}$")
    """What streams are remembered by, with streams.memory = topic: compacted, with as many partitions as the frames topic."""
    processing_guarantee: Literal["at_least_once", "exactly_once"] = "at_least_once"
    """at_least_once: a crash repeats answers, none is lost. exactly_once: verdicts, dead letters and offsets in one Kafka transaction, for readers
    with isolation.level=read_committed; refused on the embedded broker, whose transactions do not hold."""
    transactional_id: str | None = Field(None, min_length=1, max_length=249)
    """With exactly_once: a name that this member keeps over restarts and shares with nobody (the pod's). Its restart then ends at once what the dead
    process left open. Unset: a new name at each start, and readers wait for transaction_timeout_ms after a crash."""
    transaction_timeout_ms: int = Field(10_000, ge=1_000)
    """With exactly_once: the broker ends a transaction that is open for longer. Keep well above commit_interval_ms."""
    group_instance_id: str | None = Field(None, pattern=r"^[a-zA-Z0-9._-]{1,249}$")
    """Static membership: a name that this member keeps over restarts, so that a restart within session_timeout_ms moves no partition. Unset: dynamic
    membership."""
    session_timeout_ms: int = Field(45_000, ge=500)
    """A member silent for this long is dropped from the group. On the embedded broker (Tansu) 2,000 is used instead: its join takes half of this."""
    max_poll_interval_ms: int = Field(300_000, ge=1_000)
    """Longest time between two polls of a live member."""
    commit_interval_ms: int = Field(1_000, ge=10)
    """Offsets and transactions are committed by time: a round trip per 100 records costs more than the rest of the client. The price: with
    exactly_once a reader sees a verdict up to this much later; with at_least_once a crash repeats up to this much work."""
    max_partition_fetch_bytes: int = Field(4 << 20, ge=1 << 10)
    """Fetch size per partition; one larger record still arrives whole."""
    max_request_bytes: int = Field(1 << 20, ge=1 << 14)
    """Largest record produced; keep at or below the topic's max.message.bytes. A verdict above it becomes a dead letter; a dead letter above it is
    sent without the image, with its digest."""
    max_unacknowledged_bytes: int = Field(32 << 20, ge=1 << 10)
    """Bytes handed to the producer and not acknowledged; beyond it results wait (kafka-python itself has no bound)."""
    delivery_timeout_ms: int = Field(120_000, ge=1_000)
    """A verdict not acknowledged within this time has failed: the producer is made anew and everything uncommitted is answered again."""
    call_timeout_ms: int = Field(30_000, ge=1_000)
    """A commit, transaction call or close that takes longer ends the process with status 70: kafka-python gives these calls no timeout of their
    own."""
    bootstrap_timeout_ms: int = Field(10_000, ge=100)
    """How long to look for a broker at start, then exit 3."""
    compression: Literal["none", "gzip"] = "gzip"
    """Of what is produced; gzip needs no further package."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """How to speak to the broker."""
    ssl_cafile: Path | None = None
    """PEM file with the authorities to trust; unset: the system's."""
    ssl_certfile: Path | None = None
    """PEM file with this client's certificate (mutual TLS)."""
    ssl_keyfile: Path | None = None
    """PEM file with the key of ssl_certfile."""
    ssl_password: SecretStr | None = None
    """Passphrase of ssl_keyfile, if it is encrypted."""
    ssl_password_file: Path | None = None
    """File that holds it instead."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None = None
    """Needed with SASL_PLAINTEXT and SASL_SSL."""
    sasl_username: str | None = None
    """User for PLAIN and SCRAM."""
    sasl_password: SecretStr | None = None
    """Password for PLAIN and SCRAM; masked, like every secret, wherever settings are shown."""
    sasl_password_file: Path | None = None
    """File that holds it instead, such as a mounted Kubernetes secret; read whenever a client is made, a newline at its end is not part of it."""
    sasl_oauth_token_file: Path | None = None
    """OAUTHBEARER: file with a token that someone else renews, such as a projected service account token; read at each connection."""
    sasl_oauth_token_url: str | None = None
    """OAUTHBEARER: issuer to ask for tokens by client credentials; https, or http on this machine."""
    sasl_oauth_client_id: str | None = None
    """Who asks the issuer ..."""
    sasl_oauth_client_secret: SecretStr | None = None
    """... and its secret."""
    sasl_oauth_client_secret_file: Path | None = None
    """File that holds it instead."""
    sasl_oauth_scope: str | None = None
    """Scope to ask the issuer for; unset: its default."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.processing_guarantee == "exactly_once" and self.transaction_timeout_ms <= 2 * self.commit_interval_ms:
            raise ValueError(
                f"transaction_timeout_ms {self.transaction_timeout_ms} must be more than twice commit_interval_ms {self.commit_interval_ms}"
            )
        if len(set(self.topics.values())) != len(self.topics):
            raise ValueError(f"{', '.join(self.topics)} must be different topics")
        return self

    @property
    def topics(self) -> dict[str, str]:
        """Names by setting: the frames topic, which is read, and then those that are written."""
        names = {"frames_topic": self.frames_topic, "verdicts_topic": self.verdicts_topic, "dead_letters_topic": self.dead_letters_topic}
        return names if self.shadow_topic is None else {**names, "shadow_topic": self.shadow_topic}

    @property
    def answer_topics(self) -> set[str]:
        """Names of those that only workers write to; no tool sends frames there."""
        return {self.state_topic, *self.topics.values()} - {self.frames_topic}

    @model_validator(mode="after")
    def _secure(self) -> Self:
        for name in _SECRETS:
            if getattr(self, name) and getattr(self, f"{name}_file"):
                raise ValueError(f"{name} and {name}_file are both set; keep one")
        if self.ssl_certfile and not self.ssl_keyfile:
            raise ValueError("ssl_certfile needs ssl_keyfile")
        if self.security_protocol.startswith("SASL"):
            if self.sasl_mechanism == "OAUTHBEARER":
                self._has_one_token_source()
            elif not (self.sasl_mechanism and self.sasl_username and (self.sasl_password or self.sasl_password_file)):
                raise ValueError(f"security_protocol {self.security_protocol} needs sasl_mechanism, sasl_username and sasl_password (or its _file)")
        for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile", "sasl_oauth_token_file", *(f"{name}_file" for name in _SECRETS)):
            path: Path | None = getattr(self, name)
            if path is not None and not path.is_file():
                raise ValueError(f"{name} {str(path)!r} is not a file")
        return self

    def _has_one_token_source(self) -> None:
        has_client = self.sasl_oauth_client_id and (self.sasl_oauth_client_secret or self.sasl_oauth_client_secret_file)
        if bool(self.sasl_oauth_token_file) == bool(self.sasl_oauth_token_url):
            raise ValueError("OAUTHBEARER needs either sasl_oauth_token_file or sasl_oauth_token_url")
        if self.sasl_oauth_token_url:
            if not has_client:
                raise ValueError("sasl_oauth_token_url needs sasl_oauth_client_id and sasl_oauth_client_secret (or its _file)")
            url = urlsplit(self.sasl_oauth_token_url)
            is_here = url.scheme == "http" and url.hostname in ("localhost", "127.0.0.1", "::1")
            if not url.hostname or "@" in url.netloc or not (url.scheme == "https" or is_here):
                raise ValueError("sasl_oauth_token_url must be https://HOST/PATH without a user in it, or http on this machine")

    def secret(self, name: Literal["ssl_password", "sasl_password", "sasl_oauth_client_secret"]) -> str | None:
        """The value, or what its file holds now; None when neither is set. Raises ConfigError."""
        value: SecretStr | None = getattr(self, name)
        if value is not None:
            return value.get_secret_value()
        path: Path | None = getattr(self, f"{name}_file")
        if path is None:
            return None
        try:
            text = path.read_text("utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            cause = (isinstance(error, OSError) and error.strerror) or "it is not text"
            raise ConfigError(f"kafka.{name}_file {str(path)!r} cannot be read: {cause}; mount a readable file") from None
        if not text:
            raise ConfigError(f"kafka.{name}_file {str(path)!r} is empty; write the secret into it")
        return text

    def client_options(self) -> dict[str, Any]:
        """Keyword arguments shared by every kafka-python client: addresses, timeouts, security. Raises ConfigError, as `secret` does."""
        options: dict[str, Any] = {
            "bootstrap_servers": [server.strip() for server in self.bootstrap_servers.split(",") if server.strip()],
            "bootstrap_timeout_ms": self.bootstrap_timeout_ms,
            "reconnect_backoff_max_ms": 2_000,  # kafka-python's 30 s come on top of every absence of a broker; Kafka's own clients wait for 1 s
            "security_protocol": self.security_protocol,
        }
        for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile"):
            path: Path | None = getattr(self, name)
            if path is not None:
                options[name] = str(path)
        if (passphrase := self.secret("ssl_password")) is not None:
            options["ssl_password"] = passphrase
        if self.security_protocol.startswith("SASL"):
            options["sasl_mechanism"] = self.sasl_mechanism
            if self.sasl_mechanism == "OAUTHBEARER":
                options["sasl_oauth_token_provider"] = token_provider(self)
            else:
                options |= {"sasl_plain_username": self.sasl_username, "sasl_plain_password": self.secret("sasl_password")}
        return options


@functools.cache
def token_provider(kafka: KafkaSettings) -> "FileTokens | ClientCredentialsTokens":
    """Where OAUTHBEARER tokens come from: one for all clients of the same settings, so that they share a token and its renewal."""
    from fifa_stream.oauth import ClientCredentialsTokens, FileTokens

    if kafka.sasl_oauth_token_file is not None:
        return FileTokens(kafka.sasl_oauth_token_file)
    assert kafka.sasl_oauth_token_url and kafka.sasl_oauth_client_id, "settings are checked when they are made"
    return ClientCredentialsTokens(
        kafka.sasl_oauth_token_url,
        kafka.sasl_oauth_client_id,
        lambda: kafka.secret("sasl_oauth_client_secret") or "",
        scope=kafka.sasl_oauth_scope,
    )


class EngineSettings(_Section):
    """Which weights answer, and how."""

    folder: Path | None = None
    """Engine bundle; unset: the one that ships in the package."""
    threads: int = Field(0, ge=0)
    """Threads inside one inference; 0 lets the runtime choose."""
    pinned_digest: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    """Manifest digest; a bundle with another one is refused."""
    operating_point: str | None = None
    """Named pair of cuts from the manifest; unset: the manifest's default."""
    stream_operating_points: dict[str, str] = {}
    """Those of single streams: a pattern of stream ids (`*`, `?`, `[abc]`) to a name; of those that match the longest counts."""
    explain: Literal["auto", "always", "never"] = "auto"
    """auto: only faces that score at or above the operating point's explain_at."""
    candidate: Path | None = None
    """A second bundle, on its way in or out; read only where roll_out says so."""
    candidate_digest: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    """Its manifest digest; a bundle with another one is refused."""
    roll_out: Literal["off", "shadow", "promoted"] = "off"
    """shadow: the engine in folder answers, the candidate judges shadow_share of the frames beside it. promoted: the other way round. Promotion and
    rollback are this one value; docs/roll-out.md."""
    shadow_share: float = Field(0.1, gt=0, le=1)
    """Of the frames that the engine looks at which does not answer: scored, not explained."""

    @model_validator(mode="after")
    def _has_candidate(self) -> Self:
        if self.roll_out != "off" and self.candidate is None:
            raise ValueError(f"roll_out {self.roll_out} needs candidate, the folder of the second bundle")
        return self


class LimitSettings(_Section):
    """What is accepted, and how much is held at once."""

    max_record_bytes: int = Field(8 << 20, ge=1 << 10)
    """Larger values are dead-lettered unread."""
    max_pixels: int = Field(33_554_432, ge=1)
    """Width x height of an image, checked on the header before a pixel is decoded."""
    max_in_flight_records: int = Field(256, ge=1)
    """Records polled and not yet answered; at this number consumption pauses, at half of it it resumes."""
    max_in_flight_bytes: int = Field(64 << 20, ge=1 << 10)
    """The same in bytes of encoded images."""
    max_faces: int = Field(16, ge=1)
    """Faces judged per frame, largest first."""
    min_face_px: int = Field(32, ge=1)
    """Shorter side of a face box, in frame pixels, below which a face is not judged."""
    max_side: int = Field(640, ge=64)
    """Longer side of the image that face detection sees."""


class ClaimSettings(_Section):
    """Frames by reference: records with a claim instead of an image; docs/claims.md. Credentials for s3 that are unset here are looked for where AWS
    clients do: AWS_ variables, web identity, container and instance roles."""

    allowed: tuple[str, ...] = ()
    """Places that claims may name, each ending with '/': file:///FOLDER/, s3://BUCKET/PREFIX/ (extra `claims`), https://HOST/PATH/. Empty: none,
    and every claim becomes a dead letter."""
    max_bytes: int = Field(32 << 20, ge=1)
    """A claim that declares more is refused unread."""
    timeout_s: float = Field(10.0, gt=0, le=600)
    """Longest time for one try to fetch one claim, from the connection to the last byte."""
    threads: int = Field(4, ge=1, le=256)
    """Claims fetched at once."""
    threshold_bytes: int = Field(512 << 10, ge=0)
    """`send --store` puts images above this size to the store; smaller ones travel in the record."""
    s3_endpoint: str | None = Field(None, pattern=r"^https?://[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63})*(:[0-9]{1,5})?$")
    """Of an S3-compatible store, addressed by path: https://HOST:PORT; unset: AWS."""
    s3_region: str | None = None
    """Of the buckets; unset: us-east-1."""
    s3_access_key_id: str | None = None
    """Key to sign requests with."""
    s3_secret_access_key: SecretStr | None = None
    """Secret of s3_access_key_id; masked wherever settings are shown."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.s3_access_key_id is None) != (self.s3_secret_access_key is None):
            raise ValueError("s3_access_key_id and s3_secret_access_key go together")
        urlsplit(self.s3_endpoint or "").port  # noqa: B018 (raises ValueError above 65535)
        return self


class VideoSettings(_Section):
    """Chunks of H.264 in MP4; they need the extra `video`."""

    sample_fps: float = Field(1.0, gt=0, le=1000)
    """Frames looked at per second of video. The first frame of a chunk always is."""
    max_frames: int = Field(16, ge=1)
    """Frames looked at per chunk; where sample_fps asks for more they are spread evenly over the chunk."""
    max_explained_frames: int = Field(1, ge=0)
    """With engine.explain = auto: in so many frames of a chunk faces are explained, those with the highest scores."""
    max_pixels: int = Field(9_437_184, ge=1, lt=1 << 31)
    """Width x height (4096x2304), checked before a frame is decoded; limits.max_pixels holds as well. A decoder may keep 35 pictures of 1.5 bytes a
    pixel: 500 MB."""
    max_duration_s: float = Field(60.0, gt=0)
    """Longer chunks are dead-lettered."""
    max_decoded_frames: int = Field(3_600, ge=1)
    """Frames in a chunk, looked at or not: reaching the last one may mean to decode all. Counted before a frame is decoded."""
    decode_timeout_s: float = Field(10.0, gt=0)
    """Longest time to decode one chunk; beyond it the chunk is dead-lettered."""


class BatchSettings(_Section):
    """How frames are grouped for one inference."""

    max_frames: int = Field(16, ge=1)
    """A batch is sent on when it has this many frames ..."""
    max_delay_ms: int = Field(20, ge=0)
    """... or when its first frame has waited this long."""
    max_faces: int = Field(16, ge=1)
    """Faces per run of the engine; more are split."""


class DeadLetterSettings(_Section):
    """When to stop rather than turn a whole topic into dead letters; docs/dead-letters.md. Counted for each partition, anew after a start."""

    max_run: int = Field(100, ge=0)
    """`run` stops instead of writing this many dead letters in a row, with status 70. 0: no limit."""
    max_ratio: float = Field(0.5, gt=0, le=1)
    """`run` stops when a larger part than this of the last `window` answers would be dead letters. 1: no limit."""
    window: int = Field(1_000, ge=1, le=1_000_000)
    """Answers that max_ratio looks back on."""
    min_answers: int = Field(200, ge=1)
    """With fewer answers than this behind it max_ratio is not looked at."""
    keep_image: bool = True
    """Whether a dead letter holds the image. False: key, headers and the image's digest only; such a letter cannot be replayed."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.min_answers > self.window:
            raise ValueError(f"min_answers {self.min_answers} must not be above window {self.window}, or max_ratio is never looked at")
        return self


class SheddingSettings(_Section):
    """Which frames are skipped when there are more than can be judged. A skipped frame still has its verdict: inconclusive, with the note `shed`."""

    policy: Literal["off", "late", "newest"] = "off"
    """off: every frame is judged, however late. late: frames that waited for longer than max_age_ms, or whose deadline has passed, are skipped.
    newest: of each stream only the newest max_waiting_per_stream of the frames that wait are judged."""
    max_age_ms: int = Field(10_000, ge=1)
    """With late: since the record's timestamp, by this machine's clock. Producers' clocks may differ: prefer message.timestamp.type=LogAppendTime."""
    max_waiting_per_stream: int = Field(1, ge=1)
    """With newest: more frames than this of one stream never wait for the engine."""


class StreamSettings(_Section):
    """What a worker remembers of each stream: tracks, segments and a verdict of the stream; docs/streams.md. All bounds hold for each partition, so
    that the output does not depend on how many partitions a member has."""

    memory: Literal["off", "volatile", "topic"] = "off"
    """off: every frame is judged alone. volatile: streams are remembered until their partition moves. topic: what is remembered is committed to
    kafka.state_topic together with the offsets, and whoever takes the partition over goes on from there."""
    max_streams: int = Field(10_000, ge=1, le=1_000_000)
    """Streams remembered in each partition; beyond it the one that was silent for longest is forgotten."""
    max_tracks: int = Field(16, ge=1, le=256)
    """People remembered in each stream; beyond it the one that was away for longest is forgotten."""
    max_gap_s: float = Field(10.0, gt=0)
    """Silence of a stream, in its own time, after which it begins anew: open segments close at the last frame before."""
    max_length_s: float = Field(3_600.0, gt=0)
    """A stream that does not end begins anew after so long, in its own time: its label speaks of all of it, and one false alarm would stay for
    ever."""
    appearance: bool = True
    """Tell people apart by what the engine saw of their faces, besides where they are. 32 bytes of each track are then kept, in kafka.state_topic as
    well: personal data, see docs/privacy.md."""


class RuntimeSettings(_Section):
    """The life of the process."""

    drain_timeout_s: float = Field(25.0, gt=0)
    """After SIGTERM: time to finish what is in flight. Keep below the pod's terminationGracePeriodSeconds."""
    transient_attempts: int = Field(5, ge=1)
    """Tries of a batch that fails for a passing reason, and returns to the committed offsets without a commit in between, before the process
    stops."""
    batch_timeout_s: float = Field(300.0, gt=0)
    """A batch that the engine has not given back after this long ends the process with status 70; its records are answered after the restart."""
    health_port: int = Field(8080, ge=0, le=65535)
    """/health/live, /health/ready, /health/started and /metrics; 0 turns them off."""
    health_host: str = "127.0.0.1"
    """Address the health port binds to; 0.0.0.0 in a container."""


class TelemetrySettings(_Section):
    """Logs, traces, and what scores are compared with; docs/observability.md."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Of our own loggers."""
    log_format: Literal["text", "json"] = "text"
    """One line per event in either."""
    kafka_log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "CRITICAL"
    """Of kafka-python and librdkafka, which log a broker's absence many times over; our own lines say what matters."""
    otlp_endpoint: str | None = Field(None, pattern=r"^https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?$")
    """Collector of traces, OTLP over HTTP: http://HOST:4318, to which /v1/traces is added where it has no path (extra `otlp`). Unset: no traces.
    What a collector asks for beside it goes into OTEL_EXPORTER_OTLP_HEADERS and OTEL_EXPORTER_OTLP_CERTIFICATE, which the exporter reads itself."""
    trace_sample_ratio: float = Field(0.01, ge=0, le=1)
    """Part of the frames without a `traceparent` that a trace begins with. A frame that has one is traced if its sender says so."""
    service_name: str = Field("fifa-stream", min_length=1, max_length=255)
    """`service.name` of the spans."""
    score_baseline: tuple[float, ...] = Field((), max_length=100)
    """Shares of scores in equal bins over [0, 1] that `fifa_score_psi` compares with; empty: those of the engine bundle. The bundle's come from
    its calibration faces, more than half of them fakes: a stream of another mix wants a baseline of its own."""
    drift_window: int = Field(5_000, ge=1_000, le=1_000_000)
    """Scores that `fifa_score_psi` looks back on."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.score_baseline and (len(self.score_baseline) < 2 or min(self.score_baseline) < 0 or not 0.99 <= sum(self.score_baseline) <= 1.01):
            raise ValueError("score_baseline must hold at least two shares of 0 or more that sum to 1")
        urlsplit(self.otlp_endpoint or "").port  # noqa: B018 (raises ValueError above 65535)
        return self


class Settings(BaseSettings):
    """The whole tree."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, env_prefix=ENV_PREFIX, env_nested_delimiter=ENV_DELIMITER, env_ignore_empty=True)

    kafka: KafkaSettings = KafkaSettings()
    engine: EngineSettings = EngineSettings()
    limits: LimitSettings = LimitSettings()
    claims: ClaimSettings = ClaimSettings()
    video: VideoSettings = VideoSettings()
    batch: BatchSettings = BatchSettings()
    dead_letters: DeadLetterSettings = DeadLetterSettings()
    shedding: SheddingSettings = SheddingSettings()
    streams: StreamSettings = StreamSettings()
    runtime: RuntimeSettings = RuntimeSettings()
    telemetry: TelemetrySettings = TelemetrySettings()

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.has_state_topic and self.kafka.state_topic in self.kafka.topics.values():
            raise ValueError(f"kafka.state_topic {self.kafka.state_topic!r} must be a topic of its own; give it another name")
        most = SNAPSHOT_BYTES + self.streams.max_tracks * (TRACK_BYTES + TRACK_PLACES * len(self.kafka.frames_topic))
        if self.has_state_topic and most > self.kafka.max_request_bytes:
            raise ValueError(
                f"streams.max_tracks {self.streams.max_tracks} may need {most} bytes for what is remembered of a stream, kafka.max_request_bytes is "
                f"{self.kafka.max_request_bytes}; lower the one or raise the other"
            )
        return self

    @property
    def has_state_topic(self) -> bool:
        """Whether kafka.state_topic is read and written."""
        return self.streams.memory == "topic"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Values given in code are the whole truth: a demo or a test must not meet the broker that a variable names."""
        return (init_settings,)

    def masked_json(self) -> str:
        """The effective settings in one line, secrets masked."""
        return self.model_dump_json()


def load(file: Path | None = None) -> Settings:
    """Defaults, then the TOML file, then the environment. Raises ConfigError."""
    tree = _read_toml(file) if file is not None else {}
    _refuse_unknown_variables()
    try:
        environment = EnvSettingsSource(Settings)()
        return Settings(**_merge(tree, environment))
    except SettingsError as error:
        raise ConfigError(f"{error}; a whole section in one variable must be JSON") from None
    except ValidationError as error:
        raise ConfigError(_one_line(error)) from None


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"settings file {str(file)!r} cannot be read: {error.strerror}; give an existing TOML file to --config") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"settings file {str(file)!r} is not TOML: {error}; see docs/configuration.md") from None


def _refuse_unknown_variables() -> None:
    """A misspelt section is silently ignored by pydantic-settings; a misspelt field is not."""
    for name in os.environ:
        upper = name.upper()
        if upper.startswith(ENV_PREFIX) and ENV_DELIMITER in upper:
            section = upper.removeprefix(ENV_PREFIX).split(ENV_DELIMITER)[0].lower()
            if section not in Settings.model_fields:
                raise ConfigError(f"environment variable {name} names no section; sections are {', '.join(Settings.model_fields)}")


def _merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _one_line(error: ValidationError) -> str:
    """First problem of a validation, with the way to mend it. An unknown name's value is not echoed: it may be a misspelt password."""
    first = error.errors(include_url=False)[0]
    path = [str(part) for part in first["loc"]]
    name = ".".join(path)
    more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"setting {name} does not exist; docs/configuration.md lists all{more}"
    if not path:  # of sections that do not fit each other; it says which and what to do
        return first["msg"].removeprefix("Value error, ")
    value = first.get("input")
    is_secret = "password" in name or "secret" in name
    given = f", got {value!r}" if isinstance(value, str | int | float | bool) and not is_secret else ""
    remedy = (
        f"set {ENV_PREFIX}{ENV_DELIMITER.join(path).upper()} or {name} in the file" if len(path) > 1 else "docs/configuration.md lists all settings"
    )
    return f"setting {name}: {first['msg'].removeprefix('Value error, ')}{given}; {remedy}{more}"


def reference() -> str:
    """Every setting as Markdown tables, one per section."""
    lines: list[str] = []
    for section, field in Settings.model_fields.items():
        kind = field.annotation
        assert isinstance(kind, type) and issubclass(kind, _Section), f"section {section} is not a settings section"
        lines += [f"### {section}", "", kind.__doc__ or "", "", "| setting | default | meaning |", "|---|---|---|"]
        for name, spec in kind.model_fields.items():
            default = "unset" if spec.default is None else f"`{spec.default}`"
            lines.append(f"| `{name}` | {default} | {' '.join((spec.description or '').split())} |")
        lines.append("")
    return "\n".join(lines)

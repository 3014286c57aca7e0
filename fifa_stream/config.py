"""The settings tree of the serving program, and the only reader of the environment.

`Settings(...)` is built from values alone; `load` adds a TOML file and `FIFA_` variables, which win over the file. Built once, in the CLI.
"""

import os
import tomllib
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

ENV_PREFIX = "FIFA_"
ENV_DELIMITER = "__"


class ConfigError(Exception):
    """The settings cannot be used; the message names the setting, the value and the remedy, and never holds a secret."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class KafkaSettings(_Section):
    """Where frames come from and verdicts go to."""

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
    session_timeout_ms: int = Field(45_000, ge=500)
    """A member silent for this long is dropped from the group. On the embedded broker (Tansu) 2,000 is used instead: its join takes half of this."""
    max_poll_interval_ms: int = Field(300_000, ge=1_000)
    """Longest time between two polls of a live member."""
    commit_interval_ms: int = Field(1_000, ge=10)
    """Offsets are committed by time: a round trip per 100 records costs more than the rest of the client."""
    max_partition_fetch_bytes: int = Field(4 << 20, ge=1 << 10)
    """Fetch size per partition; one larger record still arrives whole."""
    max_request_bytes: int = Field(1 << 20, ge=1 << 10)
    """Largest record produced; keep at or below the topic's max.message.bytes. A verdict above it becomes a dead letter; a dead letter above it is
    sent without the image, with its digest."""
    max_unacknowledged_bytes: int = Field(32 << 20, ge=1 << 10)
    """Bytes handed to the producer and not acknowledged; beyond it results wait (kafka-python itself has no bound)."""
    delivery_timeout_ms: int = Field(120_000, ge=1_000)
    """A verdict not acknowledged within this time stops the process before its offset is committed."""
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
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    """Needed with SASL_PLAINTEXT and SASL_SSL."""
    sasl_username: str | None = None
    """User for the SASL mechanism."""
    sasl_password: SecretStr | None = None
    """Password for the SASL mechanism; masked wherever settings are shown."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.security_protocol.startswith("SASL") and not (self.sasl_mechanism and self.sasl_username and self.sasl_password):
            raise ValueError(f"security_protocol {self.security_protocol} needs sasl_mechanism, sasl_username and sasl_password")
        if self.ssl_certfile and not self.ssl_keyfile:
            raise ValueError("ssl_certfile needs ssl_keyfile")
        if len({self.frames_topic, self.verdicts_topic, self.dead_letters_topic}) != 3:
            raise ValueError("frames_topic, verdicts_topic and dead_letters_topic must be three different topics")
        for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile"):
            path: Path | None = getattr(self, name)
            if path is not None and not path.is_file():
                raise ValueError(f"{name} {str(path)!r} is not a file")
        return self

    def client_options(self) -> dict[str, Any]:
        """Keyword arguments shared by every kafka-python client: addresses, timeouts, security."""
        options: dict[str, Any] = {
            "bootstrap_servers": [server.strip() for server in self.bootstrap_servers.split(",") if server.strip()],
            "bootstrap_timeout_ms": self.bootstrap_timeout_ms,
            "security_protocol": self.security_protocol,
        }
        for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile"):
            path: Path | None = getattr(self, name)
            if path is not None:
                options[name] = str(path)
        if self.sasl_password is not None and self.security_protocol.startswith("SASL"):
            options |= {
                "sasl_mechanism": self.sasl_mechanism,
                "sasl_plain_username": self.sasl_username,
                "sasl_plain_password": self.sasl_password.get_secret_value(),
            }
        return options


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
    explain: Literal["auto", "always", "never"] = "auto"
    """auto: only faces that score at or above the operating point's explain_at."""


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


class BatchSettings(_Section):
    """How frames are grouped for one inference."""

    max_frames: int = Field(16, ge=1)
    """A batch is sent on when it has this many frames ..."""
    max_delay_ms: int = Field(20, ge=0)
    """... or when its first frame has waited this long."""
    max_faces: int = Field(16, ge=1)
    """Faces per run of the engine; more are split."""


class RuntimeSettings(_Section):
    """The life of the process."""

    drain_timeout_s: float = Field(25.0, gt=0)
    """After SIGTERM: time to finish what is in flight. Keep below the pod's terminationGracePeriodSeconds."""
    transient_attempts: int = Field(5, ge=1)
    """Tries of a batch that fails for a passing reason, before the process stops."""
    health_port: int = Field(8080, ge=0, le=65535)
    """/health/live, /health/ready, /health/started and /metrics; 0 turns them off."""
    health_host: str = "127.0.0.1"
    """Address the health port binds to; 0.0.0.0 in a container."""


class TelemetrySettings(_Section):
    """Logs."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Of our own loggers."""
    log_format: Literal["text", "json"] = "text"
    """One line per event in either."""
    kafka_log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "CRITICAL"
    """Of kafka-python, which logs a broker's absence many times over; our own lines say what matters."""


class Settings(BaseSettings):
    """The whole tree."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, env_prefix=ENV_PREFIX, env_nested_delimiter=ENV_DELIMITER, env_ignore_empty=True)

    kafka: KafkaSettings = KafkaSettings()
    engine: EngineSettings = EngineSettings()
    limits: LimitSettings = LimitSettings()
    batch: BatchSettings = BatchSettings()
    runtime: RuntimeSettings = RuntimeSettings()
    telemetry: TelemetrySettings = TelemetrySettings()

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
    value = first.get("input")
    given = f", got {value!r}" if isinstance(value, str | int | float | bool) and "password" not in name else ""
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

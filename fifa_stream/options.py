"""Options that several commands share, and the settings that they give."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fifa_stream.exits import ExitCode, end

if TYPE_CHECKING:
    from fifa_stream.config import Settings

ConfigOption = Annotated[Path | None, typer.Option("--config", help="TOML file with settings; FIFA_ variables win over it.")]
BootstrapOption = Annotated[str | None, typer.Option("--bootstrap", help="Broker addresses; default: kafka.bootstrap_servers.")]
SinceOption = Annotated[str | None, typer.Option("--since", metavar="TIME", help="Only newer ones: 90s, 15m, 2h, 7d, or 2026-01-31T12:00 (UTC).")]


def unix_ms(text: str) -> int:
    """What --since says: '15m' ago, or a time in ISO 8601, which is UTC unless it says otherwise. Anything else ends the program with USAGE."""
    try:
        if ago := re.fullmatch(r"([0-9]{1,6})([smhd])", text):
            unit = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}[ago[2]]
            time = datetime.now(UTC) - timedelta(**{unit: int(ago[1])})
        else:
            time = datetime.fromisoformat(text)
            time = time if time.tzinfo else time.replace(tzinfo=UTC)
        return max(0, int(time.timestamp() * 1000))
    except (ValueError, OverflowError):
        end(ExitCode.USAGE, f"--since {text!r} is no time; write 15m, 2h, 7d or 2026-01-31T12:00")


def load_settings(config: Path | None, bootstrap: str | None = None) -> "Settings":
    """The settings, with the broker that the command names. Raises ConfigError."""
    from fifa_stream.config import load

    settings = load(config)
    if not bootstrap:
        return settings
    return settings.model_copy(update={"kafka": settings.kafka.model_copy(update={"bootstrap_servers": bootstrap})})

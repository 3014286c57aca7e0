"""Options that several commands share, and the settings that they give."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fifa_stream.config import Settings

ConfigOption = Annotated[Path | None, typer.Option("--config", help="TOML file with settings; FIFA_ variables win over it.")]
BootstrapOption = Annotated[str | None, typer.Option("--bootstrap", help="Broker addresses; default: kafka.bootstrap_servers.")]


def load_settings(config: Path | None, bootstrap: str | None = None) -> "Settings":
    """The settings, with the broker that the command names. Raises ConfigError."""
    from fifa_stream.config import load

    settings = load(config)
    if not bootstrap:
        return settings
    return settings.model_copy(update={"kafka": settings.kafka.model_copy(update={"bootstrap_servers": bootstrap})})

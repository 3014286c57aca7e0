"""The JSON Schemas of what enters and leaves the process: frame, verdict, dead letter, engine manifest; generated from models and committed."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from engines.contracts import MANIFEST_SCHEMA, Manifest
from fifa_stream.messages import DeadLetterMessage, FrameMessage, VerdictHeaders
from fifa_stream.records import VERDICT_SCHEMA, Verdict

DIALECT = "https://json-schema.org/draft/2020-12/schema"

MODELS: dict[str, tuple[str, type[BaseModel]]] = {
    "frame.json": ("urn:fifa-stream:frame:1", FrameMessage),
    "verdict.json": (VERDICT_SCHEMA, Verdict),
    "verdict-headers.json": ("urn:fifa-stream:verdict-headers:1", VerdictHeaders),
    "dead-letter.json": ("urn:fifa-stream:dead-letter:1", DeadLetterMessage),
    "manifest.json": (f"urn:fifa-stream:manifest:{MANIFEST_SCHEMA}", Manifest),
}
"""File name to schema id and model."""


def schema_folder() -> Path:
    """Where the schemas ship inside the package."""
    return Path(str(files("fifa_stream") / "schemas"))


def schema_text(name: str) -> str:
    """The schema of one of `MODELS` as committed: UTF-8 JSON, indented, keys in the order of the fields."""
    schema_id, model = MODELS[name]
    schema: dict[str, Any] = {"$schema": DIALECT, "$id": schema_id, **model.model_json_schema()}
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def write_schemas(folder: Path) -> None:
    """Write every schema into `folder`; `make schemas` does this."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in MODELS:
        (folder / name).write_text(schema_text(name), encoding="utf-8")


if __name__ == "__main__":
    write_schemas(schema_folder())

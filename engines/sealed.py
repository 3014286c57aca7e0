"""JSON files that state their own digest: bundle manifests and acceptance packs. Read whole or refused, before anything that they name is opened."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from engines.contracts import canonical_digest

MAX_BYTES = 1 << 20
M = TypeVar("M", bound=BaseModel)


class SealFault(StrEnum):
    """What is wrong with the file."""

    MISSING = "missing"
    UNREADABLE = "unreadable"
    DIGEST = "digest"


class SealError(Exception):
    """The file is refused; the message gives path and cause, whoever reads it adds the remedy."""

    def __init__(self, fault: SealFault, message: str) -> None:
        super().__init__(message)
        self.fault = fault


def read_sealed(path: Path, kind: type[M]) -> M:
    """Read a file of at most `MAX_BYTES`, check the digest it states over its content, then its form. Raises SealError."""
    try:
        with path.open("rb") as handle:
            content = handle.read(MAX_BYTES + 1)  # a device has no size to ask for
        if len(content) > MAX_BYTES:
            raise SealError(SealFault.UNREADABLE, f"{path} is larger than {MAX_BYTES} bytes")
        raw = json.loads(content)
        digest = canonical_digest(raw) if isinstance(raw, dict) else ""
    except FileNotFoundError:
        raise SealError(SealFault.MISSING, f"{path} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise SealError(SealFault.UNREADABLE, f"{path} cannot be read: {error}") from None
    if not isinstance(raw, dict):
        raise SealError(SealFault.UNREADABLE, f"{path} holds no JSON object")
    if raw.get("digest") != digest:
        stated = str(raw.get("digest"))[:12]
        raise SealError(SealFault.DIGEST, f"{path} was changed after export: it states digest {stated}, its content gives {digest[:12]}")
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SealError(SealFault.UNREADABLE, f"{path}: field {where}: {first['msg']}") from None


def write_sealed(path: Path, draft: M) -> M:
    """Write a model that has a field `digest`, its own digest in place of the draft's, and return it."""
    body = json.loads(draft.model_dump_json())
    body["digest"] = canonical_digest(body)
    path.write_text(json.dumps(body, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return type(draft).model_validate(body)

"""Lines of a file that hold records as `fifa-stream send --record` writes them, or what would be such a record's value."""

import base64
import json
from typing import Any


def value_of(where: str, line: bytes, *, plain: bool) -> bytes | None:
    """Of a record its value; where `plain` allows it, a line that is no record is the value itself. None for a record without one, a dead letter
    without its original, and what `analyze --json` says of a file that it could not read.

    Raises ValueError for a value that is not base64 and, without `plain`, for a line that is no record.
    """
    try:
        tree: Any = json.loads(line)
    except (ValueError, RecursionError):
        if plain:
            return line  # whoever reads it says what is wrong with it
        raise ValueError(f"{where}: not JSON; give JSON lines") from None
    tree = tree.get("record", tree) if isinstance(tree, dict) else tree
    if tree is None or (isinstance(tree, dict) and ("error" in tree or tree.get("value", "") is None)):
        return None
    if isinstance(tree, dict) and isinstance(value := tree.get("value"), str):
        try:
            return base64.b64decode(value, validate=True)
        except ValueError as error:  # binascii's own, and that of letters beyond ASCII
            raise ValueError(f"{where}: the value of the record is not base64: {error}; record it again") from None
    if not plain:
        raise ValueError(f"{where}: no record with a value; give a file of `fifa-stream send --record`, or a folder of pictures")
    return line

"""What a change of a JSON Schema breaks: for consumers of the documents it describes, and for a reader that must still take old documents."""

from collections.abc import Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]

BOUNDS = ("minimum", "maximum", "minLength", "maxLength", "pattern", "minItems", "maxItems", "format")


def breaking_changes(old: Schema, new: Schema, *, open_lists: tuple[str, ...] = ()) -> list[str]:
    """One line for each removed, retyped or newly required field, each value no longer there, and each new value of a list that is not open.

    `open_lists` are the last parts of paths whose list of values may grow. Optional fields may be added.
    """
    return list(_compare(_Node(old, old), _Node(new, new), "", open_lists))


class _Node:
    """A schema and the document that its references point into."""

    def __init__(self, schema: Schema, root: Schema) -> None:
        while "$ref" in schema:
            schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
        self.schema, self.root = schema, root

    def child(self, schema: Schema) -> "_Node":
        return _Node(schema, self.root)

    def alternatives(self) -> dict[str, "_Node"]:
        """By JSON type."""
        if "anyOf" in self.schema and "type" not in self.schema:
            found: dict[str, _Node] = {}
            for one in self.schema["anyOf"]:
                found |= self.child(one).alternatives()
            return found
        return {self.schema.get("type", "anything"): self}

    def values(self) -> set[str] | None:
        """Of a closed list."""
        return {self.schema["const"]} if "const" in self.schema else set(self.schema["enum"]) if "enum" in self.schema else None


def _compare(old: _Node, new: _Node, path: str, open_lists: tuple[str, ...]) -> Iterator[str]:
    before, after = old.alternatives(), new.alternatives()
    if before.keys() != after.keys():
        yield f"{path}: was {' or '.join(sorted(before))}, is {' or '.join(sorted(after))}"
    for kind in before.keys() & after.keys():
        yield from _compare_alike(before[kind], after[kind], path, open_lists)


def _compare_alike(old: _Node, new: _Node, path: str, open_lists: tuple[str, ...]) -> Iterator[str]:
    before, after = old.values(), new.values()
    if (before is None) != (after is None):
        yield f"{path}: its list of values {'is new' if before is None else 'is gone'}"
    elif before is not None and after is not None:
        yield from (f"{path}: {value!r} is gone" for value in sorted(before - after))
        if not path.endswith(open_lists or ("\0",)):
            yield from (f"{path}: {value!r} is new" for value in sorted(after - before))
    for bound in BOUNDS:
        if old.schema.get(bound) != new.schema.get(bound):
            yield f"{path}: {bound} was {old.schema.get(bound)!r}, is {new.schema.get(bound)!r}"
    properties, later = old.schema.get("properties", {}), new.schema.get("properties", {})
    for name, schema in properties.items():
        where = f"{path}/{name}"
        if name not in later:
            yield f"{where}: removed"
        else:
            yield from _compare(old.child(schema), new.child(later[name]), where, open_lists)
    required, now_required = set(old.schema.get("required", ())), set(new.schema.get("required", ()))
    yield from (f"{path}/{name}: newly required" for name in sorted(now_required - required))
    yield from (f"{path}/{name}: no longer required" for name in sorted(required - now_required) if name in later)
    yield from _compare_items(old, new, path, open_lists)


def _compare_items(old: _Node, new: _Node, path: str, open_lists: tuple[str, ...]) -> Iterator[str]:
    for keyword in ("items", "additionalProperties"):
        before, after = old.schema.get(keyword), new.schema.get(keyword)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _compare(old.child(before), new.child(after), f"{path}/*", open_lists)
        elif before != after:
            yield f"{path}: {keyword} was {before!r}, is {after!r}"
    places, later = old.schema.get("prefixItems", ()), new.schema.get("prefixItems", ())
    if len(places) != len(later):
        yield f"{path}: had {len(places)} places, has {len(later)}"
    for number, (before, after) in enumerate(zip(places, later, strict=False)):
        yield from _compare(old.child(before), new.child(after), f"{path}/{number}", open_lists)

"""What of the chart follows from something else, written by `python -m deploy.helm.generate`; the chart's tests compare.

    Chart.yaml, appVersion, digest    from the package and the engine in it
    values.yaml, `settings`           from fifa_stream/config.py: names, defaults, meanings
    values.yaml, `thresholds`         from fifa_stream/monitoring.py
    values.schema.json                from the `## @param` lines of values.yaml, and from config.py
    README.md, the table of values    from the same lines

A line reads `## @param NAME [TYPE] meaning`; `TYPES` has the types, `A|B` is a choice, `integer 1..9` a range, `string /REGEX/` a pattern, `nullable`
in front of any lets it be null.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from engines.bundle import bundled_engine, read_manifest
from fifa_stream import __version__
from fifa_stream.config import Settings
from fifa_stream.monitoring import THRESHOLDS

CHART = Path(__file__).parent / "fifa-stream"
COMMAND = "python -m deploy.helm.generate"
Schema = dict[str, Any]

TYPES: Mapping[str, Schema] = {
    "boolean": {"type": "boolean"},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "string": {"type": "string"},
    "strings": {"type": "array", "items": {"type": "string", "minLength": 1}},
    "numbers": {"type": "array", "items": {"type": "number"}},
    "ports": {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 65535}},
    "object": {"type": "object"},
    "objects": {"type": "array", "items": {"type": "object"}},
    "map": {"type": "object", "additionalProperties": {"type": "string"}},
    "quantity": {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|[MGTPE]|[KMGTPE]i)?$"},
    "duration": {"type": "string", "pattern": "^([0-9]+(ms|[smhdwy]))+$"},
    "count": {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": "^[0-9]+%$"}]},
    "digest": {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
}
"""What `## @param NAME [TYPE]` may say, and the schema of it. Objects of Kubernetes' own stay open: the API server knows them."""


def chart_defaults() -> dict[str, tuple[Any, str]]:
    """Settings whose default in the chart is not that of fifa_stream/config.py, by name, and why."""
    return {
        "kafka.bootstrap_servers": ("kafka:9092", "No broker is on localhost in a pod."),
        "engine.threads": (2, "ONNX Runtime counts the node's cores, not the pod's: keep it at resources.requests.cpu."),
        "engine.pinned_digest": (
            read_manifest(bundled_engine()).digest,
            "The engine in the package. Where the engine is built, the source is pinned: what a build gives has a digest of its own.",
        ),
        "runtime.health_host": ("0.0.0.0", "The kubelet and Prometheus come from outside."),
        "telemetry.log_format": ("json", "Logs are collected."),
    }


NOTES: Mapping[str, str] = {
    "kafka.transactional_id": "null with exactly_once: the pod's name.",
    "kafka.ssl_cafile": "secrets.tls.ca sets it.",
    "kafka.ssl_certfile": "secrets.tls.client sets it.",
    "kafka.ssl_keyfile": "secrets.tls.client sets it.",
    "kafka.ssl_password_file": "secrets.tls.client sets it.",
    "kafka.sasl_password_file": "secrets.sasl sets it.",
    "kafka.sasl_oauth_token_file": "secrets.oauth.projectedToken sets it.",
    "kafka.sasl_oauth_client_secret_file": "secrets.oauth sets it.",
    "engine.folder": "engine.source and engine.ensure set it; leave it null.",
    "claims.s3_access_key_id": "secrets.s3 sets it; leave it null.",
}
"""What templates do with single settings, such as filling them in where they are null."""


@dataclass(frozen=True, slots=True)
class Param:
    """One `## @param` line."""

    section: str
    name: str
    type: str
    meaning: str

    def schema(self) -> Schema:
        """What the type says. Raises ValueError for a type that is none."""
        nullable, text = self.type.startswith("nullable "), self.type.removeprefix("nullable ")
        kind, _, rest = text.partition(" ")
        if not rest and "|" in kind:
            schema: Schema = {"enum": kind.split("|")}
        elif kind in TYPES:
            schema = dict(TYPES[kind]) | _constraints(kind, rest)
        else:
            raise ValueError(f"{self.name} has type {self.type!r}; types are {', '.join(TYPES)} and A|B")
        if nullable:
            schema = {"anyOf": [schema, {"type": "null"}]} if "type" not in schema else schema | {"type": [schema["type"], "null"]}
        return {"description": self.meaning} | schema

    @property
    def is_nullable(self) -> bool:
        """Whether null may delete it."""
        return self.type.startswith("nullable ")


def _constraints(kind: str, text: str) -> Schema:
    if not text:
        return {}
    if kind == "string" and (pattern := re.fullmatch(r"/(.+)/", text)):
        return {"pattern": pattern[1]}
    if not (bounds := re.fullmatch(r"(\d*)\.\.(\d*)", text)):
        raise ValueError(f"{text!r} is no range and no /pattern/")
    names = ("minLength", "maxLength") if kind == "string" else ("minimum", "maximum")
    return {name: int(number) for name, number in zip(names, bounds.groups(), strict=True) if number}


def params(values_text: str) -> list[Param]:
    """The documented values, in the order of the file. Raises ValueError for a line that is not understood."""
    found, section = [], ""
    for line in values_text.splitlines():
        if title := re.fullmatch(r"\s*## @section (.+)", line):
            section = title[1]
        elif re.match(r"\s*## @param", line):
            if not (parts := re.fullmatch(r"\s*## @param (\S+) \[(.+?)\] (.+)", line)):
                raise ValueError(f"{line.strip()!r} is not `## @param NAME [TYPE] meaning`")
            found.append(Param(section, *parts.groups()))
    return found


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values; a map that is empty, or has dots in its keys, is a leaf."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value and not any("." in below for below in value):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def lookup(tree: Mapping[str, Any], name: str) -> Any:
    """The value of a dotted name; KeyError where there is none."""
    value: Any = tree
    for key in name.split("."):
        value = value[key]
    return value


def settings_schema() -> Schema:
    """The settings tree as the chart accepts it: closed, without what only a Secret may hold, without references."""
    whole = Settings.model_json_schema()
    schema = _inlined(whole, whole.get("$defs", {}))
    kept = {key: schema[key] for key in ("properties", "required", "additionalProperties")}
    return {"type": "object", "description": "As in docs/configuration.md.", **kept}


def _inlined(node: Schema, definitions: Mapping[str, Schema]) -> Schema:
    if "$ref" in node:
        return _inlined(definitions[node["$ref"].rpartition("/")[2]] | {key: value for key, value in node.items() if key != "$ref"}, definitions)
    schema = {key: value for key, value in node.items() if key not in ("$defs", "title", "default", "format", "env_names")}
    if "description" in schema:
        schema["description"] = " ".join(schema["description"].split())
    if "properties" in schema:
        fields = {name: _inlined(field, definitions) for name, field in schema["properties"].items() if not _is_secret(field)}
        schema["properties"] = fields
        # Templates read what is never null; `null` in somebody's values would delete it.
        schema["required"] = [name for name, field in fields.items() if "null" not in field.get("type", ())]
    if "items" in schema:
        schema["items"] = _inlined(schema["items"], definitions)
    if "anyOf" in schema:
        schema = _nullable([_inlined(branch, definitions) for branch in schema.pop("anyOf")]) | schema
    return schema


def _is_secret(field: Schema) -> bool:
    return any(branch.get("writeOnly") for branch in (field, *field.get("anyOf", ())))


def _nullable(branches: list[Schema]) -> Schema:
    """`T | None` without anyOf, whose messages say only that no branch fits. Unset is null: an empty path would be the working directory."""
    [branch], null = [branch for branch in branches if branch != {"type": "null"}], {"type": "null"} in branches
    if not null:
        return branch
    if branch["type"] == "string":
        branch = {"minLength": 1} | branch
    return branch | {"type": [branch["type"], "null"]} | ({"enum": [*branch["enum"], None]} if "enum" in branch else {})


def settings_defaults() -> dict[str, Any]:
    """The settings tree with the chart's defaults."""
    tree: dict[str, Any] = json.loads(Settings().model_dump_json())
    kept = settings_schema()
    for name, (value, _) in chart_defaults().items():
        section, _, field = name.rpartition(".")
        lookup(tree, section)[field] = value
    return _restricted(tree, kept)


def _restricted(tree: dict[str, Any], schema: Schema) -> dict[str, Any]:
    fields = schema["properties"]
    return {name: _restricted(value, fields[name]) if "properties" in fields[name] else value for name, value in tree.items() if name in fields}


def settings_text() -> str:
    """The section `settings` of values.yaml."""
    defaults = settings_defaults()
    notes = {name: reason for name, (_, reason) in chart_defaults().items()} | NOTES
    lines = [
        "## @section Settings",
        "# The settings of `fifa-stream run`, key by key, as docs/configuration.md has them; null is unset. They become the settings file, in a",
        "# ConfigMap. What is secret is in `secrets` above.",
        "settings:",
    ]
    lines += _settings_lines(settings_schema(), defaults, "settings.", "  ", notes)
    return "\n".join(lines)


def _settings_lines(schema: Schema, tree: Mapping[str, Any], prefix: str, indent: str, notes: Mapping[str, str]) -> Iterator[str]:
    for name, field in schema["properties"].items():
        if "properties" in field:
            yield f"{indent}{name}:"
            yield from _settings_lines(field, tree[name], f"{prefix}{name}.", f"{indent}  ", notes)
            continue
        meaning = " ".join(filter(None, (field.get("description", ""), notes.get(f"{prefix}{name}".removeprefix("settings.")))))
        yield f"{indent}## @param {prefix}{name} [{_type_name(field)}] {meaning}"
        yield f"{indent}{name}: {json.dumps(tree[name])}"


def _type_name(field: Schema) -> str:
    if "additionalProperties" in field:
        return "map"
    kinds = field.get("type", "string")
    kind, *null = [kinds] if isinstance(kinds, str) else sorted(kinds, key="null".__eq__)
    choice = "|".join(str(one) for one in field.get("enum", ()) if one is not None)
    name = choice or (f"{field['items']['type']}s" if kind == "array" else kind)
    return f"nullable {name}" if null else name


def thresholds_text() -> str:
    """`prometheusRule.thresholds` of values.yaml."""
    lines = ["  thresholds:"]
    for name, (value, meaning) in THRESHOLDS.items():
        lines += [f"    ## @param prometheusRule.thresholds.{name} [number] Alert above: {meaning}.", f"    {name}: {value:g}"]
    return "\n".join(lines)


def between(text: str, mark: str, content: str, *, comment: tuple[str, str]) -> str:
    """`text` with what stands between two marks replaced. Raises ValueError where they are missing."""
    begin, end = (f"{comment[0]}{word}{comment[1]}" for word in (f"<{mark}>", f"</{mark}>"))
    head, found, rest = text.partition(begin)
    _, found_too, tail = rest.partition(end)
    if not (found and found_too):
        raise ValueError(f"the marks {begin} and {end} are missing")
    return f"{head}{begin}\n{content}\n{end}{tail}"


def chart_text(current: str) -> str:
    """Chart.yaml with the version and the engine of the package."""
    text = re.sub(r"(?m)^appVersion: .*$", f'appVersion: "{__version__}"', current)
    return re.sub(r"(?m)^(  fifa-stream/engine-digest: ).*$", rf'\g<1>"{read_manifest(bundled_engine()).digest}"', text)


def values_text(current: str) -> str:
    """values.yaml with its generated sections."""
    text = between(current, "settings", settings_text(), comment=("# ", ""))
    return between(text, "thresholds", thresholds_text(), comment=("  # ", ""))


def schema_text(values: str) -> str:
    """values.schema.json. Raises ValueError where a value has no `## @param` line, or a line no value."""
    tree, documented = yaml.safe_load(values), {param.name: param for param in params(values)}
    open_below = tuple(f"{param.name}." for param in documented.values() if param.type.removeprefix("nullable ") in ("object", "map"))
    names = [name for name, _ in leaves(tree) if not name.startswith(open_below)]
    missing = [name for name in names if name not in documented]
    unknown = [name for name in documented if name not in names and f"{name}." not in open_below]
    if missing or unknown:
        raise ValueError(f"values.yaml: no `## @param` line for {missing}, no value for {unknown}")
    closed = _closed(tree, documented, "")
    closed["properties"]["settings"] = settings_schema()
    # What a parent chart passes down.
    closed["properties"] |= {"global": {"type": "object"}, "enabled": {"type": "boolean"}}
    head = {"$schema": "http://json-schema.org/draft-07/schema#", "$comment": f"Generated by {COMMAND}."}
    return json.dumps(head | closed, indent=1) + "\n"


def _closed(tree: Mapping[str, Any], documented: Mapping[str, Param], prefix: str) -> Schema:
    properties: Schema = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if name in documented:
            properties[key] = documented[name].schema() if not name.startswith("settings.") else {}
        else:
            properties[key] = _closed(value, documented, f"{name}.")
    required = [key for key in tree if f"{prefix}{key}" not in documented or not documented[f"{prefix}{key}"].is_nullable]
    return {"type": "object", "additionalProperties": False, "required": required, "properties": properties}


def readme_text(current: str, values: str) -> str:
    """README.md with its table."""
    tree, lines, section = yaml.safe_load(values), [], ""
    for param in params(values):
        if param.section != section:
            section = param.section
            lines += ["", f"### {section}", "", "| value | type | default | meaning |", "|---|---|---|---|"]
        default, kind = json.dumps(lookup(tree, param.name)), param.type.replace("|", r"\|")
        lines.append(f"| `{param.name}` | {kind} | `{default.replace('|', chr(92) + '|')}` | {param.meaning.replace('|', chr(92) + '|')} |")
    return between(current, "values", "\n".join([*lines[1:], ""]), comment=("<!-- ", " -->"))


def generated(chart: Path = CHART) -> dict[Path, str]:
    """Every generated file with what it should hold."""
    values = values_text((chart / "values.yaml").read_text("utf-8"))
    readme = readme_text((chart / "README.md").read_text("utf-8"), values)
    return {
        chart / "Chart.yaml": chart_text((chart / "Chart.yaml").read_text("utf-8")),
        chart / "values.yaml": values,
        chart / "values.schema.json": schema_text(values),
        chart / "README.md": readme,
    }


if __name__ == "__main__":
    for path, text in generated(Path(sys.argv[1]) if len(sys.argv) > 1 else CHART).items():
        path.write_text(text, encoding="utf-8")

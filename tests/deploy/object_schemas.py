"""What the API server would say of rendered objects: strict schemas of Kubernetes itself, closed schemas of the operators' objects.

Kubernetes' come with the package kubernetes-validate, read as files: its own call reads 1.4 MB for each object. The operators' come from the shared
folder; they are converted from the CRDs, and where they are absent their objects are not looked at.
"""

import functools
import importlib.util
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonschema

from tests.deploy.chart import Object


def schema_folder() -> Path | None:
    """Where kubernetes-validate keeps its schemas; None where it is not installed."""
    spec = importlib.util.find_spec("kubernetes_validate")
    return Path(spec.submodule_search_locations[0]) / "kubernetes-json-schema" if spec and spec.submodule_search_locations else None


def crd_folder() -> Path | None:
    """The operators' schemas, under FIFA_SHARED or beside the repository; None where they are not."""
    folder = Path(os.environ.get("FIFA_SHARED") or Path(__file__).parents[3] / "shared") / "crd-schemas"
    return folder if folder.is_dir() else None


@functools.cache
def _definitions(version: str) -> dict[str, Any]:
    folder = schema_folder()
    assert folder is not None, "kubernetes-validate is not installed"
    definitions: dict[str, Any] = json.loads((folder / f"v{version}.0-local-strict" / "_definitions.json").read_text("utf-8"))["$defs"]
    return definitions


@functools.cache
def _core_validator(version: str, api_version: str, kind: str) -> jsonschema.Draft202012Validator | None:
    group, _, its_version = api_version.rpartition("/")
    name = f"io.k8s.api.{group.partition('.')[0] or 'core'}.{its_version}.{kind}"
    definitions = _definitions(version)
    return jsonschema.Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": definitions}) if name in definitions else None


@functools.cache
def _crd_validator(api_version: str, kind: str) -> jsonschema.Draft202012Validator | None:
    folder = crd_folder()
    path = None if folder is None else folder / f"{kind.lower()}_{api_version.replace('/', '_')}.json"
    return jsonschema.Draft202012Validator(json.loads(path.read_text("utf-8"))) if path and path.is_file() else None


def is_operators(item: Object) -> bool:
    """Whether an object is a custom resource: Kubernetes' own groups have no dot, or end in k8s.io."""
    group = item["apiVersion"].rpartition("/")[0]
    return "." in group and not group.endswith(".k8s.io")


def findings(objects: Sequence[Object], version: str) -> Iterator[str]:
    """Everything that a schema says against the objects. A kind that no schema of this Kubernetes knows is one."""
    for item in objects:
        name = f"{item['kind']}/{item['metadata'].get('name')}"
        if is_operators(item):
            validator = _crd_validator(item["apiVersion"], item["kind"])
            if validator is None and crd_folder() is not None:
                yield f"{name}: no schema for {item['apiVersion']}"
        else:
            validator = _core_validator(version, item["apiVersion"], item["kind"])
            if validator is None:
                yield f"{name}: Kubernetes {version} has no {item['apiVersion']}"
        if validator is not None:
            yield from (f"{name} {error.json_path}: {error.message[:200]}" for error in validator.iter_errors(item))

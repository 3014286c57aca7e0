"""The Helm chart rendered without a cluster, by Helm's own SDK. Support of the chart's tests and of their mutation table."""

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

CHART = Path(__file__).parents[2] / "deploy" / "helm" / "fifa-stream"
CI_FILES = tuple(sorted((CHART / "ci").glob("*-values.yaml")))
PROFILES = tuple(sorted(CHART.glob("values-*.yaml")))
KUBERNETES = ("1.27", "1.33", "1.37")
"""The oldest that Chart.yaml allows, one that is in use, the newest whose schemas are at hand."""
API_VERSIONS = ("keda.sh/v1alpha1", "monitoring.coreos.com/v1", "kafka.strimzi.io/v1")
RELEASE, NAMESPACE = "prod", "moderation"

Values = dict[str, Any]
Object = dict[str, Any]


def require_helm() -> Any:
    """The SDK; skips the calling module where it, or its native library, is not there."""
    try:
        import helm_python

        helm_python.helm_sdk_version()
    except (ImportError, OSError) as missing:
        pytest.skip(f"needs helm-python-sdk (extra `chart`): {missing}", allow_module_level=True)
    return helm_python


class Refused(Exception):
    """Schema, guard or template says no; the message is Helm's."""


class _StrictLoader(yaml.CSafeLoader if hasattr(yaml, "CSafeLoader") else yaml.SafeLoader):  # type: ignore[misc]
    """PyYAML takes the last of two equal keys and says nothing."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # type: ignore[no-untyped-call]
        if repeated := {key for key in keys if keys.count(key) > 1}:
            raise yaml.constructor.ConstructorError(None, None, f"keys twice: {sorted(map(str, repeated))}", node.start_mark)
        return super().construct_mapping(node, deep)  # type: ignore[no-any-return]


def load_yaml(text: str) -> list[Any]:
    """Every document that is not empty. Raises yaml.YAMLError, also for a key that is there twice."""
    return [document for document in yaml.load_all(text, _StrictLoader) if document is not None]


def values_of(path: Path) -> Values:
    """A values file."""
    documents = load_yaml(path.read_text("utf-8"))
    return documents[0] if documents else {}


@functools.cache
def _defaults_text(chart: Path) -> str:
    return json.dumps(values_of(chart / "values.yaml"))


def defaults(chart: Path = CHART) -> Values:
    """values.yaml, a copy of one's own."""
    return json.loads(_defaults_text(chart))  # type: ignore[no-any-return]


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> Values:
    """As Helm merges values files: maps deep, all else replaced, null kept (Helm deletes by it)."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def with_value(values: Mapping[str, Any], name: str, value: Any) -> Values:
    """The values with one of them, by its dotted name, replaced."""
    head, _, rest = name.partition(".")
    below = values.get(head)
    return {**values, head: with_value(below if isinstance(below, Mapping) else {}, rest, value) if rest else value}


@dataclass(frozen=True)
class Rendered:
    """What Helm makes of a chart and values. Read only: its objects are parsed once."""

    texts: Mapping[str, str]
    """By template, as rendered."""
    values: Values
    """Defaults and overrides merged."""

    @functools.cached_property
    def objects(self) -> list[Object]:
        """Every Kubernetes object, the pods of `helm test` among them. Raises yaml.YAMLError."""
        return [document for name, text in sorted(self.texts.items()) if name.endswith(".yaml") for document in load_yaml(text)]

    @property
    def notes(self) -> str:
        """What Helm prints after an install."""
        return next(text for name, text in self.texts.items() if name.endswith("NOTES.txt"))

    def of(self, kind: str, *, component: str | None = None) -> list[Object]:
        """Objects of a kind, by component where asked."""
        label = "app.kubernetes.io/component"
        return [item for item in self.objects if item["kind"] == kind and component in (None, item["metadata"].get("labels", {}).get(label))]

    def one(self, kind: str, *, component: str | None = None) -> Object:
        """The only object of a kind."""
        (found,) = self.of(kind, component=component)
        return found


class Chart:
    """A loaded chart, to be rendered often."""

    def __init__(self, path: Path = CHART) -> None:
        """Raises Refused for a folder that is no chart."""
        import helm_python

        self.path, self._helm = path, helm_python
        try:
            self._chart = helm_python.Chart.load(path)
        except helm_python.HelmError as error:
            raise Refused(str(error)) from None

    def render(
        self, overrides: Mapping[str, Any], *, kubernetes: str = "1.33", api_versions: Sequence[str] = API_VERSIONS, release: str = RELEASE
    ) -> Rendered:
        """Render as an install would. Raises Refused."""
        from helm_python import _native

        # Chart.render has no kube_version and no api_versions; the call below it has both.
        options = {"name": release, "namespace": NAMESPACE, "kube_version": f"v{kubernetes}.0", "api_versions": list(api_versions)}
        try:
            texts = json.loads(_native.call_string("helm_render", self._chart._raw(), json.dumps(overrides), json.dumps(options)))
        except self._helm.HelmError as error:
            raise Refused(str(error)) from None
        return Rendered({name.partition("/templates/")[2]: text for name, text in texts.items()}, merge(defaults(self.path), overrides))

    def lint(self, overrides: Mapping[str, Any], *, kubernetes: str = "1.33") -> list[str]:
        """What `helm lint --strict` complains of."""
        report = self._helm.lint(str(self.path), dict(overrides), strict=True, kube_version=f"v{kubernetes}.0")
        return [message["error"] for message in report["messages"] if message["severity"] >= 2] + list(report["errors"])


def pods_of(objects: Sequence[Object]) -> Iterator[tuple[Object, Object]]:
    """Every pod or pod template with the object that it stands in."""
    for item in objects:
        if item["kind"] == "Pod":
            yield item, item
        elif "template" in item.get("spec", {}):
            yield item, item["spec"]["template"]


def containers_of(pod: Object) -> list[Object]:
    """Init containers first, as they run."""
    spec = pod["spec"]
    return [*spec.get("initContainers", ()), *spec["containers"]]

"""Mistakes sown into the chart, one text replacement each, and which layer of checks notices: `python -m tests.deploy.mutations` writes
docs/bench/chart-mutations.md.

A mistake that no layer notices is a hole in the checks; the tests refuse one.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.deploy import object_schemas, semantics
from tests.deploy.chart import CHART, KUBERNETES, Chart, Refused, Rendered, values_of

TABLE = Path(__file__).parents[2] / "docs" / "bench" / "chart-mutations.md"
COMMAND = "python -m tests.deploy.mutations"


@dataclass(frozen=True, slots=True)
class Mutation:
    """One mistake, and the values under which it shows."""

    mistake: str
    file: str
    old: str
    new: str
    values: str = "default"
    """Of ci/."""


MUTATIONS = (
    Mutation("an API version that was removed", "templates/poddisruptionbudget.yaml", "policy/v1", "policy/v1beta1"),
    Mutation("a misspelt field of a pod", "templates/_pod.tpl", "enableServiceLinks:", "enableServiceLink:"),
    Mutation(
        "a string where a number belongs",
        "templates/deployment.yaml",
        "minReadySeconds: {{ int $values.minReadySeconds }}",
        "minReadySeconds: {{ $values.minReadySeconds | quote }}",
    ),
    Mutation("a key that is there twice", "templates/service.yaml", "  type: ClusterIP\n", "  type: ClusterIP\n  type: ClusterIP\n"),
    Mutation("a name with a capital letter", "templates/tests/ready.yaml", "%s-test-ready", "%s-Test"),
    Mutation(
        "a name that needs room that is not there",
        "templates/tests/ready.yaml",
        "%s-test-ready",
        "%s-test-of-whether-one-of-the-workers-is-ready-to-judge",
    ),
    Mutation("a selector that matches no pod", "templates/service.yaml", '(list . "worker")', '(list . "workers")'),
    Mutation(
        "the chart's version in a selector",
        "templates/deployment.yaml",
        "    matchLabels:\n",
        "    matchLabels:\n      helm.sh/chart: {{ $.Chart.Version }}\n",
    ),
    Mutation(
        "a mount without its volume",
        "templates/deployment.yaml",
        "        - name: settings\n          configMap:",
        "        - name: config\n          configMap:",
    ),
    Mutation(
        "a volume that nobody mounts",
        "templates/deployment.yaml",
        "            - {name: run, mountPath: /run/fifa-stream, readOnly: true}\n",
        "",
        "gpu-keda",
    ),
    Mutation(
        "a ConfigMap of another name",
        "templates/deployment.yaml",
        'name: {{ include "fifa.fullname" . }}\n            items',
        'name: {{ include "fifa.name" . }}\n            items',
    ),
    Mutation("a key that the ConfigMap does not have", "templates/configmap.yaml", "settings.toml: |", "config.toml: |"),
    Mutation("a probe of another port", "templates/deployment.yaml", "port: health}", "port: http}"),
    Mutation(
        "liveness and readiness exchanged",
        "templates/deployment.yaml",
        '"readiness" "ready" "liveness" "live"',
        '"readiness" "live" "liveness" "ready"',
    ),
    Mutation("no startup probe", "templates/deployment.yaml", 'dict "startup" "started" ', "dict "),
    Mutation(
        "killed while it drains",
        "templates/deployment.yaml",
        "terminationGracePeriodSeconds: {{ int $values.terminationGracePeriodSeconds }}",
        "terminationGracePeriodSeconds: 30",
    ),
    Mutation(
        "a roll-out that fails before the engine is built", "templates/_helpers.tpl", "{{- add $ensure (include", "{{- add 0 (include", "gpu-keda"
    ),
    Mutation("a pod that may be root", "values.yaml", "  runAsNonRoot: true\n", "  runAsNonRoot: false\n"),
    Mutation(
        "a container that may write its root file system",
        "templates/_pod.tpl",
        "  {{- toYaml $root.Values.containerSecurityContext | nindent 2 }}",
        '  {{- omit $root.Values.containerSecurityContext "readOnlyRootFilesystem" | toYaml | nindent 2 }}',
        "gpu-keda",
    ),
    Mutation("a token of the API in the pod", "templates/_pod.tpl", "automountServiceAccountToken: false", "automountServiceAccountToken: true"),
    Mutation("a GPU that is requested and not limited", "templates/_pod.tpl", 'range list "requests" "limits"', 'range list "requests"', "gpu-keda"),
    Mutation(
        "a builder without a GPU",
        "templates/deployment.yaml",
        '(dict "root" . "gpu" $gpu "args" $args',
        '(dict "root" . "args" $args',
        "gpu-keda",
    ),
    Mutation(
        "products forgotten beside the user's own affinity",
        "templates/_pod.tpl",
        "(append (default list .matchExpressions) $product)",
        "(default (list $product) .matchExpressions)",
        "gpu-keda",
    ),
    Mutation(
        "replicas beside an autoscaler",
        "templates/deployment.yaml",
        '{{- if eq $values.autoscaling.mode "none" }}',
        '{{- if ne $values.autoscaling.mode "external" }}',
        "cpu-hpa",
    ),
    Mutation(
        "an autoscaler of another workload",
        "templates/autoscaler.yaml",
        'kind: Deployment\n    name: {{ include "fifa.fullname" . }}\n  minReplicas:',
        'kind: StatefulSet\n    name: {{ include "fifa.fullname" . }}\n  minReplicas:',
        "cpu-hpa",
    ),
    Mutation(
        "a number in KEDA's metadata",
        "templates/autoscaler.yaml",
        "lagThreshold: {{ int64 $keda.lagThreshold | quote }}",
        "lagThreshold: {{ int64 $keda.lagThreshold }}",
        "gpu-keda",
    ),
    Mutation("metadata that KEDA does not know", "templates/autoscaler.yaml", "consumerGroup:", "consumerGroupId:", "gpu-keda"),
    Mutation("a SASL mechanism in Kafka's words, not KEDA's", "templates/autoscaler.yaml", '"scram_sha512"', '"scram-sha-512"', "gpu-keda"),
    Mutation(
        "KEDA begins at the end of the log", "templates/autoscaler.yaml", "offsetResetPolicy: earliest", "offsetResetPolicy: latest", "gpu-keda"
    ),
    Mutation("a field of the ScaledObject that is none", "templates/autoscaler.yaml", "minReplicaCount:", "minReplicas:", "gpu-keda"),
    Mutation("KEDA without the user's name", "templates/autoscaler.yaml", "configMapTargetRef:", "secretTargetRefs:", "gpu-keda"),
    Mutation("a Job of the same name for ever", "templates/engine-job.yaml", "(sha256sum $spec | trunc 10)", '"build"', "gpu-job"),
    Mutation(
        "Job and worker build different engines",
        "templates/engine-job.yaml",
        '(dict "root" .root "gpu" .gpu) | nindent 8',
        '(dict "root" .root "gpu" .gpu "args" (list "--opt-level=5")) | nindent 8',
        "gpu-job",
    ),
    Mutation("an option that the program does not have", "templates/_pod.tpl", "- --cache=/engines", "- --cache-dir=/engines", "gpu-keda"),
    Mutation(
        "a link that the worker does not open",
        "templates/deployment.yaml",
        "--link=/run/fifa-stream/engine",
        "--link=/run/fifa-stream/current",
        "gpu-keda",
    ),
    Mutation("a setting that the worker does not have", "templates/_helpers.tpl", '"ssl_cafile" (printf', '"ssl_ca_file" (printf', "gpu-keda"),
    Mutation("a secret file that is not mounted", "templates/_helpers.tpl", 'printf "%s/sasl/%s"', 'printf "%s/password/%s"', "gpu-keda"),
    Mutation("a variable that is no setting", "templates/deployment.yaml", "FIFA_KAFKA__TRANSACTIONAL_ID", "FIFA_KAFKA__TRANSACTION_ID", "gpu-keda"),
    Mutation("a health port that only the pod reaches", "values.yaml", 'health_host: "0.0.0.0"', 'health_host: "127.0.0.1"'),
    Mutation(
        "a large number as Helm prints it",
        "templates/autoscaler.yaml",
        "{{ int64 $keda.lagThreshold | quote }}",
        "{{ $keda.lagThreshold | quote }}",
        "gpu-keda",
    ),
    Mutation("policyTypes in lower case", "templates/networkpolicy.yaml", "[Ingress, Egress]", "[ingress, egress]"),
    Mutation("brokers shut out", "templates/networkpolicy.yaml", 'include "fifa.kafkaPorts" $', 'include "fifa.httpPorts" $', "cpu-hpa"),
    Mutation("a monitor of a port that is not there", "templates/monitors.yaml", "- port: health", "- port: metrics", "gpu-job"),
    Mutation("a misspelt field of a monitor", "templates/monitors.yaml", "scrapeTimeout:", "scrape_timeout:", "gpu-keda"),
    Mutation("a duration that Prometheus does not read", "values.yaml", "  interval: 30s\n", "  interval: 30 s\n", "gpu-keda"),
    Mutation(
        "an expression that Prometheus does not read",
        "rules/alerts.yaml",
        "sum by (namespace, job) (fifa_consumer_lag_records",
        "sum by (namespace, job (fifa_consumer_lag_records",
        "gpu-keda",
    ),
    Mutation("alert text taken for Helm's", "templates/prometheusrule.yaml", "tpl ($.Files.Get $path", "print ($.Files.Get $path", "gpu-keda"),
    Mutation(
        "a topic of Strimzi's that is not the worker's",
        "templates/strimzi.yaml",
        '"verdicts" $kafka.verdicts_topic',
        '"verdicts" $kafka.frames_topic',
        "gpu-job",
    ),
    Mutation(
        "a right that the worker lacks",
        "templates/strimzi.yaml",
        "operations: [Read, Describe]\n      - resource: {type: group",
        "operations: [Describe]\n      - resource: {type: group",
        "gpu-keda",
    ),
    Mutation(
        "a right that nobody needs",
        "templates/strimzi.yaml",
        "operations: [Write, Describe]\n      {{- end }}\n      {{- if eq",
        "operations: [All]\n      {{- end }}\n      {{- if eq",
        "gpu-keda",
    ),
)


def _lint(chart: Chart, mutation: Mutation, rendered: Rendered | None) -> Iterator[str]:
    yield from chart.lint(values_of(CHART / "ci" / f"{mutation.values}-values.yaml"))


def _schemas(chart: Chart, mutation: Mutation, rendered: Rendered | None) -> Iterator[str]:
    if rendered is not None and object_schemas.schema_folder() is not None:
        for version in KUBERNETES[-2:]:
            yield from object_schemas.findings(rendered.objects, version)


def _semantics(chart: Chart, mutation: Mutation, rendered: Rendered | None) -> Iterator[str]:
    if rendered is not None:
        try:
            yield from semantics.findings(rendered)
        except (LookupError, TypeError, ValueError) as error:
            yield f"cannot be read: {type(error).__name__}: {error}"


def promtool() -> str | None:
    """Of Debian's package prometheus; by PROMTOOL or PATH."""
    return os.environ.get("PROMTOOL") or shutil.which("promtool")


def _promtool(chart: Chart, mutation: Mutation, rendered: Rendered | None) -> Iterator[str]:
    program = promtool()
    for item in rendered.of("PrometheusRule") if rendered is not None and program else ():
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump({"groups": item["spec"]["groups"]}, file)
            file.flush()
            done = subprocess.run([program, "check", "rules", file.name], capture_output=True, text=True, check=False)
        if done.returncode:
            yield done.stderr.strip().splitlines()[-1].replace(file.name, "rules.yaml")


Layer = Callable[[Chart, Mutation, Rendered | None], Iterator[str]]
LAYERS: dict[str, Layer] = {"semantics": _semantics, "schemas": _schemas, "promtool": _promtool, "lint": _lint}
"""What is looked at after rendering, quickest first."""


def notices(mutation: Mutation, folder: Path) -> Iterator[tuple[str, str]]:
    """Layers that notice, with the first thing that they say. `render` is Helm itself, and a YAML reader that takes no key twice."""
    copy = Path(shutil.copytree(CHART, folder / "fifa-stream"))
    text = (copy / mutation.file).read_text("utf-8")
    if text.count(mutation.old) == 0:
        raise ValueError(f"{mutation.mistake}: {mutation.file} does not hold {mutation.old!r}")
    (copy / mutation.file).write_text(text.replace(mutation.old, mutation.new, 1), "utf-8")
    chart, rendered = Chart(copy), None
    try:
        rendered = chart.render(values_of(CHART / "ci" / f"{mutation.values}-values.yaml"))
        _ = rendered.objects
    except (Refused, yaml.YAMLError) as refused:
        yield "render", " ".join(str(refused).split())
        rendered = None
    for name, layer in LAYERS.items():
        first = next(layer(chart, mutation, rendered), None)
        if first is not None:
            yield name, first


def table() -> str:
    """docs/bench/chart-mutations.md."""
    columns = ("lint", "render", "schemas", "semantics", "promtool")
    rows, caught = [], dict.fromkeys(columns, 0)
    for mutation in MUTATIONS:
        with tempfile.TemporaryDirectory() as folder:
            found = dict(notices(mutation, Path(folder)))
        caught = {name: caught[name] + (name in found) for name in columns}
        first = next(iter(found.values()), "nobody notices")
        marks = " | ".join("x" if name in found else "" for name in columns)
        rows.append(f"| {mutation.mistake} | {mutation.values} | {marks} | {_short(first)} |")
    head = f"| mistake | values | {' | '.join(columns)} | what is said |"
    sums = f"| **noticed, of {len(MUTATIONS)}** | | {' | '.join(f'**{caught[name]}**' for name in columns)} | |"
    missing = [] if promtool() else ["", "promtool was not there: its column is empty."]
    return "\n".join([*INTRODUCTION, *missing, "", head, "|---" * (len(columns) + 3) + "|", *rows, sums, ""])


INTRODUCTION = (
    "# Mistakes sown into the chart",
    "",
    f"Written by `{COMMAND}`: each row is one text replacement in a copy of the chart, rendered with one file of its `ci/`, and who notices.",
    "",
    "- `lint` is `helm lint --strict`.",
    "- `render` is Helm with the schema of the values, the guards, and a YAML reader that takes no key twice.",
    "- `schemas` are Kubernetes' own, strict, and the closed ones of the operators' objects.",
    "- `semantics` are the rules of `tests/deploy/semantics.py`, which also read settings and arguments as the worker does.",
    "- `promtool` checks the alerts. A layer that needs the rendered objects is not asked where Helm refuses.",
)


def _short(text: str) -> str:
    text = " ".join(text.split()).replace("|", "\\|")
    return text if len(text) <= 120 else f"{text[:117]}..."


if __name__ == "__main__":
    written = table()
    TABLE.write_text(written, encoding="utf-8")
    sys.exit("nobody notices" in written)

"""Alerts, recording rules and the dashboard, made from the one list of metrics: a name that is not in it cannot be written here.

`python -m fifa_stream.monitoring` writes, inside a clone,

    deploy/monitoring/rules.yaml                       for Prometheus as it is, thresholds at their defaults; what promtool checks
    deploy/monitoring/values.yaml                      what the chart's values hold for the template, with the defaults
    deploy/helm/fifa-stream/rules/alerts.yaml          the same rules as a template: scope and thresholds are values of the chart
    deploy/helm/fifa-stream/dashboards/fifa-stream.json

A group of members is (namespace, job): what Kubernetes and Prometheus call them, not the members themselves. docs/runbook.md has a section for each
alert.
"""

import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fifa_stream.telemetry import (
    BATCH_RETRIES,
    BATCH_SIZE,
    COMMITS,
    DEAD_LETTERS_SENT,
    E2E_SECONDS,
    ENGINE_INFO,
    ENGINE_LOAD_SECONDS,
    FACE_SCORE,
    FRAMES_SHED,
    IN_FLIGHT_BYTES,
    IN_FLIGHT_RECORDS,
    LAG_RECORDS,
    LAG_SECONDS,
    LAST_POLL,
    PARTITIONS,
    PAUSED,
    QUEUE_DEPTH,
    REBALANCES,
    RECORDS_HANDED_OVER,
    RECORDS_POLLED,
    RESTARTS,
    SCORE_PSI,
    SHADOW_FRAMES,
    SHADOW_INFO,
    SHADOW_SCORE_DIFFERENCE,
    SPANS,
    STAGE_SECONDS,
    STREAM_RESTORE_SECONDS,
    STREAM_SNAPSHOT_BYTES,
    STREAMS_FORGOTTEN,
    STREAMS_REMEMBERED,
    VERDICTS_SENT,
    WORKER_INFO,
    Metric,
)

RULES_FILE = Path("deploy/monitoring/rules.yaml")
VALUES_FILE = Path("deploy/monitoring/values.yaml")
CHART_RULES_FILE = Path("deploy/helm/fifa-stream/rules/alerts.yaml")
DASHBOARD_FILE = Path("deploy/helm/fifa-stream/dashboards/fifa-stream.json")
COMMAND = "python -m fifa_stream.monitoring"
RUNBOOK = "docs/runbook.md"

THRESHOLDS: Mapping[str, tuple[float, str]] = {
    "deadLetterRatio": (0.01, "part of the answers that are dead letters, over 10 minutes"),
    "lagRecords": (1000, "records not committed, of a group of members, and growing"),
    "lagSeconds": (60, "age of the oldest record that is not committed"),
    "latencySeconds": (10, "99th percentile from the record's timestamp to the acknowledged answer"),
    "scorePsi": (0.2, "population stability index of the scores"),
    "refusedCommits": (5, "commits refused in 10 minutes"),
    "rebalances": (10, "rebalances seen by one member in 15 minutes"),
    "restarts": (3, "returns to the committed offsets in 30 minutes"),
    "batchRetries": (10, "batches tried again in 15 minutes"),
    "pausedRatio": (0.9, "part of 15 minutes in which consumption is paused"),
    "shedRatio": (0.05, "part of the records polled that is skipped, over 10 minutes"),
    "engineLoadSeconds": (300, "time to load the engine"),
    "pollSilenceSeconds": (60, "time since the last poll"),
}
"""Values of the chart under `prometheusRule.thresholds`: default and what it bounds."""

EXTERNAL_METRICS: Mapping[str, str] = {
    "DCGM_FI_DEV_FB_USED": "dcgm-exporter",
    "DCGM_FI_DEV_GPU_UTIL": "dcgm-exporter",
    "DCGM_FI_DEV_POWER_USAGE": "dcgm-exporter",
    "DCGM_FI_DEV_XID_ERRORS": "dcgm-exporter; a gauge that holds the last XID",
    "keda_scaler_detail_errors_total": "KEDA's operator",
    "kube_deployment_spec_replicas": "kube-state-metrics",
    "kube_deployment_status_replicas_ready": "kube-state-metrics",
    "kube_horizontalpodautoscaler_spec_max_replicas": "kube-state-metrics",
    "kube_horizontalpodautoscaler_status_desired_replicas": "kube-state-metrics",
    "kube_pod_container_status_restarts_total": "kube-state-metrics",
}
"""Series of others that rules or dashboard read, and who exports them. Where nobody does, the alert is silent and the panel empty."""

BY_GROUP = "by (namespace, job)"
LAG = "namespace_job:fifa_consumer_lag_records:sum"
ANSWERS = "namespace_job:fifa_answers:rate5m"
DEAD_LETTER_RATIO = "namespace_job:fifa_dead_letters:ratio_rate10m"
LATENCY_P99 = "namespace_job:fifa_e2e_latency_seconds:p99_rate10m"


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a rule is written: for Prometheus, or for the chart."""

    scope: str
    """Matcher that every series of ours and of kube-state-metrics gets; empty: none."""
    gpu_scope: str
    """The same for DCGM, whose namespace label is called otherwise."""
    autoscaler: str
    """Matcher of our HorizontalPodAutoscaler: a namespace holds those of others too; empty: none."""
    scaled_object: str
    """The same of our ScaledObject."""
    threshold: Callable[[str], str]
    runbook: str
    alert_text: Callable[[str], str]
    """Of text with `{{ }}`, which is Prometheus's to fill in."""

    def series(self, metric: Metric, *, suffix: Literal["", "_bucket", "_count", "_sum"] = "", **matchers: str) -> str:
        """A selector of one of our metrics; its labels are checked."""
        assert matchers.keys() <= set(metric.labels), f"{metric.name} has labels {metric.labels}, not {tuple(matchers)}"
        assert (metric.kind == "histogram") == bool(suffix), f"{metric.name} is a {metric.kind}"
        return _selector(metric.name + suffix, [self.scope, *(f'{label}="{value}"' for label, value in matchers.items())])

    def recorded(self, name: str) -> str:
        """A selector of what a recording rule made."""
        return _selector(name, [self.scope])

    def external(self, name: str, *matchers: str) -> str:
        """A selector of somebody else's metric."""
        assert name in EXTERNAL_METRICS, f"{name} is not among EXTERNAL_METRICS"
        return _selector(name, [self.gpu_scope if name.startswith("DCGM") else self.scope, *matchers])


def _selector(name: str, matchers: list[str]) -> str:
    given = ", ".join(matcher for matcher in matchers if matcher)
    space = " " if given.startswith("{{") else ""  # a template would take three braces for two and one
    return f"{name}{{{space}{given}}}" if given else name


PLAIN = Dialect("", "", "", "", lambda name: f"{THRESHOLDS[name][0]:g}", RUNBOOK, lambda text: text)
CHART = Dialect(
    'namespace="{{ .Release.Namespace }}"',
    '{{ .Values.prometheusRule.dcgmNamespaceLabel }}="{{ .Release.Namespace }}"',
    'horizontalpodautoscaler=~"{{ include "fifa.autoscalers" . }}"',
    'scaledObject=~"{{ include "fifa.autoscalers" . }}"',
    lambda name: f"{{{{ .Values.prometheusRule.thresholds.{name} }}}}",
    "{{ .Values.prometheusRule.runbookUrl }}",
    lambda text: re.sub(r"{{.*?}}", lambda found: f"{{{{`{found[0]}`}}}}", text),
)


@dataclass(frozen=True, slots=True)
class Recording:
    """A series that Prometheus keeps up to date."""

    name: str
    expr: str


@dataclass(frozen=True, slots=True)
class Alert:
    """A condition that a person should hear of."""

    name: str
    severity: Literal["critical", "warning"]
    expr: str
    wait: str
    """How long the condition must hold; '0m': at once."""
    summary: str
    """One line; may hold `{{ $labels.x }}` and `{{ $value }}`."""


def recordings(d: Dialect) -> tuple[Recording, ...]:
    """What several alerts read."""
    answers, letters = d.series(VERDICTS_SENT), d.series(DEAD_LETTERS_SENT)
    latency = f"rate({d.series(E2E_SECONDS, suffix='_bucket')}[10m])"
    return (
        Recording(LAG, f"sum {BY_GROUP} ({d.series(LAG_RECORDS)})"),
        Recording(ANSWERS, f"sum {BY_GROUP} (rate({answers}[5m])) + sum {BY_GROUP} (rate({letters}[5m]))"),
        Recording(
            DEAD_LETTER_RATIO,
            f"sum {BY_GROUP} (rate({letters}[10m]))\n  / (sum {BY_GROUP} (rate({answers}[10m])) + sum {BY_GROUP} (rate({letters}[10m])))",
        ),
        Recording(LATENCY_P99, f"histogram_quantile(0.99, sum by (namespace, job, le) ({latency}))"),
    )


def alerts(d: Dialect) -> tuple[Alert, ...]:
    """All alerts. Each has a section in the runbook and a unit test."""
    lag, answers = d.recorded(LAG), d.recorded(ANSWERS)
    shed = f"sum {BY_GROUP} (rate({d.series(FRAMES_SHED)}[10m]))"
    polled = f"sum {BY_GROUP} (rate({d.series(RECORDS_POLLED)}[10m]))"
    unreadable = d.series(STREAMS_FORGOTTEN, reason="unreadable")
    desired = d.external("kube_horizontalpodautoscaler_status_desired_replicas", d.autoscaler)
    most = d.external("kube_horizontalpodautoscaler_spec_max_replicas", d.autoscaler)
    group, member = "{{ $labels.namespace }}/{{ $labels.job }}", "{{ $labels.instance }}"
    return (
        Alert("Stalled", "critical", f"{lag} > 0 and {answers} == 0", "5m", f"{group} has {{{{ $value }}}} records waiting and answers none."),
        Alert("Down", "critical", f"absent({d.series(LAST_POLL)})", "5m", "No member reports anything: none runs, or none is scraped."),
        Alert(
            "NotPolling",
            "critical",
            f"time() - {d.series(LAST_POLL)} > {d.threshold('pollSilenceSeconds')}",
            "1m",
            f"{member} has not polled for {{{{ $value | humanizeDuration }}}}: its loop hangs.",
        ),
        Alert(
            "DeadLetters",
            "critical",
            f"{d.recorded(DEAD_LETTER_RATIO)} > {d.threshold('deadLetterRatio')}",
            "10m",
            f"{{{{ $value | humanizePercentage }}}} of the answers of {group} are dead letters.",
        ),
        Alert(
            "CommitFailures",
            "critical",
            f"sum {BY_GROUP} (increase({d.series(COMMITS, outcome='refused')}[10m])) > {d.threshold('refusedCommits')}",
            "5m",
            f"The group refuses commits of {group}: a restart would repeat ever more work.",
        ),
        Alert(
            "GpuXid",
            "critical",
            f"{d.external('DCGM_FI_DEV_XID_ERRORS')} > 0",
            "0m",
            "GPU {{ $labels.gpu }} of {{ $labels.Hostname }} reported XID {{ $value }}.",
        ),
        Alert(
            "LagGrowing",
            "warning",
            f"{lag} > {d.threshold('lagRecords')} and deriv({lag}[10m]) > 0",
            "10m",
            f"{group} is {{{{ $value }}}} records behind and falls back further.",
        ),
        Alert(
            "LagSeconds",
            "warning",
            f"max {BY_GROUP} ({d.series(LAG_SECONDS)}) > {d.threshold('lagSeconds')}",
            "5m",
            f"The oldest record that {group} has not committed is {{{{ $value | humanizeDuration }}}} old.",
        ),
        Alert(
            "LatencyHigh",
            "warning",
            f"{d.recorded(LATENCY_P99)} > {d.threshold('latencySeconds')}",
            "10m",
            f"One in a hundred answers of {group} comes later than {{{{ $value | humanizeDuration }}}} after its frame.",
        ),
        Alert(
            "ScoreDrift",
            "warning",
            f"max {BY_GROUP} ({d.series(SCORE_PSI)}) > {d.threshold('scorePsi')}",
            "1h",
            f"Scores of {group} are distributed unlike the baseline (PSI {{{{ $value }}}}).",
        ),
        Alert(
            "EnginesDiffer",
            "warning",
            f"count {BY_GROUP} (count by (namespace, job, manifest_sha256) ({d.series(ENGINE_INFO)})) > 1",
            "30m",
            f"Members of {group} answer with {{{{ $value }}}} different engines.",
        ),
        Alert(
            "RebalanceStorm",
            "warning",
            f"max {BY_GROUP} (sum by (namespace, job, instance) (increase({d.series(REBALANCES)}[15m]))) > {d.threshold('rebalances')}",
            "5m",
            f"A member of {group} saw {{{{ $value }}}} rebalances in 15 minutes.",
        ),
        Alert(
            "Restarts",
            "warning",
            f"sum {BY_GROUP} (increase({d.series(RESTARTS)}[30m])) > {d.threshold('restarts')}",
            "0m",
            f"{group} went back to its committed offsets {{{{ $value }}}} times in 30 minutes: deliveries fail.",
        ),
        Alert(
            "BatchRetries",
            "warning",
            f"sum {BY_GROUP} (increase({d.series(BATCH_RETRIES)}[15m])) > {d.threshold('batchRetries')}",
            "0m",
            f"{group} tried {{{{ $value }}}} batches again in 15 minutes.",
        ),
        Alert(
            "Saturated",
            "warning",
            f"avg {BY_GROUP} (avg_over_time({d.series(PAUSED)}[15m])) > {d.threshold('pausedRatio')}",
            "15m",
            f"Members of {group} are paused {{{{ $value | humanizePercentage }}}} of the time: the engine is the limit.",
        ),
        Alert(
            "Shedding",
            "warning",
            f"{shed} / {polled} > {d.threshold('shedRatio')}",
            "10m",
            f"{group} skips {{{{ $value | humanizePercentage }}}} of its frames.",
        ),
        Alert(
            "StartupSlow",
            "warning",
            f"{d.series(ENGINE_LOAD_SECONDS)} > {d.threshold('engineLoadSeconds')}",
            "0m",
            f"{member} took {{{{ $value | humanizeDuration }}}} to load its engine.",
        ),
        Alert(
            "SpansNotExported",
            "warning",
            f"sum {BY_GROUP} (increase({d.series(SPANS, outcome='failed')}[15m])) > 0",
            "15m",
            f"Traces of {group} do not reach the collector.",
        ),
        Alert(
            "StreamsUnreadable",
            "warning",
            # A member counts them when it has just begun, before the first scrape: no increase shows them.
            f"sum {BY_GROUP} (increase({unreadable}[15m])) > 0 or sum {BY_GROUP} ({unreadable} unless {unreadable} offset 15m) > 0",
            "0m",
            f"{{{{ $value }}}} streams of {group} began anew: what was kept of them cannot be read.",
        ),
        Alert(
            "AutoscalerAtMax",
            "warning",
            f"({desired} >= {most}) and on (namespace) (sum by (namespace) ({lag}) > 0)",
            "30m",
            "{{ $labels.horizontalpodautoscaler }} asks for all of its {{ $value }} replicas, and records still wait.",
        ),
        Alert(
            "ScalerErrors",
            "warning",
            f"sum by (namespace, scaledObject) (increase({d.external('keda_scaler_detail_errors_total', d.scaled_object)}[10m])) > 0",
            "10m",
            "KEDA cannot read the lag for {{ $labels.scaledObject }}.",
        ),
    )


PREFIX = "FifaStream"
"""Of alert names: a shared Alertmanager knows many."""


def rules_text(d: Dialect, *, head: str) -> str:
    """The rules as YAML."""
    lines = [head, "groups:", "  - name: fifa-stream.recordings", "    rules:"]
    for recording in recordings(d):
        lines += [f"      - record: {recording.name}", "        expr: |-", *_block(recording.expr, 10)]
    lines += ["  - name: fifa-stream.alerts", "    rules:"]
    for alert in alerts(d):
        name = PREFIX + alert.name
        lines += [f"      - alert: {name}", "        expr: |-", *_block(alert.expr, 10)]
        lines += [f"        for: {alert.wait}", "        labels:", f"          severity: {alert.severity}", "        annotations:"]
        lines += [f"          summary: {json.dumps(d.alert_text(alert.summary))}"]
        lines += [f"          runbook_url: {json.dumps(f'{d.runbook}#{name.lower()}')}"]
    return "\n".join([*lines, ""])


def _block(text: str, indent: int) -> list[str]:
    return [" " * indent + line for line in text.split("\n")]


def plain_rules() -> str:
    """For Prometheus as it is."""
    return rules_text(PLAIN, head=f"# Generated by `{COMMAND}`. Thresholds are the defaults; the chart has them as values.")


def chart_rules() -> str:
    """For the chart, to be rendered by `tpl`."""
    return rules_text(CHART, head=f"{{{{- /* Generated by `{COMMAND}`. */ -}}}}")


def chart_values() -> str:
    """The values that the template reads."""
    lines = [f"# Generated by `{COMMAND}`: what rules/alerts.yaml of the chart reads.", "prometheusRule:"]
    lines += ["  # Where an alert's runbook_url points, before '#' and its section.", f"  runbookUrl: {RUNBOOK}"]
    lines += ["  # Label in which DCGM's series carry the namespace of the pod that holds the GPU.", "  dcgmNamespaceLabel: exported_namespace"]
    lines += ["  thresholds:"]
    for name, (default, meaning) in THRESHOLDS.items():
        lines += [f"    # {meaning[0].upper()}{meaning[1:]}.", f"    {name}: {default:g}"]
    return "\n".join([*lines, ""])


Panel = dict[str, Any]
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
SCOPE = 'namespace=~"$namespace", job=~"$job"'
DASHBOARD = Dialect(SCOPE, "", "", "", lambda name: f"{THRESHOLDS[name][0]:g}", RUNBOOK, lambda text: text)
COLUMNS, HEIGHT = 24, 8


def _panel(title: str, kind: str, unit: str, *queries: tuple[str, str], threshold: str | None = None) -> Panel:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if threshold is not None:
        steps.append({"color": "red", "value": THRESHOLDS[threshold][0]})
    custom = {"thresholdsStyle": {"mode": "dashed" if threshold else "off"}} if kind == "timeseries" else {}
    return {
        "title": title,
        "type": kind,
        "datasource": DATASOURCE,
        "fieldConfig": {"defaults": {"unit": unit, "custom": custom, "thresholds": {"mode": "absolute", "steps": steps}}, "overrides": []},
        "options": {},
        "targets": [
            {"refId": chr(ord("A") + number), "datasource": DATASOURCE, "expr": expr, "legendFormat": legend}
            for number, (expr, legend) in enumerate(queries)
        ],
    }


def _lines(title: str, unit: str, *queries: tuple[str, str], threshold: str | None = None) -> Panel:
    return _panel(title, "timeseries", unit, *queries, threshold=threshold)


def _quantiles(metric: Metric, *quantiles: float) -> list[tuple[str, str]]:
    rate = f"sum by (le) (rate({DASHBOARD.series(metric, suffix='_bucket')}[$__rate_interval]))"
    return [(f"histogram_quantile({quantile}, {rate})", f"p{100 * quantile:g}") for quantile in quantiles]


def _table(title: str, expr: str) -> Panel:
    panel = _panel(title, "table", "none", (expr, ""))
    panel["targets"][0] |= {"format": "table", "instant": True}
    return panel


def _heat_map(title: str, metric: Metric) -> Panel:
    panel = _panel(title, "heatmap", "none", (f"sum by (le) (increase({DASHBOARD.series(metric, suffix='_bucket')}[$__rate_interval]))", "{{le}}"))
    panel["targets"][0]["format"] = "heatmap"
    return panel


def _rate(metric: Metric, by: str, *, suffix: Literal["", "_count", "_sum"] = "") -> tuple[str, str]:
    return f"sum by ({by}) (rate({DASHBOARD.series(metric, suffix=suffix)}[$__rate_interval]))", f"{{{{{by}}}}}"


def rows() -> dict[str, list[Panel]]:
    """The panels of the dashboard, by row."""
    d = DASHBOARD
    stage = f"sum by (le, stage) (rate({d.series(STAGE_SECONDS, suffix='_bucket')}[$__rate_interval]))"
    return {
        "Objectives": [
            _lines(
                "Records behind", "short", (f"sum by (group, topic, partition) ({d.series(LAG_RECORDS)})", "{{partition}}"), threshold="lagRecords"
            ),
            _lines("Oldest record", "s", (f"max by (group, topic) ({d.series(LAG_SECONDS)})", "{{group}} {{topic}}"), threshold="lagSeconds"),
            _lines("From frame to answer", "s", *_quantiles(E2E_SECONDS, 0.5, 0.95, 0.99), threshold="latencySeconds"),
            _lines("Answers", "ops", _rate(VERDICTS_SENT, "label"), _rate(DEAD_LETTERS_SENT, "reason"), _rate(FRAMES_SHED, "reason")),
        ],
        "Pipeline": [
            _lines("Stages, 95th percentile", "s", (f"histogram_quantile(0.95, {stage})", "{{stage}}")),
            _heat_map("Frames in a batch", BATCH_SIZE),
            _lines("Waiting", "short", (f"sum by (queue) ({d.series(QUEUE_DEPTH)})", "{{queue}}")),
            _lines(
                "In flight",
                "short",
                (f"sum({d.series(IN_FLIGHT_RECORDS)})", "records"),
                (f"sum({d.series(IN_FLIGHT_BYTES)}) / 1e6", "MB"),
                (f"sum({d.series(PAUSED)})", "members paused"),
            ),
        ],
        "GPU": [
            _lines("Utilisation", "percent", (d.external("DCGM_FI_DEV_GPU_UTIL"), "{{Hostname}} {{gpu}}")),
            _lines("Memory", "decmbytes", (d.external("DCGM_FI_DEV_FB_USED"), "{{Hostname}} {{gpu}}")),
            _lines("Power", "watt", (d.external("DCGM_FI_DEV_POWER_USAGE"), "{{Hostname}} {{gpu}}")),
            _lines("Last XID", "none", (d.external("DCGM_FI_DEV_XID_ERRORS"), "{{Hostname}} {{gpu}}")),
        ],
        "Quality": [
            _lines("Faces by label", "ops", _rate(FACE_SCORE, "label", suffix="_count")),
            _heat_map("Scores", FACE_SCORE),
            _lines("Drift (PSI)", "none", (f"max by (instance) ({d.series(SCORE_PSI)})", "{{instance}}"), threshold="scorePsi"),
            _table("Engines", f"count by (name, version, manifest_sha256, backend, precision) ({d.series(ENGINE_INFO)})"),
        ],
        "Roll-out": [
            _lines("Frames that two engines judged", "ops", _rate(SHADOW_FRAMES, "outcome")),
            _heat_map("Difference of their scores", SHADOW_SCORE_DIFFERENCE),
            _table("Compared engines", f"count by (name, version, manifest_sha256, backend, precision) ({d.series(SHADOW_INFO)})"),
        ],
        "Memory of streams": [
            _lines("Streams remembered", "short", (f"sum({d.series(STREAMS_REMEMBERED)})", "remembered")),
            _lines("Streams forgotten", "short", _rate(STREAMS_FORGOTTEN, "reason")),
            _lines("Snapshots written", "Bps", (f"sum(rate({d.series(STREAM_SNAPSHOT_BYTES)}[$__rate_interval]))", "written")),
            _heat_map("Restores", STREAM_RESTORE_SECONDS),
        ],
        "Group and platform": [
            _lines(
                "Rebalances and restarts",
                "short",
                (f"sum by (event) (increase({d.series(REBALANCES)}[$__rate_interval]))", "{{event}}"),
                (f"sum(increase({d.series(RESTARTS)}[$__rate_interval]))", "back to the committed offsets"),
                (f"sum(increase({d.series(RECORDS_HANDED_OVER)}[$__rate_interval]))", "records handed over"),
            ),
            _lines("Commits", "ops", _rate(COMMITS, "outcome")),
            _lines(
                "Replicas",
                "short",
                (d.external("kube_deployment_status_replicas_ready").replace(SCOPE, 'namespace=~"$namespace"'), "{{deployment}} ready"),
                (d.external("kube_deployment_spec_replicas").replace(SCOPE, 'namespace=~"$namespace"'), "{{deployment}} wanted"),
                (f"sum by (instance) ({d.series(PARTITIONS)})", "partitions of {{instance}}"),
            ),
            _table("Members", f"max by (instance, version, group, topic, guarantee) ({d.series(WORKER_INFO)})"),
        ],
    }


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana reads it."""
    panels: list[Panel] = []
    top = 0
    for title, row in rows().items():
        panels.append({"id": len(panels) + 1, "title": title, "type": "row", "gridPos": {"h": 1, "w": COLUMNS, "x": 0, "y": top}, "panels": []})
        width = COLUMNS // len(row)
        for number, panel in enumerate(row):
            place = {"h": HEIGHT, "w": width, "x": number * width, "y": top + 1}
            panels.append({"id": len(panels) + 1, **panel, "gridPos": place})
        top += 1 + HEIGHT
    variables = [
        {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"},
        _variable("namespace", f"label_values({WORKER_INFO.name}, namespace)"),
        _variable("job", f'label_values({WORKER_INFO.name}{{namespace=~"$namespace"}}, job)'),
    ]
    return {
        "uid": "fifa-stream",
        "title": "FiFa-Stream",
        "description": f"Generated by {COMMAND}.",
        "tags": ["fifa-stream", "kafka"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": variables},
        "panels": panels,
    }


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }


def dashboard_text() -> str:
    """The dashboard as committed."""
    return json.dumps(dashboard(), indent=1) + "\n"


FILES: Mapping[Path, Callable[[], str]] = {
    RULES_FILE: plain_rules,
    VALUES_FILE: chart_values,
    CHART_RULES_FILE: chart_rules,
    DASHBOARD_FILE: dashboard_text,
}
"""What is generated, by its place in a clone."""


def write_files(root: Path) -> None:
    """Write all of `FILES`."""
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    write_files(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent)

"""Alerts and dashboard: made from the list of metrics, committed as made, understood by Prometheus; each alert fires when it should and only then."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from fifa_stream import monitoring
from fifa_stream.monitoring import CHART, EXTERNAL_METRICS, FILES, PLAIN, PREFIX, THRESHOLDS, alerts, dashboard, recordings, rows
from fifa_stream.telemetry import (
    BATCH_RETRIES,
    COMMITS,
    DEAD_LETTERS_SENT,
    E2E_SECONDS,
    ENGINE_INFO,
    ENGINE_LOAD_SECONDS,
    FRAMES_SHED,
    LAG_RECORDS,
    LAG_SECONDS,
    LAST_POLL,
    METRICS,
    PAUSED,
    REBALANCES,
    RECORDS_POLLED,
    RESTARTS,
    SCORE_PSI,
    SPANS,
    STREAMS_FORGOTTEN,
    VERDICTS_SENT,
    Meter,
)

ROOT = Path(__file__).resolve().parent.parent.parent
ALERTS = {alert.name: alert for alert in alerts(PLAIN)}
WORKER = 'namespace="moderation", job="moderation/fifa", instance="pod-0:8080"'


@pytest.fixture(scope="module")
def promtool() -> str:
    """The program, from PROMTOOL or the PATH."""
    found = os.environ.get("PROMTOOL") or shutil.which("promtool")
    if found is None:
        pytest.skip("needs promtool: apt-get download prometheus && dpkg -x prometheus_*.deb DIR, then PROMTOOL=DIR/usr/bin/promtool")
    return found


def run(*command: str, text: str | None = None) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", FILES, ids=str)
def test_committed_files_are_the_generated_ones(name: Path) -> None:
    assert (ROOT / name).read_text(encoding="utf-8") == FILES[name](), f"run: {monitoring.COMMAND}"


def panel_expressions() -> list[str]:
    return [target["expr"] for panels in rows().values() for panel in panels for target in panel["targets"]]


def test_every_series_that_is_read_is_one_of_ours_recorded_here_or_a_named_one_of_others() -> None:
    ours = {metric.name + suffix for metric in METRICS for suffix in (("_bucket", "_count", "_sum") if metric.kind == "histogram" else ("",))}
    known = ours | {recording.name for recording in recordings(PLAIN)} | set(EXTERNAL_METRICS)
    expressions = [*panel_expressions(), *(recording.expr for recording in recordings(PLAIN)), *(alert.expr for alert in alerts(PLAIN))]
    for expression in expressions:
        without_matchers = re.sub(r"\{[^}]*\}|\bby \([^)]*\)|\bon \([^)]*\)|\[[^\]]*\]", "", expression)
        names = {name for name in re.findall(r"[A-Za-z_:][A-Za-z0-9_:]*", without_matchers) if "_" in name or ":" in name}
        assert names - {"histogram_quantile", "avg_over_time"} <= known, expression


def test_alerts_and_panels_leave_no_metric_of_the_list_unseen() -> None:
    text = " ".join([*panel_expressions(), *(alert.expr for alert in alerts(PLAIN)), *(recording.expr for recording in recordings(PLAIN))])
    unseen = {metric.name for metric in METRICS if metric.name not in text}
    assert unseen == {"fifa_frame_seconds", "fifa_batch_seconds"}  # parts of what fifa_e2e_latency_seconds and fifa_stage_seconds show


def test_every_alert_has_its_section_in_the_runbook_and_no_other() -> None:
    text = (ROOT / monitoring.RUNBOOK).read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", text, flags=re.MULTILINE) == [PREFIX + name for name in ALERTS]
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        name = section.partition("\n")[0]
        used = set(re.findall(r"thresholds\.(\w+)", alerts(CHART)[list(ALERTS).index(name.removeprefix(PREFIX))].expr))
        assert used == set(re.findall(r"`(\w+)`", section)) & THRESHOLDS.keys(), f"{name} names other thresholds than its alert has"


def test_thresholds_are_used_and_given_as_values() -> None:
    used = {name for alert in alerts(CHART) for name in re.findall(r"prometheusRule\.thresholds\.(\w+)", alert.expr)}
    assert used == THRESHOLDS.keys()
    values = yaml.safe_load(monitoring.chart_values())["prometheusRule"]
    assert values["thresholds"] == {name: default for name, (default, _) in THRESHOLDS.items()}
    assert set(re.findall(r"\.Values\.([\w.]+)", monitoring.chart_rules())) == {f"prometheusRule.{key}" for key in values if key != "thresholds"} | {
        f"prometheusRule.thresholds.{name}" for name in THRESHOLDS
    }


def rendered(template: str) -> str:
    """What Helm makes of the template, for the few forms that it uses."""
    values = yaml.safe_load(monitoring.chart_values())["prometheusRule"]
    text = re.sub(r"^\{\{- /\*.*?\*/ -\}\}\n", "", template)
    for name, value in [*((f"thresholds.{name}", value) for name, value in values["thresholds"].items()), *values.items()]:
        text = text.replace(f"{{{{ .Values.prometheusRule.{name} }}}}", str(value))
    text = text.replace("{{ .Release.Namespace }}", "moderation").replace('{{ include "fifa.autoscalers" . }}', "fifa")
    return re.sub(r"\{\{`(.*?)`\}\}", r"\1", text)


def test_the_template_renders_to_the_same_alerts_within_one_namespace() -> None:
    chart, plain = yaml.safe_load(rendered(monitoring.chart_rules())), yaml.safe_load(monitoring.plain_rules())
    for of_chart, of_plain in zip(chart["groups"], plain["groups"], strict=True):
        for one, other in zip(of_chart["rules"], of_plain["rules"], strict=True):
            scope = r'(exported_)?namespace="moderation"(, )?|(horizontalpodautoscaler|scaledObject)=~"fifa"'
            without_scope = re.sub(scope, "", one["expr"]).replace("{ }", "").replace("{}", "")
            assert without_scope == other["expr"]
            assert {**one, "expr": ""} == {**other, "expr": ""}


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not taken & cells and max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in dashboard()["panels"]}) == len(dashboard()["panels"])


def test_prometheus_understands_rules_and_panels(promtool: str, tmp_path: Path) -> None:
    run(promtool, "check", "rules", "--lint-fatal", str(ROOT / monitoring.RULES_FILE))
    (tmp_path / "chart.yaml").write_text(rendered(monitoring.chart_rules()))
    run(promtool, "check", "rules", str(tmp_path / "chart.yaml"))
    replaced = [expression.replace("$__rate_interval", "5m").replace("$namespace", "x").replace("$job", "x") for expression in panel_expressions()]
    panels = [{"record": f"panel:{number}", "expr": expression} for number, expression in enumerate(replaced)]
    (tmp_path / "panels.yaml").write_text(json.dumps({"groups": [{"name": "panels", "rules": panels}]}))
    run(promtool, "check", "rules", "--lint=none", str(tmp_path / "panels.yaml"))


def test_prometheus_finds_nothing_to_say_of_our_metrics(promtool: str) -> None:
    meter = Meter()
    for metric in METRICS:
        labels = dict.fromkeys(metric.labels, "x")
        {"counter": meter.add, "gauge": meter.set, "histogram": meter.observe}[metric.kind](metric, 1, **labels)
    assert run(promtool, "check", "metrics", text=meter.exposition().decode()) == ""


Series = dict[str, str]
"""promtool's shorthand of values a minute apart, by selector."""


def counting(name: str, labels: str = "", *, step: float = 60, times: int = 120) -> Series:
    return {f"{name}{{{', '.join(filter(None, (WORKER, labels)))}}}": f"0+{step}x{times}"}


def steady(name: str, value: float, labels: str = "", *, times: int = 120) -> Series:
    return {f"{name}{{{', '.join(filter(None, (WORKER, labels)))}}}": f"{value}x{times}"}


HPA = 'namespace="moderation", horizontalpodautoscaler="keda-hpa-fifa"'
POLLING = {f"{LAST_POLL.name}{{{WORKER}}}": "0+60x120"}
ANSWERING = counting(VERDICTS_SENT.name, 'label="real"') | counting(DEAD_LETTERS_SENT.name, 'reason="empty_value"', step=0)
E2E = f"{E2E_SECONDS.name}_bucket"


def latencies(le: str) -> Series:
    """All answers fall at or below one bound."""
    bounds = [*map(str, E2E_SECONDS.buckets), "+Inf"]
    return {key: value for bound in bounds[bounds.index(le) :] for key, value in counting(E2E, f'le="{bound}"').items()}


CASES: dict[str, tuple[Series, Series, int]] = {
    "Stalled": (
        steady(LAG_RECORDS.name, 7, 'partition="0"')
        | counting(VERDICTS_SENT.name, 'label="real"', step=0)
        | counting(DEAD_LETTERS_SENT.name, step=0),
        steady(LAG_RECORDS.name, 7, 'partition="0"') | ANSWERING,
        15,
    ),
    "Down": ({}, POLLING, 6),
    "NotPolling": ({f"{LAST_POLL.name}{{{WORKER}}}": "0+60x10 600x60"}, POLLING, 15),
    "DeadLetters": (
        counting(VERDICTS_SENT.name, 'label="real"', step=0) | counting(DEAD_LETTERS_SENT.name, 'reason="empty_value"', step=1),
        counting(VERDICTS_SENT.name, 'label="real"', step=1000) | counting(DEAD_LETTERS_SENT.name, 'reason="empty_value"', step=9),
        25,
    ),
    "CommitFailures": (counting(COMMITS.name, 'outcome="refused"', step=1), counting(COMMITS.name, 'outcome="accepted"', step=60), 20),
    "GpuXid": (
        {'DCGM_FI_DEV_XID_ERRORS{gpu="0", Hostname="node", exported_namespace="moderation"}': "0x5 79x60"},
        {'DCGM_FI_DEV_XID_ERRORS{gpu="0", Hostname="node", exported_namespace="moderation"}': "0x60"},
        10,
    ),
    "LagGrowing": (
        counting(LAG_RECORDS.name, 'partition="0"', step=200),
        {f'{LAG_RECORDS.name}{{{WORKER}, partition="0"}}': "90000-60x120"},
        30,
    ),
    "LagSeconds": (steady(LAG_SECONDS.name, 61), steady(LAG_SECONDS.name, 59), 10),
    "LatencyHigh": (latencies("30.0"), latencies("5.0"), 25),
    "ScoreDrift": (steady(SCORE_PSI.name, 0.21), {f"{SCORE_PSI.name}{{{WORKER}}}": "0.5x30 0.05 0.5x40"}, 65),
    "EnginesDiffer": (
        steady(ENGINE_INFO.name, 1, 'manifest_sha256="a"') | steady(ENGINE_INFO.name, 1, 'manifest_sha256="b"'),
        steady(ENGINE_INFO.name, 1, 'manifest_sha256="a", version="1"') | steady(ENGINE_INFO.name, 1, 'manifest_sha256="a", version="2"'),
        35,
    ),
    "RebalanceStorm": (
        counting(REBALANCES.name, 'event="assigned"', step=0.5) | counting(REBALANCES.name, 'event="revoked"', step=0.5),
        counting(REBALANCES.name, 'event="assigned"', step=0.25) | counting(REBALANCES.name, 'event="revoked"', step=0.25),
        30,
    ),
    "Restarts": (counting(RESTARTS.name, step=0.2), counting(RESTARTS.name, step=0.05), 40),
    "BatchRetries": (counting(BATCH_RETRIES.name, step=1), counting(BATCH_RETRIES.name, step=0.5), 30),
    "Saturated": (
        steady(PAUSED.name, 1),
        {f"{PAUSED.name}{{{WORKER}}}": "1 1 1 0 1 1 1 0 1 1 1 0 1 1 1 0 1 1 1 0 1 1 1 0 1 1 1 0 1 1 1 0 1 1 1 0"},
        32,
    ),
    "Shedding": (
        counting(FRAMES_SHED.name, 'reason="too_old"', step=6) | counting(RECORDS_POLLED.name, step=100),
        counting(FRAMES_SHED.name, 'reason="too_old"', step=4) | counting(RECORDS_POLLED.name, step=100),
        25,
    ),
    "StartupSlow": (steady(ENGINE_LOAD_SECONDS.name, 301), steady(ENGINE_LOAD_SECONDS.name, 299), 1),
    "SpansNotExported": (counting(SPANS.name, 'outcome="failed"', step=1), counting(SPANS.name, 'outcome="exported"', step=60), 35),
    "StreamsUnreadable": (
        counting(STREAMS_FORGOTTEN.name, 'reason="unreadable"', step=1),
        counting(STREAMS_FORGOTTEN.name, 'reason="ended"', step=60),
        5,
    ),
    "AutoscalerAtMax": (
        {f"kube_horizontalpodautoscaler_status_desired_replicas{{{HPA}}}": "4x60", f"kube_horizontalpodautoscaler_spec_max_replicas{{{HPA}}}": "4x60"}
        | steady(LAG_RECORDS.name, 7, 'partition="0"'),
        {f"kube_horizontalpodautoscaler_status_desired_replicas{{{HPA}}}": "4x60", f"kube_horizontalpodautoscaler_spec_max_replicas{{{HPA}}}": "4x60"}
        | steady(LAG_RECORDS.name, 0, 'partition="0"'),
        35,
    ),
    "ScalerErrors": (
        {'keda_scaler_detail_errors_total{namespace="moderation", scaledObject="fifa"}': "0+1x60"},
        {'keda_scaler_detail_errors_total{namespace="moderation", scaledObject="fifa"}': "5x60"},
        25,
    ),
}
"""By alert: series under which it fires, series under which it never does, and the minute by which it has fired."""


ALWAYS = (
    POLLING
    | steady(LAG_SECONDS.name, 0)
    | steady(PAUSED.name, 0)
    | steady(ENGINE_INFO.name, 1, 'manifest_sha256="a"')
    | steady(ENGINE_LOAD_SECONDS.name, 2)
    | counting(COMMITS.name, 'outcome="refused"', step=0)
    | counting(DEAD_LETTERS_SENT.name, 'reason="empty_value"', step=0)
    | counting(FRAMES_SHED.name, 'reason="too_old"', step=0)
    | counting(REBALANCES.name, 'event="assigned"', step=0)
    | counting(RESTARTS.name, step=0)
    | counting(BATCH_RETRIES.name, step=0)
    | counting(SPANS.name, 'outcome="failed"', step=0)
)
HEALTHY: dict[str, Series] = {
    "idle": ALWAYS
    | steady(LAG_RECORDS.name, 0, 'partition="0"')
    | counting(VERDICTS_SENT.name, 'label="real"', step=0)
    | counting(RECORDS_POLLED.name, step=0),
    "busy": ALWAYS
    | steady(LAG_RECORDS.name, 30, 'partition="0"')
    | counting(VERDICTS_SENT.name, 'label="real"')
    | counting(RECORDS_POLLED.name)
    | latencies("1.0"),
}
"""Groups of which nothing is to be said."""


def test_every_alert_has_a_case() -> None:
    assert CASES.keys() == ALERTS.keys()


def minutes(name: str) -> int:
    """How long the condition must hold."""
    wait = ALERTS[name].wait
    return int(wait.rstrip("mh")) * (60 if wait.endswith("h") else 1)


Asked = tuple[str, str, int]
"""Alert, which of its series, minute."""


@pytest.fixture(scope="module")
def fired(promtool: str, tmp_path_factory: pytest.TempPathFactory) -> set[Asked]:
    """All alerts that fire: promtool is told to expect none, and says which it got."""
    folder = tmp_path_factory.mktemp("rules")
    (folder / "rules.yaml").write_text(monitoring.plain_rules())
    tests = [
        {
            "name": f"{name}/{which}",
            "interval": "1m",
            "input_series": [{"series": selector, "values": values} for selector, values in series.items()],
            "alert_rule_test": [
                {"eval_time": f"{at}m", "alertname": PREFIX + name, "exp_alerts": []} for at in sorted({minutes(name) - 1, minute, 60} - {-1})
            ],
        }
        for name, (wrong, right, minute) in CASES.items()
        for which, series in (("wrong", wrong), ("right", right))
    ]
    tests += [
        {
            "name": f"healthy/{which}",
            "interval": "1m",
            "input_series": [{"series": selector, "values": values} for selector, values in series.items()],
            "alert_rule_test": [{"eval_time": "90m", "alertname": PREFIX + name, "exp_alerts": []} for name in ALERTS],
        }
        for which, series in HEALTHY.items()
    ]
    (folder / "tests.yaml").write_text(json.dumps({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests}))
    done = subprocess.run([promtool, "test", "rules", str(folder / "tests.yaml")], capture_output=True, text=True, check=False)
    found: set[Asked] = set()
    case = ""
    for line in (done.stdout + done.stderr).splitlines():
        if match := re.search(r"name: (\w+/\w+),", line):
            case = match[1]
        elif match := re.search(r"alertname: (\w+), time: (?:(\d+)h)?(?:(\d+)m)?", line):
            found.add((match[1].removeprefix(PREFIX), case.partition("/")[2], 60 * int(match[2] or 0) + int(match[3] or 0)))
    return found


@pytest.mark.parametrize("name", CASES)
def test_an_alert_fires_when_it_should_and_only_then(name: str, fired: set[Asked]) -> None:
    _, _, minute = CASES[name]
    assert (name, "wrong", minute) in fired
    assert (name, "wrong", minutes(name) - 1) not in fired, "before its time"
    assert not {which for its, which, _ in fired if its == name} - {"wrong"}


def test_streams_that_are_unreadable_before_the_first_scrape_are_told_once(promtool: str, tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(monitoring.plain_rules())
    rules = yaml.safe_load(monitoring.plain_rules())
    (expr,) = (rule["expr"] for group in rules["groups"] for rule in group["rules"] if rule.get("alert") == "FifaStreamStreamsUnreadable")
    samples = [{"labels": '{namespace="moderation", job="moderation/fifa"}', "value": 3}]
    test = {
        "interval": "1m",
        "input_series": [{"series": key, "values": value} for key, value in steady(STREAMS_FORGOTTEN.name, 3, 'reason="unreadable"').items()],
        "promql_expr_test": [{"expr": expr, "eval_time": "2m", "exp_samples": samples}, {"expr": expr, "eval_time": "60m", "exp_samples": []}],
    }
    (tmp_path / "tests.yaml").write_text(json.dumps({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [test]}))
    run(promtool, "test", "rules", str(tmp_path / "tests.yaml"))

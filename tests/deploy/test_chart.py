"""The Helm chart as rendered: valid for three Kubernetes versions, consistent in itself, and what the worker really takes."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.helm import generate
from fifa_stream import monitoring
from tests.deploy import object_schemas, semantics
from tests.deploy.chart import (
    CHART,
    CI_FILES,
    KUBERNETES,
    PROFILES,
    Chart,
    Refused,
    Rendered,
    Values,
    defaults,
    load_yaml,
    merge,
    require_helm,
    values_of,
    with_value,
)

helm = require_helm()

PROFILE_EXTRAS: dict[str, Values] = {"values-gpu": {}, "values-keda": {}, "values-strimzi": {}}
SETS = {path.stem.removesuffix("-values"): values_of(path) for path in CI_FILES} | {path.stem: values_of(path) for path in PROFILES}
SETS["all profiles"] = merge(merge(SETS["values-gpu"], SETS["values-keda"]), SETS["values-strimzi"])
"""Values to render with, by name: those of ci/, the profiles that ship, and the profiles on top of each other."""


@pytest.fixture(scope="module")
def chart() -> Chart:
    return Chart()


@pytest.fixture(scope="module")
def rendered(chart: Chart) -> dict[str, Rendered]:
    return {name: chart.render(values) for name, values in SETS.items()}


def need_schemas() -> None:
    if object_schemas.schema_folder() is None:
        pytest.skip("needs kubernetes-validate (extra `chart`)")


@pytest.mark.parametrize("name", SETS)
def test_helm_finds_nothing_to_complain_of(name: str, chart: Chart) -> None:
    assert chart.lint(SETS[name]) == []


@pytest.mark.parametrize("version", KUBERNETES)
def test_every_object_is_what_kubernetes_reads(version: str, rendered: dict[str, Rendered]) -> None:
    need_schemas()
    assert {name: found for name, one in rendered.items() if (found := list(object_schemas.findings(one.objects, version)))} == {}


def test_the_oldest_kubernetes_of_the_chart_is_not_older_than_its_objects(rendered: dict[str, Rendered]) -> None:
    need_schemas()
    floor = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))["kubeVersion"]
    assert floor == f">={KUBERNETES[0]}.0-0"
    assert any("unhealthyPodEvictionPolicy" in found for found in object_schemas.findings(rendered["default"].objects, "1.25"))


def test_objects_of_operators_are_held_against_their_closed_schemas(rendered: dict[str, Rendered]) -> None:
    if object_schemas.crd_folder() is None:
        pytest.skip("needs FIFA_SHARED/crd-schemas: objects of KEDA, Strimzi and the Prometheus operator are not held against schemas")
    kinds = {item["kind"] for one in rendered.values() for item in one.objects if object_schemas.is_operators(item)}
    assert kinds == {"KafkaTopic", "KafkaUser", "PodMonitor", "PrometheusRule", "ScaledObject", "ServiceMonitor", "TriggerAuthentication"}


@pytest.mark.parametrize("name", SETS)
def test_objects_fit_each_other_and_the_worker(name: str, rendered: dict[str, Rendered]) -> None:
    assert semantics.findings(rendered[name]) == []


CHOICES: dict[str, list[Any]] = {
    "settings.kafka.bootstrap_servers": ["kafka.brokers.svc:9092", "kafka:9092"],
    "settings.kafka.security_protocol": ["PLAINTEXT", "SSL", "SASL_SSL", "SASL_PLAINTEXT"],
    "settings.kafka.sasl_mechanism": ["PLAIN", "SCRAM-SHA-256", "OAUTHBEARER"],
    "settings.kafka.processing_guarantee": ["at_least_once", "exactly_once"],
    "settings.kafka.transaction_timeout_ms": [2000, 10_000],
    "settings.kafka.verdicts_topic": ["fifa.verdicts", "fifa.frames"],
    "settings.kafka.transactional_id": [None, "mine"],
    "settings.kafka.state_topic": ["fifa.stream-state", "fifa.frames"],
    "settings.streams.memory": ["off", "volatile", "topic"],
    "settings.dead_letters.min_answers": [200, 1001],
    "settings.runtime.drain_timeout_s": [25.0, 35.5],
    "settings.claims.allowed": [[], ["s3://frames/"], ["https://frames.example:8443/"]],
    "secrets.sasl.existingSecret": ["", "sasl"],
    "secrets.tls.ca.existingSecret": ["", "ca"],
    "secrets.tls.client.existingSecret": ["", "client"],
    "replicaCount": [1, 4],
    "terminationGracePeriodSeconds": [45, 60],
    "engine.backend": ["onnxruntime", "tensorrt", "tensorrt-rtx"],
    "engine.precision": ["fp32", "fp16"],
    "engine.ensure.mode": ["auto", "init", "job", "none"],
    "engine.cache.type": ["emptyDir", "pvc", "hostPath"],
    "gpu.enabled": [False, True],
    "gpu.products": [[], ["NVIDIA-L4"], ["NVIDIA-L4", "NVIDIA-A10"]],
    "autoscaling.mode": ["none", "keda", "hpa", "external"],
    "autoscaling.minReplicas": [0, 1],
    "serviceMonitor.enabled": [False, True],
    "podMonitor.enabled": [False, True],
    "service.enabled": [True, False],
    "strimzi.topics.enabled": [False, True],
    "strimzi.user.enabled": [False, True],
    "networkPolicy.enabled": [True, False],
}


@settings(max_examples=40)
@given(data=st.data(), base=st.sampled_from(sorted(SETS)), changed=st.lists(st.sampled_from(sorted(CHOICES)), min_size=1, max_size=6, unique=True))
def test_whatever_is_not_refused_is_consistent(data: st.DataObject, base: str, changed: list[str]) -> None:
    """The worker never meets settings that it refuses, whatever values are put together: they are refused here, or they work."""
    values = SETS[base]
    for name in changed:
        values = with_value(values, name, data.draw(st.sampled_from(CHOICES[name]), label=name))
    try:
        one = _shared_chart().render(values)
    except Refused as refused:
        assert "these values do not go together" in str(refused)
        return
    assert semantics.findings(one) == []
    if object_schemas.schema_folder() is not None:
        assert list(object_schemas.findings(one.objects, KUBERNETES[1])) == []


def _shared_chart(cache: list[Chart] = []) -> Chart:  # noqa: B006 (hypothesis takes no fixture of the module's scope)
    if not cache:
        cache.append(Chart())
    return cache[0]


def test_generated_parts_are_current() -> None:
    stale = [str(path) for path, text in generate.generated().items() if path.read_text("utf-8") != text]
    assert stale == [], f"run: {generate.COMMAND}"


def test_what_the_alerts_read_has_the_defaults_of_the_alerts() -> None:
    (wanted,) = load_yaml(monitoring.chart_values())
    assert merge(defaults(), wanted) == defaults()


# Roll-outs


def pod_template(one: Rendered) -> Any:
    return one.one("Deployment")["spec"]["template"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("settings.batch.max_frames", 17),
        ("settings.kafka.group_id", "another"),
        ("settings.telemetry.log_level", "DEBUG"),
    ],
)
def test_another_setting_rolls_the_pods(name: str, value: Any, chart: Chart, rendered: dict[str, Rendered]) -> None:
    before, after = (
        pod_template(one)["metadata"]["annotations"]["checksum/settings"] for one in (rendered["default"], chart.render(with_value({}, name, value)))
    )
    assert before != after


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("replicaCount", 4),
        ("autoscaling.maxReplicas", 9),
        ("podDisruptionBudget.maxUnavailable", 2),
        ("networkPolicy.dnsPorts", [5353]),
        ("serviceMonitor.enabled", True),
        ("prometheusRule.enabled", True),
    ],
)
def test_what_is_around_the_pods_does_not_roll_them(name: str, value: Any, chart: Chart, rendered: dict[str, Rendered]) -> None:
    assert pod_template(chart.render(with_value({}, name, value))) == pod_template(rendered["default"])


def test_turning_keda_on_and_off_rolls_nothing(chart: Chart) -> None:
    base = merge(SETS["gpu-keda"], {"autoscaling": {"mode": "external"}})
    assert pod_template(chart.render(base)) == pod_template(chart.render(SETS["gpu-keda"]))


def test_selectors_never_change(rendered: dict[str, Rendered]) -> None:
    """A Deployment's selector is immutable: this very set of labels is part of what a release is."""
    found = rendered["default"].one("Deployment")["spec"]["selector"]["matchLabels"]
    assert found == {"app.kubernetes.io/name": "fifa-stream", "app.kubernetes.io/instance": "prod", "app.kubernetes.io/component": "worker"}


@pytest.mark.parametrize("number", ["123", "1.10", "0x1f"])
def test_names_that_look_like_numbers_stay_names(number: str, chart: Chart) -> None:
    """A release by the number of a pull request, a topic by a version: an object with a number for a name is refused, and 1.10 would be topic 1.1."""
    names = {
        "frames_topic": number,
        "verdicts_topic": f"{number}1",
        "dead_letters_topic": f"{number}2",
        "shadow_topic": f"{number}3",
        "state_topic": f"{number}4",
    }
    topics = merge(SETS["cpu-hpa"], {"settings": {"kafka": names, "streams": {"memory": "topic"}}})
    strimzi = {"cluster": "main", "topics": {"enabled": True}, "user": {"enabled": True, "authentication": "scram-sha-512"}}
    user = {"security_protocol": "SASL_SSL", "sasl_mechanism": "SCRAM-SHA-512", "sasl_username": "worker"}
    secrets = {"sasl": {"existingSecret": "worker"}}
    values = merge(topics, {"strimzi": strimzi, "settings": {"kafka": user}, "secrets": secrets, "podMonitor": {"enabled": True}})
    one = chart.render(merge(values, {"strimzi": {"user": {"name": "worker"}}}), release=number.replace("x", "").replace(".", ""))
    labels = [item["metadata"]["labels"]["app.kubernetes.io/instance"] for item in one.objects]
    found = {topic["spec"]["topicName"] for topic in one.of("KafkaTopic")}
    granted = {acl["resource"]["name"] for acl in one.one("KafkaUser")["spec"]["authorization"]["acls"] if acl["resource"]["type"] == "topic"}
    assert all(isinstance(label, str) for label in labels)
    assert found == granted == set(names.values())


def names_of_jobs(chart: Chart, values: Values) -> set[str]:
    return {job["metadata"]["name"] for job in chart.render(values).of("Job")}


def test_a_job_is_another_when_what_it_builds_is_another_and_the_same_otherwise(chart: Chart, tmp_path: Path) -> None:
    values = SETS["gpu-job"]
    names = names_of_jobs(chart, values)
    assert len(names) == len(values["gpu"]["products"])
    for name, value in (
        ("image.tag", "9.9.9"),
        ("engine.precision", "fp16"),
        ("settings.engine.pinned_digest", "1" * 64),
        ("resources.limits.memory", "3Gi"),
    ):
        assert not names & names_of_jobs(chart, with_value(values, name, value)), name
    for name, value in (("settings.batch.max_frames", 3), ("commonLabels", {"a": "b"}), ("podLabels", {"a": "b"}), ("autoscaling.mode", "none")):
        assert names == names_of_jobs(chart, with_value(values, name, value)), name
    later = Path(shutil.copytree(CHART, tmp_path / "later"))
    (later / "Chart.yaml").write_text((CHART / "Chart.yaml").read_text("utf-8").replace("\nversion: ", "\nversion: 9"), "utf-8")
    assert names_of_jobs(Chart(later), values) == names, "a new chart that renders the same Job renders the same name"


def test_a_job_that_needs_no_gpu_takes_none_and_is_one_for_all_products(chart: Chart) -> None:
    """Workers hold their GPUs while they wait: a Job that asked for one more without need could wait for ever."""
    values = merge(SETS["gpu-job"], {"engine": {"backend": "tensorrt-rtx", "ensure": {"timingCache": False}}})
    one = chart.render(values)
    assert semantics.findings(one) == []
    spec = one.one("Job")["spec"]["template"]["spec"]
    assert not any("/" in name for name in spec["containers"][0]["resources"]["limits"]) and "affinity" not in spec


def test_nothing_that_is_secret_can_be_written_into_values(chart: Chart) -> None:
    for name in ("kafka.sasl_password", "kafka.ssl_password", "kafka.sasl_oauth_client_secret", "claims.s3_secret_access_key"):
        with pytest.raises(Refused, match=r"additional properties '.*' not allowed"):
            chart.render(with_value({}, f"settings.{name}", "hunter2"))


def test_long_names_leave_room_for_what_is_put_around_them(chart: Chart) -> None:
    long = chart.render(merge(SETS["gpu-job"], {"fullnameOverride": "n" * 80}))
    assert semantics.findings(long) == []
    assert (
        semantics.findings(chart.render(merge(SETS["gpu-keda"], {"fullnameOverride": "n" * 80, "settings": {"kafka": {"sasl_username": "n" * 44}}})))
        == []
    )


def test_keda_begins_where_the_worker_does() -> None:
    """The trigger says `earliest`; the consumer must not say anything else."""
    source = (CHART.parents[2] / "fifa_stream" / "consume.py").read_text("utf-8")
    assert 'auto_offset_reset="earliest"' in source


# Notes, install, package


def test_notes_name_the_commands_and_what_the_cluster_lacks(chart: Chart) -> None:
    told = chart.render(SETS["gpu-keda"], api_versions=()).notes
    for words in (
        "rollout status deployment/prod-fifa-stream",
        "helm --namespace moderation test prod",
        "does not know keda.sh/v1alpha1",
        "kafka.strimzi.io/v1 (strimzi)",
    ):
        assert words in told
    quiet = chart.render(SETS["gpu-keda"]).notes
    assert "does not know" not in quiet and "PLAINTEXT" not in quiet
    assert "PLAINTEXT" in chart.render({}).notes


def test_an_install_that_is_only_tried_gives_the_objects_in_order_and_leaves_tests_out() -> None:
    with helm.Chart.load(CHART) as loaded:
        release = helm.Config(storage_driver="memory", namespace="moderation").install(loaded, "prod", SETS["default"], dry_run="client")
    kinds = [document["kind"] for document in yaml.safe_load_all(release["manifest"]) if document]
    assert kinds == ["NetworkPolicy", "PodDisruptionBudget", "ServiceAccount", "ConfigMap", "Service", "Deployment"]


def test_a_parent_chart_may_turn_it_on_and_off(tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    shutil.copytree(CHART, parent / "charts" / "fifa-stream")
    about = {"apiVersion": "v2", "name": "parent", "version": "1.0.0"}
    about["dependencies"] = [{"name": "fifa-stream", "version": "0.1.0", "condition": "fifa-stream.enabled"}]  # type: ignore[assignment]
    (parent / "Chart.yaml").write_text(yaml.safe_dump(about))
    with helm.Chart.load(parent) as loaded:
        for enabled in (True, False):
            texts = loaded.render({"global": {"anything": 1}, "fifa-stream": {"enabled": enabled}}, name="prod", namespace="moderation")
            assert any("kind: Deployment" in text for text in texts.values()) == enabled


def test_packages_of_two_checkouts_are_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deploy.helm.package import package

    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    first = package(tmp_path / "one")
    other = Path(shutil.copytree(CHART, tmp_path / "elsewhere" / "fifa-stream"))
    for path in other.rglob("*"):
        os.utime(path, (1, 1))
    (other / "values.yaml").chmod(0o600)
    assert package(tmp_path / "two", chart=other).read_bytes() == first.read_bytes()
    with helm.Chart.load(first) as loaded:
        names = {file["name"] for file in loaded.files} | {file["name"] for file in loaded.templates}
        assert not any(name.startswith("ci/") for name in names) and {"README.md", "values-gpu.yaml", "rules/alerts.yaml"} <= names
        assert loaded.render({}, name="prod", namespace="moderation")


def test_promtool_takes_the_rendered_rules(chart: Chart, tmp_path: Path) -> None:
    promtool = os.environ.get("PROMTOOL") or shutil.which("promtool")
    if not promtool:
        pytest.skip("needs promtool (Debian's package prometheus) by PROMTOOL or PATH")
    rules = chart.render({"prometheusRule": {"enabled": True, "thresholds": {"lagRecords": 12_345_678}}}).one("PrometheusRule")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": rules["spec"]["groups"]}))
    done = subprocess.run([promtool, "check", "rules", tmp_path / "rules.yaml"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_alerts_of_autoscaling_speak_of_the_releases_own_autoscaler(chart: Chart) -> None:
    """A namespace holds other applications, whose autoscalers may stand at their maximum for reasons of their own."""
    for mode, name in (("hpa", "(keda-hpa-)?prod-fifa-stream"), ("external", ".+")):
        values = merge(SETS["default"], {"autoscaling": {"mode": mode}, "prometheusRule": {"enabled": True}})
        groups = chart.render(values).one("PrometheusRule")["spec"]["groups"]
        rules = {rule.get("alert"): rule["expr"] for group in groups for rule in group["rules"]}
        assert rules["FifaStreamAutoscalerAtMax"].count(f'horizontalpodautoscaler=~"{name}"') == 2
        assert f'scaledObject=~"{name}"' in rules["FifaStreamScalerErrors"]


def test_a_policy_without_ports_of_name_servers_opens_none(chart: Chart) -> None:
    """A rule whose list of ports is empty lets out everything, to everywhere."""
    egress = chart.render({"networkPolicy": {"dnsPorts": []}}).one("NetworkPolicy")["spec"]["egress"]
    assert egress == [{"ports": [{"protocol": "TCP", "port": 9092}]}]


def test_keda_may_be_told_brokers_by_address_of_ipv6(chart: Chart) -> None:
    brokers = {"autoscaling": {"mode": "keda"}, "settings": {"kafka": {"bootstrap_servers": "[fd00::1]:9092, [fd00::2]:9092"}}}
    (trigger,) = chart.render(brokers).one("ScaledObject")["spec"]["triggers"]
    assert trigger["metadata"]["bootstrapServers"] == "[fd00::1]:9092,[fd00::2]:9092"

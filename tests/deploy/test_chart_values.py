"""The values of the chart: each does something, wrong ones are refused by name, and `settings` is the tree of fifa_stream.config key by key."""

import functools
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr, TypeAdapter, ValidationError

from deploy.helm.generate import chart_defaults, leaves, lookup, params
from fifa_stream.config import Settings
from tests.deploy import semantics
from tests.deploy.chart import CHART, CI_FILES, Chart, Refused, Values, defaults, merge, require_helm, values_of, with_value

require_helm()

SCHEMA = json.loads((CHART / "values.schema.json").read_text("utf-8"))


@functools.cache
def loaded_chart() -> Chart:
    return Chart()


@pytest.fixture(scope="module")
def guarded_chart(tmp_path_factory: pytest.TempPathFactory) -> Chart:
    """Without its schema, which takes half the time and would only say that these tests choose wrong types."""
    copy = Path(shutil.copytree(CHART, tmp_path_factory.mktemp("chart") / "fifa-stream"))
    (copy / "values.schema.json").unlink()
    return Chart(copy)


# Perturbation: every value changes what is rendered, or is refused.

SAMPLES = ("x{}", "x{}.example:9", "https://x{}.example", "x{}.example/y", "{}Mi", "{}s", "9.9.{}", "sha256:" + "{:0>64}", "{:0>64}")
"""Strings with a number in them; which one a pattern takes is tried."""


@dataclass(frozen=True, slots=True)
class Change:
    """Other values for one leaf. One with a mark shows itself wherever it is rendered; without, any difference counts."""

    name: str
    values: tuple[Any, ...]
    mark: str | None = None


def node_of(name: str) -> Mapping[str, Any]:
    """The schema of a value; {} below an open object."""
    node: Mapping[str, Any] = SCHEMA
    for key in name.split("."):
        node = node.get("properties", {}).get(key, {})
    return node


def change(name: str, old: Any, number: int) -> Change:
    """Something else of the right type. `number` is unique, so that many values can be changed in one rendering and told apart."""
    node = node_of(name)
    branches = [node, *node.get("anyOf", ())]
    kinds = {kind for branch in branches for kind in ([branch["type"]] if isinstance(branch.get("type"), str) else branch.get("type", []))}
    enum = next((branch["enum"] for branch in branches if "enum" in branch), None)
    if isinstance(old, bool) or "boolean" in kinds:
        return Change(name, (not old,))
    if enum:
        return Change(name, tuple(one for one in enum if one not in (old, None)))
    if isinstance(old, int | float) or kinds & {"integer", "number"}:
        bounds = next(branch for branch in branches if not kinds or branch.get("type") != "string")
        if bounds.get("minimum", 0) <= number <= bounds.get("maximum", number) and number < bounds.get("exclusiveMaximum", number + 1):
            return Change(name, (number,), rf"(?<![\w.]){number}(?![\w.])")
        return Change(name, tuple(one for one in (bounds.get("maximum"), bounds.get("minimum"), 0.25) if one not in (old, None)))
    if isinstance(old, str) or "string" in kinds:
        pattern = next((branch["pattern"] for branch in branches if "pattern" in branch), "")
        samples = ("x{}.example:9092",) if name.endswith("bootstrap_servers") else SAMPLES
        text = next(text for text in (sample.format(number) for sample in samples) if re.search(pattern, text))
        return Change(name, (text,), re.escape(text))
    if isinstance(old, list):
        item = node.get("items", {"type": "string"}).get("type")
        made: Any = {"object": {"name": f"x{number}"}, "string": f"x{number}", "integer": number, "number": number}[item]
        return Change(name, ([made],), rf"(?<!\w)x?{number}(?!\w)")
    return Change(name, ({**(old or {}), f"x{number}": "yes"},), f"x{number}")


def only_if(value: str, *wanted: Any) -> Callable[[Values], bool]:
    return lambda values: lookup(values, value) in wanted


def named(value: str) -> Callable[[Values], bool]:
    return lambda values: bool(lookup(values, value))


def ensured(values: Values) -> bool:
    mode, engine = values["engine"]["ensure"]["mode"], values["engine"]
    return mode in ("init", "job") or (mode == "auto" and (engine["backend"], engine["precision"]) != ("onnxruntime", "fp32"))


def made_claim(values: Values) -> bool:
    return ensured(values) and lookup(values, "engine.cache.type") == "pvc" and not lookup(values, "engine.cache.pvc.existingClaim")


ACTIVE: list[tuple[str, Callable[[Values], bool]]] = [
    ("replicaCount", only_if("autoscaling.mode", "none")),
    ("image.tag", only_if("image.digest", "")),
    ("engine.ensure.timeoutSeconds", ensured),
    ("engine.ensure.acceptancePath", ensured),
    ("engine.ensure.resources", ensured),
    ("engine.ensure.job.", only_if("engine.ensure.mode", "job")),
    ("engine.cache.", ensured),
    ("engine.cache.sizeLimit", only_if("engine.cache.type", "emptyDir")),
    ("engine.cache.hostPath", only_if("engine.cache.type", "hostPath")),
    ("engine.cache.pvc.", only_if("engine.cache.type", "pvc")),
    ("engine.cache.pvc.storageClass", made_claim),
    ("engine.cache.pvc.accessModes", made_claim),
    ("engine.cache.pvc.size", made_claim),
    ("engine.cache.pvc.keep", made_claim),
    ("gpu.resourceName", only_if("gpu.enabled", True)),
    ("gpu.count", only_if("gpu.enabled", True)),
    ("gpu.products", only_if("gpu.enabled", True)),
    ("gpu.productLabel", lambda values: values["gpu"]["enabled"] and bool(values["gpu"]["products"])),
    ("gpu.runtimeClassName", only_if("gpu.enabled", True)),
    ("gpu.tolerations", only_if("gpu.enabled", True)),
    ("secrets.sasl.passwordKey", named("secrets.sasl.existingSecret")),
    ("secrets.oauth.clientSecretKey", named("secrets.oauth.existingSecret")),
    ("secrets.oauth.projectedToken.audience", only_if("secrets.oauth.projectedToken.enabled", True)),
    ("secrets.oauth.projectedToken.expirationSeconds", only_if("secrets.oauth.projectedToken.enabled", True)),
    ("secrets.tls.ca.key", named("secrets.tls.ca.existingSecret")),
    *((f"secrets.tls.client.{key}", named("secrets.tls.client.existingSecret"))
      for key in ("certKey", "keyKey", "passphraseKey")),
    *((f"secrets.s3.{key}", named("secrets.s3.existingSecret")) for key in ("accessKeyIdKey", "secretAccessKeyKey")),
    *((f"autoscaling.{name}", only_if("autoscaling.mode", "keda", "hpa")) for name in ("minReplicas", "maxReplicas", "behavior.")),
    ("autoscaling.hpa.", only_if("autoscaling.mode", "hpa")),
    ("autoscaling.keda.", only_if("autoscaling.mode", "keda")),
    *((f"autoscaling.keda.fallback.{name}", only_if("autoscaling.keda.fallback.enabled", True))
      for name in ("failureThreshold", "replicas", "behavior")),
    *((f"podDisruptionBudget.m{name}", only_if("podDisruptionBudget.enabled", True)) for name in ("axUnavailable", "inAvailable")),
    *((f"topologySpread.{name}", only_if("topologySpread.enabled", True)) for name in ("topologyKeys", "maxSkew", "whenUnsatisfiable")),
    ("serviceAccount.annotations", only_if("serviceAccount.create", True)),
    ("service.annotations", only_if("service.enabled", True)),
    *((f"networkPolicy.{name}", only_if("networkPolicy.enabled", True)) 
      for name in ("from", "dnsPorts", "kafkaPorts", "kafkaTo", "extraEgress")),
    *((f"{kind}Monitor.{name}", only_if(f"{kind}Monitor.enabled", True)) 
      for kind in ("service", "pod") for name in ("interval", "scrapeTimeout", "labels", "relabelings", "metricRelabelings")),
    *((f"prometheusRule.{name}", only_if("prometheusRule.enabled", True)) for name in ("labels", "runbookUrl", "dcgmNamespaceLabel", "thresholds.")),
    *((f"dashboards.{name}", only_if("dashboards.enabled", True)) for name in ("namespace", "labels", "annotations")),
    *((f"strimzi.{name}", lambda values: named("strimzi.topics.enabled")(values) or named("strimzi.user.enabled")(values))
      for name in ("apiVersion", "cluster", "namespace")),
    *((f"strimzi.topics.{name}", only_if("strimzi.topics.enabled", True)) for name in ("keep", "frames.", "verdicts.", "deadLetters.", "state.")),
    ("strimzi.topics.state.", only_if("settings.streams.memory", "topic")),
    *((f"strimzi.user.{name}", only_if("strimzi.user.enabled", True)) for name in ("name", "authentication", "quotas")),
]  # fmt: skip
"""When a value does something: every matching line must say so. A value that matches none always does."""


def is_active(name: str, values: Values) -> bool:
    return all(when(values) for prefix, when in ACTIVE if name.startswith(prefix))


def rendered_or_refused(chart: Chart, overrides: Values, changes: Sequence[Change], value: int = 0) -> str | Refused:
    """All texts with these changes."""
    for one in changes:
        overrides = with_value(overrides, one.name, one.values[value])
    try:
        return "\n".join(text for _, text in sorted(chart.render(overrides).texts.items()))
    except Refused as refused:
        return refused


def has_effect(chart: Chart, overrides: Values, change: Change, before: str) -> bool:
    """Whether any other value of one leaf is refused or renders something else."""
    return any(rendered_or_refused(chart, overrides, [change], value) != before for value in range(len(change.values)))


def without_effect(chart: Chart, overrides: Values, changes: Sequence[Change], before: str) -> set[str]:
    """Names whose change shows nowhere. All are changed at once, which marks allow; where that is refused, those that the refusal names are tried by
    themselves and the others together, or in halves."""
    if len(changes) <= 1:
        return {one.name for one in changes if not has_effect(chart, overrides, one, before)}
    after = rendered_or_refused(chart, overrides, changes)
    if isinstance(after, Refused):
        words = set(re.findall(r"\w+", str(after)))
        parts = [[one] for one in changes if one.name.rpartition(".")[2] in words]
        rest = [one for one in changes if [one] not in parts]
        parts += [rest] if parts else [rest[: len(rest) // 2], rest[len(rest) // 2 :]]
        return set().union(*(without_effect(chart, overrides, part, before) for part in parts))
    if after == before:
        return {one.name for one in changes}
    doubtful = [one for one in changes if one.mark is None or not re.search(one.mark, after)]
    return {one.name for one in doubtful if not has_effect(chart, overrides, one, before)}


@pytest.mark.parametrize("path", CI_FILES, ids=lambda path: path.stem.removesuffix("-values"))
def test_every_value_changes_what_is_rendered_or_is_refused(path: Path, guarded_chart: Chart) -> None:
    overrides = values_of(path)
    merged = merge(defaults(), overrides)
    before = rendered_or_refused(guarded_chart, overrides, [])
    assert isinstance(before, str)
    changes = [change(name, value, 7001 + number) for number, (name, value) in enumerate(leaves(merged))]
    active = [one for one in changes if is_active(one.name, merged)]
    idle = [one for one in changes if one not in active]
    dead = without_effect(guarded_chart, overrides, [one for one in active if one.mark], before)
    dead |= {one.name for one in active if not one.mark and not has_effect(guarded_chart, overrides, one, before)}
    assert dead == set(), "values that do nothing"
    working = {one.name for one in idle} - without_effect(guarded_chart, overrides, idle, before)
    assert {one.name for one in idle if one.name in working and not is_refused(guarded_chart, overrides, one)} == set(), (
        "values that work where they should not"
    )


def is_refused(chart: Chart, overrides: Values, change: Change) -> bool:
    return any(isinstance(rendered_or_refused(chart, overrides, [change], value), Refused) for value in range(len(change.values)))


# Negative: what does not go together is refused, by name and with what to do.

EXACTLY_ONCE = {"settings": {"kafka": {"processing_guarantee": "exactly_once"}}}
TLS = {"settings": {"kafka": {"security_protocol": "SSL"}}}
TLS_CA = merge(TLS, {"secrets": {"tls": {"ca": {"existingSecret": "ca"}}}})
SCRAM = {
    "settings": {"kafka": {"security_protocol": "SASL_SSL", "sasl_mechanism": "SCRAM-SHA-512", "sasl_username": "who"}},
    "secrets": {"sasl": {"existingSecret": "sasl"}},
}
GPU = {"gpu": {"enabled": True}, "engine": {"backend": "tensorrt"}}
KEDA = {"autoscaling": {"mode": "keda"}, "settings": {"kafka": {"bootstrap_servers": "kafka.brokers.svc:9092"}}}
HPA = {"autoscaling": {"mode": "hpa"}}
JOB = merge(GPU, {"engine": {"ensure": {"mode": "job"}, "cache": {"type": "pvc"}}})
OAUTH = {
    "settings": {
        "kafka": {
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": "OAUTHBEARER",
            "sasl_oauth_token_url": "https://issuer.example/",
            "sasl_oauth_client_id": "who",
        }
    },
    "secrets": {"oauth": {"existingSecret": "issuer"}},
}
STRIMZI = {"strimzi": {"cluster": "kafka", "topics": {"enabled": True}}}
USER = merge(TLS, {"strimzi": {"cluster": "kafka", "user": {"enabled": True}}})
SCRAM_USER = merge(SCRAM, {"strimzi": {"cluster": "kafka", "user": {"enabled": True, "name": "who", "authentication": "scram-sha-512"}}})

REFUSED: list[tuple[Values, str, Any, str]] = [
    # what the worker would refuse at its start
    ({}, "settings.kafka.verdicts_topic", "fifa.frames", "give different topics"),
    ({"settings": {"streams": {"memory": "topic"}}}, "settings.kafka.state_topic", "fifa.verdicts", "must be a topic of its own"),
    ({"settings": {"streams": {"memory": "topic"}}}, "settings.kafka.max_request_bytes", 16384, "max_tracks 16 may need 41952 bytes"),
    (EXACTLY_ONCE, "settings.kafka.transaction_timeout_ms", 2000, "twice commit_interval_ms 1000"),
    ({}, "settings.dead_letters.min_answers", 1001, "above window 1000"),
    ({}, "settings.kafka.bootstrap_servers", "kafka", 'kafka" is not HOST:PORT'),
    ({}, "settings.kafka.bootstrap_servers", "kafka:9092,localhost:9092", '"localhost:9092" is the pod itself'),
    ({}, "settings.kafka.security_protocol", "SASL_SSL", "needs sasl_mechanism, sasl_username and secrets.sasl.existingSecret"),
    (SCRAM, "secrets.sasl.existingSecret", "", "SASL_SSL needs sasl_mechanism"),
    (SCRAM, "settings.kafka.sasl_mechanism", "OAUTHBEARER", "needs one source of tokens"),
    (OAUTH, "settings.kafka.sasl_oauth_client_id", None, "needs sasl_oauth_client_id and secrets.oauth"),
    (OAUTH, "settings.kafka.sasl_oauth_token_url", "http://issuer.example/", "must be https"),
    (OAUTH, "secrets.oauth.projectedToken.enabled", True, "needs one source of tokens"),
    (TLS, "settings.kafka.ssl_certfile", "/certs/tls.crt", "ssl_certfile needs ssl_keyfile"),
    ({}, "settings.engine.roll_out", "shadow", "needs settings.engine.candidate"),
    ({}, "settings.telemetry.score_baseline", [0.5, 0.6], "[0.5,0.6] must be at least two shares of 0 or more that sum to 1"),
    ({}, "settings.telemetry.otlp_endpoint", "http://collector:65536", "port 65536, in a setting that holds an address, is none"),
    # pods
    ({}, "settings.runtime.health_port", 0, "turns the probes off"),
    ({}, "settings.runtime.health_port", 80, "give a port above 1023"),
    ({}, "settings.runtime.health_host", "127.0.0.1", "is not reached by the kubelet"),
    ({"replicaCount": 2}, "settings.kafka.transactional_id", "mine", "would be the name of every pod"),
    (HPA, "settings.kafka.group_instance_id", "mine", "would be the name of every pod"),
    ({}, "terminationGracePeriodSeconds", 34, "drain_timeout_s, 10 s to leave the group and the preStop hook take 35; raise it"),
    ({}, "settings.runtime.drain_timeout_s", 35.5, "terminationGracePeriodSeconds 45 kills a worker that still drains"),
    ({}, "lifecycle", {"preStop": {"sleep": {"seconds": 11}}}, "the preStop hook take 46"),
    ({}, "probes.startup.failureThreshold", 2, "would kill the worker before it says what is wrong"),
    ({}, "probes.liveness.timeoutSeconds", 11, "probes.liveness.timeoutSeconds 11 is above periodSeconds 10"),
    ({}, "progressDeadlineSeconds", 305, "fails a roll-out that only takes its time: engine, startup probe and minReadySeconds may take 305 s"),
    (GPU, "progressDeadlineSeconds", 2000, "may take 2105 s"),
    ({}, "updateStrategy.maxUnavailable", "0%", "no roll-out could begin"),
    ({}, "podDisruptionBudget.minAvailable", 1, "give one of maxUnavailable and minAvailable"),
    ({}, "podDisruptionBudget.maxUnavailable", None, "give one of maxUnavailable and minAvailable"),
    ({}, "resources.limits.memory", None, "resources.limits.memory is not set"),
    ({}, "resources.limits.cpu", "1500m", None),
    ({}, "resources.limits.cpu", "1", "settings.engine.threads 2 (0: as many as the node has cores) and resources.limits.cpu 1"),
    ({"settings": {"engine": {"threads": 0}}}, "resources.limits.cpu", 4, "set threads to at most 4"),
    # image and engine
    ({}, "image.tag", "latest", "image.tag latest is another image tomorrow"),
    ({}, "engine.backend", "tensorrt", "engine.backend tensorrt needs a GPU"),
    ({}, "gpu.enabled", True, "would hold a GPU that nothing uses"),
    (GPU, "engine.ensure.mode", "none", "the engine in the package is no plan"),
    ({"engine": {"precision": "fp16"}}, "engine.ensure.mode", "none", "nothing is built, and the engine in the package is fp32"),
    ({}, "engine.source.path", "/srv/bundle", "pinned_digest is that of the engine in the package"),
    ({}, "settings.engine.folder", "/srv/bundle", "is what engine.source.path and engine.ensure set"),
    ({}, "engine.ensure.optLevel", 0, "are for plans"),
    (GPU, "engine.ensure.computeCapabilities", ["8.9"], "is for tensorrt-rtx"),
    (merge(GPU, {"engine": {"backend": "tensorrt-rtx"}}), "engine.ensure.timingCache", True, "engine.ensure.timingCache is for tensorrt"),
    (GPU, "engine.precision", "int8", "give engine.ensure.acceptancePath"),
    (merge(GPU, {"engine": {"precision": "bf16"}}), "engine.ensure.acceptancePath", "/pack", "a builder cannot run bf16 to judge it"),
    ({}, "engine.precision", "bf16", "is not what ONNX Runtime computes on a CPU"),
    (JOB, "engine.cache.type", "emptyDir", "what the Job builds must be where the worker finds it"),
    (JOB, "engine.cache.pvc.accessModes", ["ReadWriteOnce"], "add ReadWriteMany"),
    # secrets
    (TLS_CA, "settings.kafka.ssl_cafile", "/ca.crt", "secrets.tls.ca.existingSecret are both set"),
    (SCRAM, "settings.kafka.sasl_password_file", "/password", "settings.kafka.sasl_password_file and secrets.sasl.existingSecret are both set"),
    ({}, "secrets.tls.ca.existingSecret", "ca", "is not used with settings.kafka.security_protocol PLAINTEXT"),
    (TLS, "secrets.sasl.existingSecret", "sasl", "set one with SASL in it"),
    ({}, "settings.claims.s3_access_key_id", "AKIA", "use secrets.s3.existingSecret for both"),
    ({"secrets": {"s3": {"existingSecret": "s3"}}}, "settings.claims.s3_access_key_id", "AKIA", "are both set"),
    # autoscaling
    (HPA, "autoscaling.minReplicas", 7, "is above maxReplicas 6"),
    (HPA, "autoscaling.minReplicas", 0, "needs autoscaling.mode keda"),
    (HPA, "autoscaling.hpa.metrics", [], "autoscaling.hpa.metrics is empty"),
    (KEDA, "autoscaling.keda.fallback.replicas", 7, "fallback.replicas 7 is above maxReplicas 6"),
    (merge(KEDA, {"autoscaling": {"keda": {"allowIdleConsumers": True}}}), "autoscaling.keda.limitToPartitionsWithLag", True, "exclude each other"),
    ({}, "autoscaling.mode", "keda", 'KEDA looks "kafka:9092" up from its own namespace'),
    (merge(KEDA, {"autoscaling": {"mode": "none"}} | OAUTH), "autoscaling.mode", "keda", "give autoscaling.keda.existingTriggerAuthentication"),
    # monitoring, tests, Strimzi
    ({"podMonitor": {"enabled": True}}, "serviceMonitor.enabled", True, "every pod would be scraped twice"),
    ({"serviceMonitor": {"enabled": True}, "tests": {"enabled": False}}, "service.enabled", False, "serviceMonitor.enabled needs service.enabled"),
    ({}, "service.enabled", False, "tests.enabled needs service.enabled"),
    (STRIMZI, "strimzi.cluster", "", "need strimzi.cluster"),
    (STRIMZI, "replicaCount", 13, "with 13 pods some would have nothing to do"),
    (STRIMZI, "strimzi.topics.frames.replicas", 1, "strimzi.topics.frames: min.insync.replicas 2 is above replicas 1"),
    (USER, "strimzi.user.authentication", "scram-sha-512", "does not go with settings.kafka.security_protocol SSL"),
    (SCRAM_USER, "strimzi.user.name", "", "must be the name of the KafkaUser, prod-fifa-stream"),
    # types, by the schema
    ({}, "replicaCount", "two", "got string, want integer"),
    ({}, "replicas", 3, "additional properties 'replicas' not allowed"),
    ({}, "settings.kafka.group", "x", "additional properties 'group' not allowed"),
    ({}, "settings.kafka.group_id", None, "missing property 'group_id'"),
    ({}, "settings.kafka.compression", "zip", "value must be one of 'none', 'gzip'"),
    ({}, "settings.limits.max_side", 63, "minimum: got 63, want 64"),
    ({}, "autoscaling.mode", "vpa", "value must be one of"),
    ({}, "image.digest", "sha256:short", "does not match pattern"),
    ({}, "commonLabels", {"a": 1}, "got number, want string"),
    ({}, "prometheusRule.thresholds.lagRecords", "many", "got string, want number"),
]  # fmt: skip
"""What holds already, the value that is wrong with it, and words of the message; None: it is not refused."""


@functools.cache
def is_rendered(base: str) -> bool:
    return bool(loaded_chart().render(json.loads(base)).texts)


@functools.cache
def told(case: int) -> str | None:
    """What is said against a case; None where it is rendered. Its base has to be."""
    base, name, value, _ = REFUSED[case]
    assert is_rendered(json.dumps(base))
    try:
        loaded_chart().render(with_value(base, name, value))
    except Refused as refused:
        return str(refused).replace('\\"', '"')
    return None


@pytest.mark.parametrize("case", range(len(REFUSED)), ids=lambda case: f"{REFUSED[case][1]}-{case}")
def test_what_does_not_go_together_is_refused_by_name(case: int) -> None:
    words, message = REFUSED[case][3], told(case)
    assert message is None if words is None else message and words in message, message


def test_every_guard_has_a_test() -> None:
    template = (CHART / "templates" / "_validate.tpl").read_text("utf-8")
    messages = re.findall(r"append \$bad \(?(?:printf )?\"((?:[^\"\\]|\\.)*)\"", template)
    assert len(messages) > 50
    met = "\n".join(filter(None, (told(case) for case in range(len(REFUSED)))))
    untested = [message for message in messages if not re.search(".*".join(map(re.escape, re.split(r"%[a-z]", message))), met)]
    assert untested == []


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(Refused) as refused:
        loaded_chart().render({"gpu": {"enabled": True}, "image": {"tag": "latest"}, "terminationGracePeriodSeconds": 5})
    assert all(words in str(refused.value) for words in ("image.tag latest", "gpu.enabled", "terminationGracePeriodSeconds 5"))


# The settings are those of the worker.


def fields(kind: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Every setting that is no section, with pydantic's own description of it, by dotted name."""
    found = {}
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= fields(field.annotation, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = field
    return found


FIELDS = fields(Settings)
IN_SECRETS = {name for name, field in FIELDS.items() if SecretStr in (field.annotation, *getattr(field.annotation, "__args__", ()))}


def test_settings_have_the_names_of_the_worker() -> None:
    assert {name for name, _ in leaves(defaults()["settings"])} == FIELDS.keys() - IN_SECRETS
    assert sorted(IN_SECRETS) == ["claims.s3_secret_access_key", "kafka.sasl_oauth_client_secret", "kafka.sasl_password", "kafka.ssl_password"]


def test_settings_have_the_defaults_of_the_worker_except_where_a_pod_needs_another() -> None:
    worker = json.loads(Settings().model_dump_json())
    changed = {name: value for name, value in leaves(defaults()["settings"]) if value != lookup(worker, name)}
    assert changed == {name: value for name, (value, _) in chart_defaults().items()}
    assert all(reason for _, reason in chart_defaults().values())


PROBES = (
    None,
    True,
    False,
    -1,
    0,
    1,
    2,
    63,
    64,
    1023,
    1024,
    70_000,
    1 << 31,
    0.5,
    1.5,
    600.5,
    "",
    "x",
    "a b",
    "off",
    "INFO",
    "https://x.example",
    "1" * 64,
    [],
    ["x"],
    [0.5, 0.5],
    {"a": 1},
    {"a": "b"},
)


@pytest.mark.parametrize("name", sorted(FIELDS.keys() - IN_SECRETS))
def test_what_the_schema_takes_for_a_setting_the_worker_takes(name: str) -> None:
    """Types, choices, patterns and bounds: what only one of the two takes is drift."""
    field, node = FIELDS[name], node_of(f"settings.{name}")
    reads = TypeAdapter(Annotated[field.annotation, "a setting", *field.metadata])
    takes = jsonschema.Draft7Validator(dict(node)).is_valid
    for value in PROBES:
        try:
            reads.validate_json(json.dumps(value), strict=True)
            accepted = value != "" or "null" not in node["type"]  # unset is null in the chart
        except ValidationError:
            accepted = False
        assert takes(value) == accepted, f"{name}: {value!r} is taken by {'the worker' if accepted else 'the chart'} alone"


def taken(name: str) -> list[Any]:
    """Values that the schema takes for a setting."""
    is_valid = jsonschema.Draft7Validator(dict(node_of(f"settings.{name}"))).is_valid
    enum = [value for value in node_of(f"settings.{name}").get("enum", ()) if value is not None]
    return [*enum, *(value for value in (*PROBES, "fifa.frames", "host.example:9092", 10_000, 0.01) if value is not None and is_valid(value))]


@settings(max_examples=40)
@given(data=st.data(), names=st.lists(st.sampled_from(sorted(FIELDS.keys() - IN_SECRETS)), min_size=1, max_size=5, unique=True))
def test_settings_that_are_rendered_are_taken_by_the_worker(data: st.DataObject, names: list[str]) -> None:
    """Rules between settings, which no schema has: what the worker refuses at its start is refused by a guard."""
    values: Values = {}
    for name in names:
        values = with_value(values, f"settings.{name}", data.draw(st.sampled_from(taken(name)), label=name))
    try:
        one = loaded_chart().render(values)
    except Refused as refused:
        assert "these values do not go together" in str(refused)
        return
    assert [found for found in semantics.the_worker_takes_its_settings(one) if "the worker refuses" in found] == []


def test_every_value_is_explained_and_closed() -> None:
    documented = {param.name for param in params((CHART / "values.yaml").read_text("utf-8"))}
    assert all(node_of(name).get("description") for name in documented)

    def closed(node: Mapping[str, Any], name: str) -> None:
        if "properties" in node:
            assert node["additionalProperties"] is False, name
            for key, below in node["properties"].items():
                closed(below, f"{name}.{key}")

    closed(SCHEMA, "")


@pytest.mark.parametrize("name", ["yes", "no", "on", "off", "y", "n", "true", "false", "null"])
def test_no_value_has_a_name_that_yaml_reads_as_something_else(name: str) -> None:
    assert not any(name in path.split(".") for path, _ in leaves(defaults()))

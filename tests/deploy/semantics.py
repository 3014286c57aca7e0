"""What rendered objects must be among themselves and towards the worker, and no schema says.

Every rule takes a rendered chart and yields what is wrong; `findings` runs all of them.
"""

import json
import re
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer
from pydantic import ValidationError

from fifa_stream.config import ENV_PREFIX, KafkaSettings, Settings
from fifa_stream.topics import plans
from tests.deploy.chart import NAMESPACE, RELEASE, Object, Rendered, containers_of, pods_of

DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
PORT_NAME = re.compile(r"(?=.*[a-z])[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?")
OUR_LABELS = ("name", "instance", "component", "version", "managed-by", "part-of")
VOLATILE_LABELS = {"helm.sh/chart", "app.kubernetes.io/version", "app.kubernetes.io/managed-by"}
"""They change from release to release: never in what cannot change."""
RESTRICTED_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected", "secret"}
EXPECTED_PROBES = {"startupProbe": "/health/started", "readinessProbe": "/health/ready", "livenessProbe": "/health/live"}
LEAVING_S = 10
"""To leave the group and to close the producer after the drain."""
MAX_CONFIG_MAP_BYTES = 1 << 20
KAFKA_TRIGGER = {
    "bootstrapServers", "consumerGroup", "topic", "partitionLimitation", "lagThreshold", "activationLagThreshold", "offsetResetPolicy",
    "allowIdleConsumers", "excludePersistentLag", "scaleToZeroOnInvalidOffset", "limitToPartitionsWithLag", "ensureEvenDistributionOfPartitions",
    "fullMetadata", "version", "tls", "unsafeSsl", "sasl", "saslTokenProvider", "awsRegion",
}  # fmt: skip
"""What KEDA 2.20 reads of a kafka trigger. What it does not know it ignores without a word."""
KAFKA_TRIGGER_SECRETS = {
    "username",
    "password",
    "ca",
    "cert",
    "key",
    "keyPassword",
    "sasl",
    "tls",
    "scopes",
    "oauthTokenEndpointUri",
    "oauthExtensions",
}
KAFKA_SASL = {"none", "plaintext", "scram_sha256", "scram_sha512", "oauthbearer", "gssapi"}

Rule = Callable[[Rendered], Iterator[str]]
RULES: list[Rule] = []


def rule(check: Rule) -> Rule:
    """Add a rule to those that `findings` runs."""
    RULES.append(check)
    return check


def findings(rendered: Rendered) -> list[str]:
    """Everything that any rule finds."""
    return [f"{check.__name__}: {found}" for check in RULES for found in check(rendered)]


def named(item: Object) -> str:
    """For messages."""
    return f"{item['kind']}/{item['metadata']['name']}"


def selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether matchLabels match; an empty selector matches all and is never meant."""
    return bool(selector) and selector.items() <= labels.items()


def deployment(rendered: Rendered) -> Object:
    """The workload."""
    return rendered.one("Deployment")


def worker(rendered: Rendered) -> Object:
    """Its container."""
    (found,) = (container for container in deployment(rendered)["spec"]["template"]["spec"]["containers"] if container["name"] == "worker")
    return found


def settings_tree(rendered: Rendered) -> dict[str, Any]:
    """The settings file that the worker reads."""
    return tomllib.loads(config_map(rendered)["data"]["settings.toml"])


def config_map(rendered: Rendered) -> Object:
    """That of the settings."""
    (found,) = (item for item in rendered.of("ConfigMap") if "settings.toml" in item["data"])
    return found


@rule
def names_and_labels(rendered: Rendered) -> Iterator[str]:
    """Every object: a name that Kubernetes takes and that is there once, a namespace, labels that lead back to the release."""
    seen = set()
    for item in rendered.objects:
        metadata, labels = item["metadata"], item["metadata"].get("labels", {})
        place = (item["apiVersion"], item["kind"], metadata.get("namespace"), metadata["name"])
        if place in seen:
            yield f"{named(item)} is there twice"
        seen.add(place)
        if not DNS_LABEL.fullmatch(metadata["name"]):
            yield f"{named(item)} is no DNS label"
        if item["kind"] == "ScaledObject" and len(f"keda-hpa-{metadata['name']}") > 63:
            yield f"{named(item)} is too long for KEDA's own name"
        elsewhere = rendered.values["strimzi"]["namespace"], rendered.values["dashboards"]["namespace"]
        if metadata.get("namespace") not in {NAMESPACE, *filter(None, elsewhere)}:
            yield f"{named(item)} is in namespace {metadata.get('namespace')}"
        if labels.get("app.kubernetes.io/instance") != RELEASE:
            yield f"{named(item)} does not carry the release"
        if "helm.sh/chart" in labels and not {f"app.kubernetes.io/{name}" for name in OUR_LABELS} <= labels.keys():
            yield f"{named(item)} lacks recommended labels"
        yield from (f"{named(item)} has label {key}: {value!r}" for key, value in labels.items() if not LABEL_VALUE.fullmatch(str(value)))


@rule
def no_secret_is_rendered(rendered: Rendered) -> Iterator[str]:
    """Credentials are the user's own Secrets."""
    yield from (f"{named(item)}" for item in rendered.of("Secret"))


@rule
def selectors_match_pods(rendered: Rendered) -> Iterator[str]:
    """Whatever selects pods selects one of the chart's, by labels that never change."""
    pods = [(owner, pod["metadata"]["labels"]) for owner, pod in pods_of(rendered.objects)]
    for item in rendered.objects:
        spec = item.get("spec", {})
        selector: Any = {
            "Deployment": lambda spec: spec["selector"]["matchLabels"],
            "PodDisruptionBudget": lambda spec: spec["selector"]["matchLabels"],
            "PodMonitor": lambda spec: spec["selector"]["matchLabels"],
            "Service": lambda spec: spec["selector"],
            "NetworkPolicy": lambda spec: spec["podSelector"].get("matchLabels", {}),
        }.get(item["kind"])
        if selector is None:
            continue
        labels = selector(spec)
        if VOLATILE_LABELS & labels.keys():
            yield f"{named(item)} selects by {sorted(VOLATILE_LABELS & labels.keys())}"
        matched = [owner["kind"] for owner, theirs in pods if selects(labels, theirs)]
        if matched != ["Deployment"]:
            yield f"{named(item)} selects pods of {matched}"
    for constraint in deployment(rendered)["spec"]["template"]["spec"].get("topologySpreadConstraints", ()):
        if not selects(constraint["labelSelector"]["matchLabels"], deployment(rendered)["spec"]["template"]["metadata"]["labels"]):
            yield f"topologySpreadConstraints: {constraint['topologyKey']} counts other pods"
    for monitor in rendered.of("ServiceMonitor"):
        services = [item for item in rendered.of("Service") if selects(monitor["spec"]["selector"]["matchLabels"], item["metadata"]["labels"])]
        if len(services) != 1:
            yield f"{named(monitor)} selects {len(services)} Services"
        ports = {port["name"] for service in services for port in service["spec"]["ports"]}
        yield from (f"{named(monitor)}: no port {end['port']}" for end in monitor["spec"]["endpoints"] if end["port"] not in ports)


@rule
def jobs_can_be_upgraded(rendered: Rendered) -> Iterator[str]:
    """A Job's template cannot change: its name ends in a digest of it, and nothing volatile is inside."""
    for job in rendered.of("Job"):
        if not re.search(r"-[0-9a-f]{8,}$", job["metadata"]["name"]):
            yield f"{named(job)} has a fixed name"
        if VOLATILE_LABELS & job["spec"]["template"]["metadata"]["labels"].keys():
            yield f"{named(job)} has volatile labels in its template"
        if not (job["spec"].get("activeDeadlineSeconds") and job["spec"]["template"]["spec"].get("restartPolicy") in ("Never", "OnFailure")):
            yield f"{named(job)} may run for ever"


@rule
def references_lead_somewhere(rendered: Rendered) -> Iterator[str]:
    """Mounts and volumes belong together; what a pod names of the chart's own is there."""
    maps = {item["metadata"]["name"]: item["data"].keys() for item in rendered.of("ConfigMap")}
    claims = {item["metadata"]["name"] for item in rendered.of("PersistentVolumeClaim")}
    accounts = {item["metadata"]["name"] for item in rendered.of("ServiceAccount")}
    given = json.dumps([rendered.values["extraVolumes"], rendered.values["engine"]])
    for owner, pod in pods_of(rendered.objects):
        spec = pod["spec"]
        volumes = [volume["name"] for volume in spec.get("volumes", ())]
        mounted = {mount["name"] for container in containers_of(pod) for mount in container.get("volumeMounts", ())}
        yield from (f"{named(owner)}: volume {name} is there twice" for name in sorted(set(volumes)) if volumes.count(name) > 1)
        yield from (f"{named(owner)}: volume {name} is mounted nowhere" for name in sorted(set(volumes) - mounted))
        yield from (f"{named(owner)}: mount {name} has no volume" for name in sorted(mounted - set(volumes)))
        for container in containers_of(pod):
            paths = [mount["mountPath"] for mount in container.get("volumeMounts", ())]
            names = [variable["name"] for variable in container.get("env", ())]
            yield from (f"{named(owner)}/{container['name']}: {path} is mounted twice" for path in sorted(set(paths)) if paths.count(path) > 1)
            yield from (f"{named(owner)}/{container['name']}: {name} is set twice" for name in sorted(set(names)) if names.count(name) > 1)
        for volume in spec.get("volumes", ()):
            if source := volume.get("configMap"):
                keys = {item["key"] for item in source.get("items", ())}
                if source["name"] not in maps and f'"{source["name"]}"' not in given:
                    yield f"{named(owner)}: ConfigMap {source['name']} is not there"
                elif missing := keys - maps.get(source["name"], keys):
                    yield f"{named(owner)}: ConfigMap {source['name']} has no {sorted(missing)}"
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim and claim not in claims and f'"{claim}"' not in given:
                yield f"{named(owner)}: claim {claim} is not there"
        account = spec.get("serviceAccountName")
        if rendered.values["serviceAccount"]["create"] and account not in accounts:
            yield f"{named(owner)}: service account {account} is not there"
    for authentication in rendered.of("TriggerAuthentication"):
        for target in authentication["spec"].get("configMapTargetRef", ()):
            if target["key"] not in maps.get(target["name"], ()):
                yield f"{named(authentication)}: ConfigMap {target['name']} has no {target['key']}"


@rule
def ports_and_probes(rendered: Rendered) -> Iterator[str]:
    """Probes ask the health port what the worker answers there, in time; whoever else names the port finds it."""
    container, port = worker(rendered), settings_tree(rendered)["runtime"]["health_port"]
    declared = {one["name"]: one["containerPort"] for one in container["ports"]}
    yield from (f"port name {name!r}" for name in declared if not PORT_NAME.fullmatch(name))
    if declared.get("health") != port:
        yield f"the worker listens on {port}, the container declares {declared}"
    for probe, path in EXPECTED_PROBES.items():
        asked = container.get(probe, {}).get("httpGet", {})
        if asked.get("path") != path or asked.get("port") not in declared:
            yield f"{probe} asks {asked}"
    if container["livenessProbe"].get("initialDelaySeconds"):
        yield "livenessProbe has a delay beside the startup probe"
    for service in rendered.of("Service"):
        for one in service["spec"]["ports"]:
            if one["port"] != port or one["targetPort"] not in declared:
                yield f"{named(service)}: port {one}"
    for monitor in rendered.of("PodMonitor"):
        yield from (f"{named(monitor)}: no port {end['port']}" for end in monitor["spec"]["podMetricsEndpoints"] if end["port"] not in declared)
    for monitor in (*rendered.of("PodMonitor"), *rendered.of("ServiceMonitor")):
        ends = monitor["spec"].get("endpoints") or monitor["spec"]["podMetricsEndpoints"]
        yield from (f"{named(monitor)} scrapes {end['path']}" for end in ends if end["path"] != "/metrics")


@rule
def times_go_together(rendered: Rendered) -> Iterator[str]:
    """A drain ends before the kill, a start before the probe gives up, a roll-out before it counts as failed."""
    spec, container = deployment(rendered)["spec"], worker(rendered)
    drain = settings_tree(rendered)["runtime"]["drain_timeout_s"]
    grace = spec["template"]["spec"].get("terminationGracePeriodSeconds", 30)
    if grace < drain + LEAVING_S:
        yield f"killed after {grace} s, while a drain takes {drain} s and {LEAVING_S} s to leave"
    budget = container["startupProbe"]["periodSeconds"] * container["startupProbe"]["failureThreshold"]
    builds = any(one["name"] == "engine" for one in spec["template"]["spec"].get("initContainers", ()))
    start = budget + spec["minReadySeconds"] + builds * rendered.values["engine"]["ensure"]["timeoutSeconds"]
    if spec["progressDeadlineSeconds"] <= start:
        yield f"the roll-out fails after {spec['progressDeadlineSeconds']} s, a start may take {start} s"
    if budget * 1000 <= settings_tree(rendered)["kafka"]["bootstrap_timeout_ms"]:
        yield f"the startup probe gives up after {budget} s, before the worker does"
    rolling = spec["strategy"]["rollingUpdate"]
    if str(rolling["maxSurge"]).rstrip("%") == str(rolling["maxUnavailable"]).rstrip("%") == "0":
        yield "no roll-out can begin"


@rule
def pods_are_restricted(rendered: Rendered) -> Iterator[str]:
    """Pod Security Standards, level restricted, and no token of the API."""
    on_node = rendered.values["engine"]["cache"]["type"] == "hostPath"
    for owner, pod in pods_of(rendered.objects):
        spec, context = pod["spec"], pod["spec"].get("securityContext", {})
        if spec.get("automountServiceAccountToken") is not False or spec.get("enableServiceLinks") is not False:
            yield f"{named(owner)} gets a token of the API or links of services"
        if not (context.get("runAsNonRoot") and context.get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost")):
            yield f"{named(owner)} may be root, or has no seccomp profile"
        if context.get("runAsUser") == 0 or any(spec.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")):
            yield f"{named(owner)} is root or shares the host's namespaces"
        for volume in spec.get("volumes", ()):
            kinds = volume.keys() - {"name"}
            if not kinds <= RESTRICTED_VOLUMES and not (on_node and volume["name"] == "engines"):
                yield f"{named(owner)}: volume {volume['name']} is {sorted(kinds)}"
        for container in containers_of(pod):
            its = container.get("securityContext", {})
            if its.get("allowPrivilegeEscalation") is not False or its.get("capabilities", {}).get("drop") != ["ALL"] or its.get("privileged"):
                yield f"{named(owner)}/{container['name']} is not restricted"
            if not its.get("readOnlyRootFilesystem"):
                yield f"{named(owner)}/{container['name']} may write its root file system"


@rule
def resources_are_stated(rendered: Rendered) -> Iterator[str]:
    """Memory has a limit everywhere. Who computes on a GPU requests it as it is limited, and goes where it is; nobody else sees one."""
    gpu, backend = rendered.values["gpu"], rendered.values["engine"]["backend"]
    for owner, pod in pods_of(rendered.objects):
        needs = gpu["enabled"] and (owner["kind"] == "Deployment" or (owner["kind"] == "Job" and backend == "tensorrt"))
        for container in containers_of(pod):
            resources, where = container.get("resources", {}), f"{named(owner)}/{container['name']}"
            if "memory" not in resources.get("limits", {}):
                yield f"{where} has no limit of memory"
            requests, limits = ({name: amount for name, amount in resources.get(side, {}).items() if "/" in name} for side in ("requests", "limits"))
            if requests != limits:
                yield f"{where} requests {requests} and is limited to {limits}"
            if container["name"] not in ("worker", "engine", "test"):
                continue
            if list(limits) != ([gpu["resourceName"]] if needs else []):
                yield f"{where} has {limits or 'no GPU'}"
            if ({"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"} in container.get("env", ())) == needs:
                yield f"{where} sees {'no GPU' if needs else 'every GPU of the node'}"
        node = pod["spec"].get("affinity", {}).get("nodeAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution", {})
        asked = [
            [one["values"] for one in term.get("matchExpressions", ()) if one["key"] == gpu["productLabel"]]
            for term in node.get("nodeSelectorTerms", ())
        ]
        wanted = [gpu["products"]] if owner["kind"] == "Deployment" else [[product] for product in gpu["products"]]
        if needs and gpu["products"] and not (asked and all(len(one) == 1 and one[0] in wanted for one in asked)):
            yield f"{named(owner)} goes to {asked}, not to {gpu['products']}"
        if needs and bool(pod["spec"].get("runtimeClassName")) != bool(gpu["runtimeClassName"]):
            yield f"{named(owner)} runs in {pod['spec'].get('runtimeClassName')}"
    products = [pod["spec"].get("affinity") for owner, pod in pods_of(rendered.objects) if owner["kind"] == "Job"]
    if len(products) != len({json.dumps(one) for one in products}):
        yield "two Jobs build for the same GPU"


@rule
def images_are_fixed(rendered: Rendered) -> Iterator[str]:
    """By version or digest."""
    for owner, pod in pods_of(rendered.objects):
        for container in containers_of(pod):
            tag = re.search(r"(?:@sha256:[0-9a-f]{64}|:([\w.-]+))$", container["image"])
            if tag is None or tag[1] == "latest":
                yield f"{named(owner)}/{container['name']} runs {container['image']}"


@rule
def policies_allow_what_is_needed(rendered: Rendered) -> Iterator[str]:
    """Name resolution and brokers out, the health port in, in words that Kubernetes reads as they are written."""
    ports = {int(server.rpartition(":")[2]) for server in settings_tree(rendered)["kafka"]["bootstrap_servers"].split(",")}
    for policy in rendered.of("NetworkPolicy"):
        spec = policy["spec"]
        if sorted(spec.get("policyTypes", ())) != ["Egress", "Ingress"]:
            yield f"{named(policy)} has policyTypes {spec.get('policyTypes')}"
        out = {port["port"] for one in spec["egress"] for port in one.get("ports", ())}
        if not rendered.values["networkPolicy"]["kafkaPorts"] and not ports <= out:
            yield f"{named(policy)} keeps the brokers' {sorted(ports - out)} shut"
        names = [
            one for one in spec["egress"] if {port["port"] for port in one.get("ports", ())} == set(rendered.values["networkPolicy"]["dnsPorts"])
        ]
        if not names or {port["protocol"] for port in names[0]["ports"]} != {"UDP", "TCP"}:
            yield f"{named(policy)} lets no name be resolved"
        if not all(one.get("ports") for one in spec["egress"]) and not rendered.values["networkPolicy"]["extraEgress"]:
            yield f"{named(policy)} lets everything out"
        inward = [port["port"] for one in spec["ingress"] for port in one["ports"]]
        if inward != ["health"]:
            yield f"{named(policy)} lets {inward} in"


@rule
def one_owner_of_the_number(rendered: Rendered) -> Iterator[str]:
    """Replicas are rendered where nobody else sets them, and an autoscaler finds its target."""
    mode, spec = rendered.values["autoscaling"]["mode"], deployment(rendered)["spec"]
    if ("replicas" in spec) != (mode == "none"):
        yield f"replicas {spec.get('replicas')} with autoscaling.mode {mode}"
    scalers = [*rendered.of("HorizontalPodAutoscaler"), *rendered.of("ScaledObject")]
    if [item["kind"] for item in scalers] != {"hpa": ["HorizontalPodAutoscaler"], "keda": ["ScaledObject"]}.get(mode, []):
        yield f"autoscaling.mode {mode} renders {[named(item) for item in scalers]}"
    for item in scalers:
        target, names = item["spec"]["scaleTargetRef"], ("minReplicas", "maxReplicas") if mode == "hpa" else ("minReplicaCount", "maxReplicaCount")
        if (target["kind"], target["name"]) != ("Deployment", deployment(rendered)["metadata"]["name"]):
            yield f"{named(item)} scales {target}"
        if item["spec"][names[0]] > item["spec"][names[1]]:
            yield f"{named(item)}: {names[0]} is above {names[1]}"


@rule
def keda_reads_the_workers_lag(rendered: Rendered) -> Iterator[str]:
    """The trigger asks for the lag of the worker's own group, in words KEDA knows; CEL and webhook rules that schemas leave out."""
    kafka = settings_tree(rendered)["kafka"]
    known = {item["metadata"]["name"]: item for item in rendered.of("TriggerAuthentication")}
    used = set()
    for item in rendered.of("ScaledObject"):
        for trigger in (one for one in item["spec"]["triggers"] if one["type"] == "kafka"):
            metadata = trigger["metadata"]
            yield from (f"{named(item)}: KEDA does not know {name}" for name in sorted(metadata.keys() - KAFKA_TRIGGER))
            if (metadata["consumerGroup"], metadata["topic"]) != (kafka["group_id"], kafka["frames_topic"]):
                yield f"{named(item)} reads {metadata['topic']} of {metadata['consumerGroup']}"
            if metadata["offsetResetPolicy"] != "earliest":
                yield f"{named(item)} begins at {metadata['offsetResetPolicy']}, the worker at the earliest"
            if metadata.get("sasl", "none") not in KAFKA_SASL or metadata.get("tls") not in ("enable", "disable"):
                yield f"{named(item)}: sasl {metadata.get('sasl')}, tls {metadata.get('tls')}"
            if (metadata.get("sasl", "none") != "none") != kafka["security_protocol"].startswith("SASL"):
                yield f"{named(item)}: sasl {metadata.get('sasl')} with {kafka['security_protocol']}"
            if (metadata["tls"] == "enable") != kafka["security_protocol"].endswith("SSL"):
                yield f"{named(item)}: tls {metadata['tls']} with {kafka['security_protocol']}"
            if metadata["allowIdleConsumers"] == metadata["limitToPartitionsWithLag"] == "true":
                yield f"{named(item)}: allowIdleConsumers and limitToPartitionsWithLag"
            if not all(re.fullmatch(r"\d+", metadata[name]) for name in ("lagThreshold", "activationLagThreshold")):
                yield f"{named(item)}: lagThreshold {metadata['lagThreshold']}, activationLagThreshold {metadata['activationLagThreshold']}"
            if " " in metadata["bootstrapServers"]:
                yield f"{named(item)}: a space in bootstrapServers"
            name = trigger.get("authenticationRef", {}).get("name")
            used.add(name)
            if name and name not in known and name != rendered.values["autoscaling"]["keda"]["existingTriggerAuthentication"]:
                yield f"{named(item)}: TriggerAuthentication {name} is not there"
            if kafka["security_protocol"].startswith("SASL") and not name:
                yield f"{named(item)} has nothing to prove itself by"
    for name, authentication in known.items():
        parameters = [
            one["parameter"] for one in (*authentication["spec"].get("secretTargetRef", ()), *authentication["spec"].get("configMapTargetRef", ()))
        ]
        yield from (f"{named(authentication)}: KEDA does not know {one}" for one in parameters if one not in KAFKA_TRIGGER_SECRETS)
        if kafka["security_protocol"].startswith("SASL") and not {"username", "password"} <= set(parameters):
            yield f"{named(authentication)} gives {parameters}"
        if name not in used:
            yield f"{named(authentication)} is used by nobody"


@rule
def the_worker_takes_its_settings(rendered: Rendered) -> Iterator[str]:
    """The settings file and the FIFA_ variables are what fifa_stream.config reads; every file they name is mounted."""
    tree, container = settings_tree(rendered), worker(rendered)
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    pod = deployment(rendered)["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    with tempfile.NamedTemporaryFile() as stand_in:
        for name, value in list(tree["kafka"].items()):
            if name.endswith("file"):
                folder, _, file = value.rpartition("/")
                source = volumes.get(mounts.get(folder, ""), {})
                keys = [one["path"] for one in source.get("secret", {}).get("items", ())]
                keys += [one["serviceAccountToken"]["path"] for one in source.get("projected", {}).get("sources", ())]
                if file not in keys:
                    yield f"kafka.{name} is {value}, and {sorted(keys)} is mounted there"
                tree["kafka"][name] = stand_in.name
        for variable in container.get("env", ()):
            if variable["name"].startswith(ENV_PREFIX):
                section, _, field = variable["name"].removeprefix(ENV_PREFIX).lower().partition("__")
                kind = Settings.model_fields[section].annotation if section in Settings.model_fields else None
                if kind is None or field not in kind.model_fields:  # type: ignore[attr-defined]
                    yield f"{variable['name']} is no setting"
                elif variable not in rendered.values["extraEnv"]:
                    tree[section][field] = "from-the-environment"
        try:
            settings = Settings(**tree)
        except ValidationError as error:
            yield f"the worker refuses its settings: {error.errors()[0]['loc']} {error.errors()[0]['msg']}"
            return
    if settings.runtime.health_host in ("127.0.0.1", "localhost", "::1"):
        yield f"the health port binds to {settings.runtime.health_host}"
    if settings.kafka.processing_guarantee == "exactly_once" and not settings.kafka.transactional_id:
        yield "exactly_once without a transactional_id of the pod"
    for name in ("folder", "candidate"):
        folder = getattr(settings.engine, name)
        if folder is not None and not any(Path(path) in (folder, *folder.parents) for path in mounts):
            yield f"engine.{name} {folder} is mounted nowhere"


def _parsed(arguments: list[str]) -> str | None:
    """What `fifa-stream` says against its arguments; None when it takes them. Runs nothing."""
    from fifa_stream.cli import app

    command: Any = typer.main.get_command(app)
    names = list(arguments)
    try:
        while names and hasattr(command, "commands"):
            if names[0] not in command.commands:
                return f"no command {names[0]!r}"
            command = command.commands[names.pop(0)]
        command.make_context("fifa-stream", names)
    except Exception as error:  # click's usage errors, whichever click typer brings
        return getattr(error, "message", "") or str(error)
    return None


@rule
def the_program_takes_its_arguments(rendered: Rendered) -> Iterator[str]:
    """Arguments are parsed by the commands of fifa_stream.cli themselves; files among them are where a volume is."""
    for owner, pod in pods_of(rendered.objects):
        for container in containers_of(pod):
            if container["name"] not in ("worker", "engine"):
                continue
            arguments, where = [str(argument) for argument in container["args"]], f"{named(owner)}/{container['name']}"
            if told := _parsed(arguments):
                yield f"{where}: {told}"
            mounts = {mount["mountPath"]: mount.get("readOnly", False) for mount in container["volumeMounts"]}
            given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
            paths = [argument.split("=", 1)[-1] for argument in arguments if argument.split("=", 1)[-1].startswith("/")]
            yield from (
                f"{where}: {path} is mounted nowhere"
                for path in paths
                if not any(Path(mount) in (Path(path), *Path(path).parents) for mount in mounts)
            )
            if "--cache" in given and "--wait" not in given and mounts.get(given["--cache"]):
                yield f"{where}: builds into a volume that is mounted read-only"


@rule
def the_engine_that_is_ensured_is_the_one_that_runs(rendered: Rendered) -> Iterator[str]:
    """Worker and builder share the cache; the link that ensure makes is the folder that the worker opens; Job and worker ask for the same build."""
    pod = deployment(rendered)["spec"]["template"]["spec"]
    builders = [container for container in pod.get("initContainers", ()) if container["name"] == "engine"]
    jobs = [job["spec"]["template"]["spec"] for job in rendered.of("Job")]
    settings = settings_tree(rendered)["engine"]
    for builder in builders:
        link = [argument.removeprefix("--link=") for argument in builder["args"] if argument.startswith("--link=")]
        if link != [settings.get("folder")]:
            yield f"ensure links {link}, the worker opens {settings.get('folder')}"
        shared = {"engines", "run"}
        for container in (builder, worker(rendered)):
            if not shared <= {mount["name"] for mount in container["volumeMounts"]}:
                yield f"{container['name']} does not share cache and link"
        mounts = [{mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]} for container in (builder, worker(rendered))]
        yield from (
            f"{name} is at {mounts[0].get(name)} and at {mounts[1].get(name)}"
            for name in sorted(shared)
            if mounts[0].get(name) != mounts[1].get(name)
        )
        own = [argument for argument in builder["args"] if not argument.startswith(("--link=", "--wait="))]
        yield from (f"the Job builds {job['containers'][0]['args']}, the worker wants {own}" for job in jobs if job["containers"][0]["args"] != own)
        sources = [[volume for volume in spec["volumes"] if volume["name"] == "engines"] for spec in (pod, *jobs)]
        if any(source != sources[0] for source in sources):
            yield f"caches differ: {sources}"
    if (rendered.values["engine"]["ensure"]["mode"] == "job") != bool(jobs):
        yield f"engine.ensure.mode {rendered.values['engine']['ensure']['mode']} renders {len(jobs)} Jobs"


def _texts(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    return sorted((name, str(value)) for name, value in config.items())


@rule
def strimzi_grants_what_the_worker_needs(rendered: Rendered) -> Iterator[str]:
    """Topics are those that `fifa-stream topics create` makes; rights are those that the worker uses, by operation."""
    kafka = settings_tree(rendered)["kafka"]
    topics = {name: kafka[f"{name}_topic"] for name in ("frames", "verdicts", "dead_letters", "shadow") if f"{name}_topic" in kafka}
    wanted = rendered.values["strimzi"]["topics"]
    names = {key: kafka[key] for key in KafkaSettings.model_fields if key.endswith("_topic") and key in kafka}
    plain = KafkaSettings(**names, max_request_bytes=kafka["max_request_bytes"])
    has_state = settings_tree(rendered)["streams"]["memory"] == "topic"
    planned = plans(plain, partitions=wanted["frames"]["partitions"], replication=wanted["frames"]["replicas"], has_state=has_state)
    made = [
        (item["spec"]["topicName"], item["spec"]["partitions"], item["spec"]["replicas"], _texts(item["spec"]["config"]))
        for item in rendered.of("KafkaTopic")
    ]
    if made and sorted(made) != sorted((plan.name, plan.partitions, plan.replication, _texts(plan.configs)) for plan in planned):
        yield f"topics are {sorted(made)}, not {sorted(planned, key=lambda plan: plan.name)}"
    for item in (*rendered.of("KafkaTopic"), *rendered.of("KafkaUser")):
        if item["metadata"]["labels"].get("strimzi.io/cluster") != rendered.values["strimzi"]["cluster"]:
            yield f"{named(item)} belongs to no cluster"
    for user in rendered.of("KafkaUser"):
        granted = {
            (acl["resource"]["type"], acl["resource"]["name"], operation)
            for acl in user["spec"]["authorization"]["acls"]
            for operation in acl["operations"]
        }
        needed = {("topic", topics["frames"], "Read"), ("topic", topics["frames"], "Describe"), ("group", kafka["group_id"], "Read")}
        needed |= {("topic", topics[name], operation) for name in topics.keys() - {"frames"} for operation in ("Write", "Describe")}
        if has_state:
            needed |= {("topic", kafka["state_topic"], operation) for operation in ("Read", "Write", "Describe")}
        if kafka["processing_guarantee"] == "exactly_once":
            prefix = f"{deployment(rendered)['metadata']['name']}-"
            needed |= {("transactionalId", kafka.get("transactional_id", prefix), operation) for operation in ("Write", "Describe")}
        if missing := needed - granted:
            yield f"{named(user)} lacks {sorted(missing)}"
        if more := granted - needed - {("group", kafka["group_id"], "Describe")}:
            yield f"{named(user)} has {sorted(more)} and does not need it"


@rule
def rules_and_dashboards_are_whole(rendered: Rendered) -> Iterator[str]:
    """Nothing of Helm's templates is left in a rule, every alert says how grave it is and where to read on, dashboards are JSON."""
    for item in rendered.of("PrometheusRule"):
        alerts = [rule for group in item["spec"]["groups"] for rule in group["rules"] if "alert" in rule]
        if not alerts:
            yield f"{named(item)} has no alerts"
        for alert in alerts:
            if alert["labels"].get("severity") not in ("critical", "warning") or "#" not in alert["annotations"].get("runbook_url", ""):
                yield f"{alert['alert']} has severity {alert['labels'].get('severity')}, runbook {alert['annotations'].get('runbook_url')}"
        for rule in (rule for group in item["spec"]["groups"] for rule in group["rules"]):
            if "{{" in rule["expr"] or ".Values" in json.dumps(rule):
                yield f"{rule.get('alert') or rule['record']}: a template is left in it"
    for item in rendered.of("ConfigMap"):
        if sum(map(len, item["data"].values())) > MAX_CONFIG_MAP_BYTES:
            yield f"{named(item)} is larger than etcd takes"
        for name, text in item["data"].items():
            if name.endswith(".json") and "panels" not in json.loads(text):
                yield f"{named(item)}: {name} is no dashboard"

"""The manifests of deploy/: valid by the published schemas, and in agreement with each other and the code."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.contract.deploy_page import SETTINGS
from worker.app.settings import PROJECT_DIR, Settings
from worker.catalog.registry import load_registry
from worker.core import errors
from worker.remote.fleet_file import read_fleet
from worker.service.alerts.measures import MEASURES
from worker.service.alerts.rules_file import read_rules
from worker.service.usage.metrics import Metrics
from worker.store.refs import parse_reference

DEPLOY = PROJECT_DIR / "deploy"
SCHEMAS = Path(__file__).parent / "schemas"
KUBERNETES = json.loads((SCHEMAS / "kubernetes-1.36.json").read_text())
MANIFESTS = sorted(path for path in (DEPLOY / "kubernetes").glob("*.yaml") if path.name != "kustomization.yaml")
COMPOSE = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())
DASHBOARD = DEPLOY / "compose/grafana/provisioning/dashboards/fleet.json"


def strict(schema: Any) -> Any:
    """A CRD's schema as the API server applies it with strict validation: an unknown field is a mistake."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        result.setdefault("additionalProperties", bool(schema.get("x-kubernetes-preserve-unknown-fields")))
    if result.pop("x-kubernetes-int-or-string", False):
        result = {"type": ["integer", "string"]}
    return result


def schema_of(document: dict[str, Any]) -> dict[str, Any]:
    """The published schema of a manifest."""
    kind = document["kind"]
    if kind in KUBERNETES["kinds"]:
        return {"$ref": f"#/definitions/{KUBERNETES['kinds'][kind]}", "definitions": KUBERNETES["definitions"]}
    names = {"ScaledObject": "keda-scaledobject-v1alpha1", "InferencePool": "inferencepool-v1"}
    name = (names | {"RayService": "rayservice-v1"})[kind]
    schema = strict(json.loads((SCHEMAS / f"{name}.json").read_text())) | {"definitions": KUBERNETES["definitions"]}
    schema["properties"]["metadata"] = {"type": "object", "required": ["name"]}
    return schema


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every manifest, with the name of its file."""
    for path in MANIFESTS:
        for document in yaml.safe_load_all(path.read_text()):
            yield path.name, document


ALL = {f"{file} {document['kind']}": document for file, document in documents()}


@pytest.mark.parametrize("name", ALL)
def test_a_manifest_is_valid_by_its_published_schema(name: str) -> None:
    document = ALL[name]
    jsonschema.Draft202012Validator(schema_of(document)).validate(document)


RULES = yaml.safe_load((DEPLOY / "monitoring" / "rules.yml").read_text())
MISTAKES = [
    ("worker.yaml StatefulSet", ("spec", "template", "spec", "containers", 0), "livenesProbe", {}),
    ("worker.yaml StatefulSet", ("spec",), "replicas", "two"),
    ("scaling.yaml ScaledObject", ("spec",), "maxReplicas", 4),
    ("inference-pool.yaml InferencePool", ("spec",), "targetPortNumber", 8000),
    ("ray-service.yaml RayService", ("spec", "rayClusterConfig", "workerGroupSpecs", 0), "maxReplica", 2),
    ("ray-service.yaml RayService", ("spec", "rayClusterConfig", "headGroupSpec", "template"), "spek", {}),
]


@pytest.mark.parametrize(("name", "path", "field", "value"), MISTAKES, ids=[item[2] for item in MISTAKES])
def test_the_schemas_see_a_mistake(name: str, path: tuple[Any, ...], field: str, value: object) -> None:
    document = json.loads(json.dumps(ALL[name]))
    place = document
    for step in path:
        place = place[step]
    place[field] = value
    assert not jsonschema.Draft202012Validator(schema_of(document)).is_valid(document)


def test_names_and_labels_meet() -> None:
    worker, gateway = ALL["worker.yaml StatefulSet"], ALL["gateway.yaml Deployment"]
    for owner, service in ((worker, "worker.yaml Service"), (gateway, "gateway.yaml Service")):
        labels = owner["spec"]["template"]["metadata"]["labels"]
        assert ALL[service]["spec"]["selector"].items() <= labels.items()
        assert owner["spec"]["selector"]["matchLabels"].items() <= labels.items()
        (container,) = owner["spec"]["template"]["spec"]["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert {port["targetPort"] for port in ALL[service]["spec"]["ports"]} <= ports.keys()
        assert ports["http"] == Settings().api_port
        mounts = {mount["name"] for mount in container["volumeMounts"]}
        assert mounts == {volume["name"] for volume in owner["spec"]["template"]["spec"]["volumes"]}
    assert worker["spec"]["serviceName"] == ALL["worker.yaml Service"]["metadata"]["name"]
    pod = worker["spec"]["template"]["metadata"]["labels"]
    assert ALL["worker.yaml PodDisruptionBudget"]["spec"]["selector"]["matchLabels"].items() <= pod.items()
    assert ALL["inference-pool.yaml InferencePool"]["spec"]["selector"]["matchLabels"].items() <= pod.items()
    target = ALL["scaling.yaml ScaledObject"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == (worker["kind"], worker["metadata"]["name"])
    grace = Settings().shutdown_grace_seconds + 10
    for owner in (worker, gateway):
        assert owner["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > grace


def test_the_gateway_knows_every_worker_that_keda_may_start() -> None:
    fleet = yaml.safe_load(ALL["gateway.yaml ConfigMap"]["data"]["fleet.yaml"])["replicas"]
    worker = ALL["worker.yaml StatefulSet"]
    count = ALL["scaling.yaml ScaledObject"]["spec"]["maxReplicaCount"]
    name, service = worker["metadata"]["name"], worker["spec"]["serviceName"]
    assert [entry["url"] for entry in fleet.values()] == [
        f"http://{name}-{index}.{service}:{Settings().api_port}" for index in range(count)
    ]
    assert worker["spec"]["replicas"] <= count


def test_environments_are_settings_or_keys_that_the_fleet_names() -> None:
    fleets = (ALL["gateway.yaml ConfigMap"]["data"]["fleet.yaml"], (DEPLOY / "compose/fleet.yaml").read_text())
    keys = {entry["key"] for fleet in fleets for entry in yaml.safe_load(fleet)["replicas"].values()}
    names: set[str] = set()
    for document in (ALL["worker.yaml StatefulSet"], ALL["gateway.yaml Deployment"]):
        (container,) = document["spec"]["template"]["spec"]["containers"]
        names |= {variable["name"] for variable in container["env"]}
    for service in COMPOSE["services"].values():
        names |= service.get("environment", {}).keys()
    assert names - SETTINGS.keys() == keys == {"WORKER_KEY"}


@pytest.mark.parametrize("where", ["kubernetes", "compose"])
def test_the_gateway_reads_its_fleet(where: str, tmp_path: Path) -> None:
    in_cluster = ALL["gateway.yaml ConfigMap"]["data"]["fleet.yaml"]
    text = in_cluster if where == "kubernetes" else (DEPLOY / "compose/fleet.yaml").read_text()
    (tmp_path / "fleet.yaml").write_text(text)
    registry = load_registry(PROJECT_DIR / "models.yaml", parse_source=parse_reference)
    members = read_fleet(
        tmp_path / "fleet.yaml", registry, lambda name: "key" if name == "WORKER_KEY" else None, tmp_path
    )
    assert len(members) == (4 if where == "kubernetes" else 2)
    assert {member.platform.state().vram_bytes for member in members} == {48 * 2**30}


def test_compose_is_valid_by_the_compose_specification() -> None:
    schema = json.loads((SCHEMAS / "compose-spec.json").read_text())
    validator = jsonschema.Draft7Validator(schema)
    for file in (DEPLOY / "compose" / "compose.yaml", PROJECT_DIR / "compose.yaml"):
        document = yaml.safe_load(file.read_text())
        validator.validate(document)
        broken = json.loads(json.dumps(document))
        next(iter(broken["services"].values()))["port"] = [8000]
        assert not validator.is_valid(broken)


def test_compose_mounts_what_is_there_and_its_gateway_knows_its_workers() -> None:
    folder = DEPLOY / "compose"
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or (folder / source).resolve().exists(), volume
    fleet = yaml.safe_load((folder / "fleet.yaml").read_text())["replicas"]
    workers = {name for name, service in COMPOSE["services"].items() if "STANDALONE_MODE" in str(service)}
    assert {entry["url"] for entry in fleet.values()} == {f"http://{name}:{Settings().api_port}" for name in workers}
    devices = [
        COMPOSE["services"][name]["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] for name in workers
    ]
    assert sorted(devices) == [["0"], ["1"]]


def queries() -> Iterator[str]:
    """Every query that a dashboard or a scaler asks."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    yield from (item["metadata"]["query"] for item in ALL["scaling.yaml ScaledObject"]["spec"]["triggers"])
    yield from (rule["expr"] for group in RULES["groups"] for rule in group["rules"])


def test_the_dashboard_has_no_field_that_grafanas_schema_has_not() -> None:
    written = json.loads(DASHBOARD.read_text())
    assert list(_lost(written, _as_grafana_has_it(written))) == []
    mistaken = written | {"panels": [{**written["panels"][0], "titel": "x"}]}
    assert list(_lost(mistaken, _as_grafana_has_it(mistaken))) == [".panels[0].titel"]


def _as_grafana_has_it(dashboard: dict[str, Any]) -> Any:
    return json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard)))


def _lost(written: Any, read: Any, path: str = "") -> Iterator[str]:
    """Yield the places of what Grafana's own models left out or changed."""
    if isinstance(written, dict) and isinstance(read, dict):
        for key, value in written.items():
            yield from _lost(value, read.get(key), f"{path}.{key}")
    elif isinstance(written, list) and isinstance(read, list) and len(written) == len(read):
        for index, (value, other) in enumerate(zip(written, read, strict=True)):
            yield from _lost(value, other, f"{path}[{index}]")
    elif written != read:
        yield path


def test_queries_ask_for_metrics_and_labels_that_there_are() -> None:
    from worker.service.limits.admission import Load

    metrics = Metrics("0", lambda: Load(running=0, queued=0))
    text = metrics.exposition().decode()
    known = dict(re.findall(r"^# TYPE (imgworker_\w+) (\w+)$", text, re.M))
    page = (PROJECT_DIR / "docs/observability.md").read_text()  # which another test holds against the metrics
    labels = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| `imgworker_\w+` \| \w+ \|([^|]*)\|", page, re.M))))
    codes = {code for cls in vars(errors).values() if isinstance(cls, type) and (code := getattr(cls, "code", None))}
    scraped = yaml.safe_load((DEPLOY / "monitoring/prometheus.yml").read_text())["scrape_configs"]
    apps = {config["static_configs"][0]["labels"]["app"] for config in scraped}
    for query in queries():
        for name in re.findall(r"imgworker_\w+", query):
            base = re.sub(r"_(bucket|sum|count)$", "", name)
            assert name in known or known.get(base) == "histogram", name
        assert set(re.findall(r'app="([^"]+)"', query)) <= apps
        assert set(re.findall(r'(\w+)=~?"', query)) <= labels | {"app", "instance", "pod", "le"}, query
        assert {code for choice in re.findall(r'code=~?"([^"]+)"', query) for code in choice.split("|")} <= codes


def test_prometheus_is_told_of_all_services_of_compose() -> None:
    scraped = yaml.safe_load((DEPLOY / "monitoring/prometheus.yml").read_text())["scrape_configs"]
    targets = {target for config in scraped for static in config["static_configs"] for target in static["targets"]}
    assert {target.split(":")[0] for target in targets} <= COMPOSE["services"].keys()
    secrets = {Path(config["authorization"]["credentials_file"]).name for config in scraped}
    assert secrets == set(COMPOSE["secrets"]) == set(COMPOSE["services"]["prometheus"]["secrets"])


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is not installed")
@pytest.mark.parametrize("file", ["prometheus.yml", "prometheus.kubernetes.yml"])
def test_promtool_takes_the_configuration(file: str, tmp_path: Path) -> None:
    config = yaml.safe_load((DEPLOY / "monitoring" / file).read_text())
    for job in config["scrape_configs"]:
        job.pop("kubernetes_sd_configs", None)  # Debian's build is without it
    (tmp_path / file).write_text(yaml.safe_dump(config))
    shutil.copy(DEPLOY / "monitoring" / "rules.yml", tmp_path)
    command = ["promtool", "check", "config", "--syntax-only", str(tmp_path / file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is not installed")
def test_promtool_makes_every_alert_fire_and_none_of_a_worker_at_peace(tmp_path: Path) -> None:
    shutil.copy(DEPLOY / "monitoring" / "rules.yml", tmp_path)
    played = yaml.safe_load((Path(__file__).parent / "rules.test.yml").read_text())
    expected = {sample["labels"] for sample in played["tests"][0]["promql_expr_test"][0]["exp_samples"]}
    names = {rule["alert"] for group in RULES["groups"] for rule in group["rules"]}
    assert expected == {f'{{alertname="{name}"}}' for name in names}
    shutil.copy(Path(__file__).parent / "rules.test.yml", tmp_path)
    command = ["promtool", "test", "rules", "rules.test.yml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_example_of_alerts_is_read() -> None:
    file = read_rules(DEPLOY / "monitoring" / "alerts.yaml", {}.get, lambda url: None)
    assert {rule.measure for rule in file.rules.values()} == {*MEASURES} - {"queue_length"}

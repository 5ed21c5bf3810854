"""Fleets on a platform, from models.yaml's tiers: deploy runpod."""

from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path

import yaml

from worker.app.cli.session import failures, settings_of
from worker.app.cli.terminal import Failure, Terminal
from worker.app.registry import build_registry
from worker.app.settings import process_environment
from worker.catalog.registry import Registry
from worker.core.model import Tier
from worker.remote.deployment.runpod_api import DeploymentError, RunPodApi
from worker.remote.deployment.runpod_fleet import FleetOrder, RunPodFleet, Step, fleet_entries, resources


def runpod(arguments: Namespace, terminal: Terminal) -> None:
    """Create or update template, endpoints and network volumes; with --dry-run only say what would be done."""
    settings = settings_of(terminal)
    with failures(terminal):
        registry = build_registry(settings)
    order = _order(arguments, registry)
    try:
        list(resources(order))  # whatever can be refused without the account is refused before it is asked
        if settings.runpod_api_key is None:
            raise Failure("RUNPOD_API_KEY is not set; make a key in RunPod's console under Settings, API keys.")
        fleet = RunPodFleet(RunPodApi(settings.runpod_api_key.get_secret_value(), settings.runpod_api_url), order)
        steps = fleet.plan()
        if not arguments.dry_run:
            steps = list(_shown(fleet.deploy(), terminal, arguments.json))
    except DeploymentError as error:
        raise Failure(str(error)) from None
    _print(steps, terminal, arguments)
    if arguments.fleet is not None and not arguments.dry_run:
        _write_fleet(Path(arguments.fleet), order, steps)


def _write_fleet(path: Path, order: FleetOrder, steps: list[Step]) -> None:
    """Write the endpoints as a gateway's fleet.yaml."""
    try:
        with path.open("x") as file:
            yaml.safe_dump({"replicas": fleet_entries(order, steps)}, file, sort_keys=False)
    except OSError as error:
        raise Failure(f"The endpoints are there; --fleet {path} is not written: {error.strerror}.") from None


def _order(arguments: Namespace, registry: Registry) -> FleetOrder:
    if arguments.volume_gb is not None and not 10 <= arguments.volume_gb <= 4096:
        raise Failure(f"--volume-gb must be from 10 to 4096; {arguments.volume_gb} was given.")
    if arguments.min_workers < 0:
        raise Failure(f"--min-workers must be at least 0; {arguments.min_workers} was given.")
    if arguments.fleet is not None and Path(arguments.fleet).exists():
        raise Failure(
            f"--fleet {arguments.fleet} is there already and is yours to edit; name a file that is not there."
        )
    image = arguments.image
    if ":" not in image.rpartition("/")[2] or image.endswith(":latest"):
        raise Failure(f"--image must name a version, as registry/name:0.1.0; {image} was given.")
    return FleetOrder(
        name=arguments.name,
        image=image,
        tiers=_tiers(arguments.tier or (), registry),
        data_centers=tuple(dict.fromkeys(arguments.data_center or ())),
        volume_gb=arguments.volume_gb,
        env=dict(_variable(text) for text in arguments.env or ()),
        min_workers=arguments.min_workers,
        load_balancing=arguments.load_balancing,
    )


def _tiers(names: Iterable[str], registry: Registry) -> dict[str, Tier]:
    """Return the named tiers, or those of models.yaml's models."""
    used = tuple(names) or tuple(spec.tier for spec in registry.models.values() if spec.tier)
    unknown = [name for name in used if name not in registry.tiers]
    if unknown:
        raise Failure(f"--tier {unknown[0]} is no tier of models.yaml; there are {', '.join(registry.tiers)}.")
    return {name: tier for name, tier in registry.tiers.items() if name in used}


def _variable(text: str) -> tuple[str, str]:
    """Return NAME=value as it stands, and a bare NAME with the value that it has here."""
    name, equals, value = text.partition("=")
    if equals:
        return name, value
    if name not in process_environment():
        raise Failure(f"--env {name} has no value and {name} is not set here; say --env {name}=VALUE.")
    return name, process_environment()[name]


def _shown(steps: Iterable[Step], terminal: Terminal, as_json: bool) -> Iterable[Step]:
    """Pass the steps on, and say each as it is done: a deployment that breaks off has said how far it came."""
    for step in steps:
        if not as_json and step.action in ("create", "update"):
            terminal.print(f"{step.action}d {step.kind} {step.name} ({step.id})")
        yield step


def _print(steps: list[Step], terminal: Terminal, arguments: Namespace) -> None:
    if arguments.json:
        rows = [
            {"action": step.action, "kind": step.kind, "name": step.name, "id": step.id, "fields": [*step.fields]}
            for step in steps
        ]
        terminal.json({"dry_run": arguments.dry_run, "steps": rows})
        return
    if arguments.dry_run:
        terminal.table(("do", "what", "name", "fields"), [_row(step) for step in steps])
    elif not any(step.action in ("create", "update") for step in steps):
        terminal.print("Everything is as it should be; nothing was changed.")
    for step in steps:
        if step.action == "leave":
            terminal.warn(f"endpoint {step.name} ({step.id}) is of no tier that is asked for; it was left as it is.")


def _row(step: Step) -> tuple[str, str, str, str]:
    fields = "" if step.action in ("keep", "leave") else ", ".join(step.fields)
    return step.action, step.kind, step.name, fields

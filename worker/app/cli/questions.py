"""Commands that ask about models: inspect, plan, schema, models, schedulers."""

from argparse import Namespace

from worker.app.cli.files import TypedFiles
from worker.app.cli.session import failures, open_worker, perform, settings_of
from worker.app.cli.terminal import Terminal
from worker.app.registry import build_registry
from worker.catalog.call import ModelCall
from worker.catalog.interface.sampling import fit_of
from worker.catalog.samplers import SAMPLERS
from worker.service.introspection.models import listed
from worker.wire.result import encode_answer

_TYPED = {"model": "MODEL"}


def inspect(arguments: Namespace, terminal: Terminal) -> None:
    """Say what a model is and how that is known; reads headers and JSON only."""
    _ask("inspect", arguments.model, terminal)


def plan(arguments: Namespace, terminal: Terminal) -> None:
    """Say what running a model here would take."""
    _ask("plan", arguments.model, terminal)


def schema(arguments: Namespace, terminal: Terminal) -> None:
    """Print the JSON Schema of a request for a model."""
    _ask("schema", arguments.model, terminal)


def models(arguments: Namespace, terminal: Terminal) -> None:
    """List the models of models.yaml."""
    with failures(terminal):
        answer = listed(build_registry(settings_of(terminal)))
    if arguments.json:
        terminal.json(encode_answer(answer))
        return
    terminal.table(
        ("model", "aliases", "tasks", "family", "served"),
        [
            (
                *(entry.id, ", ".join(entry.aliases), ", ".join(entry.tasks), entry.architecture or ""),
                "yes" if entry.served else "not yet",
            )
            for entry in answer.models
        ],
    )


def schedulers(arguments: Namespace, terminal: Terminal) -> None:
    """List the schedulers that a model can be sampled with, and the schedules of each."""
    model, files = _typed(arguments.model, terminal)
    with open_worker(terminal, unregistered=True, roots=files.roots, typed=_TYPED) as worker:
        known = worker.resolver.known(worker.resolver.resolve(model))
        call = next(iter(known.calls))
    rows, own = _rows(call)
    if arguments.json:
        terminal.json({"model": call.spec.id, "own": own, "schedulers": rows})
        return
    if not rows:
        terminal.print(f"{call.spec.id} keeps its own scheduler, or has none.")
        return
    terminal.table(
        ("scheduler", "also", "class", "schedules"),
        [(str(row["name"]), ", ".join(row["also"]), str(row["class"]), ", ".join(row["schedules"])) for row in rows],
    )


def _rows(call: ModelCall) -> tuple[list[dict[str, list[str] | str]], str | None]:
    """Return a row for each name that fits, and the class that the model brings."""
    fit = fit_of(call)
    rows: list[dict[str, list[str] | str]] = []
    named = [(sampler, cls) for sampler in SAMPLERS if (cls := fit.class_of(sampler))]
    for sampler, cls in named:
        also, schedules = [*sampler.aliases], [*fit.schedules_of(cls)]
        rows.append({"name": sampler.name, "also": also, "class": cls, "schedules": schedules})
    for cls in fit.classes:
        if cls not in [cls for _, cls in named]:
            rows.append({"name": cls, "also": [], "class": cls, "schedules": [*fit.schedules_of(cls)]})
    return rows, fit.own


def _ask(action: str, typed: str | None, terminal: Terminal) -> None:
    model, files = _typed(typed, terminal)
    payload = {"action": action} if model is None else {"action": action, "model": model}
    with open_worker(terminal, unregistered=True, roots=files.roots, typed=_TYPED) as worker:
        answer = perform(worker, terminal, payload)
    terminal.json(encode_answer(answer))


def _typed(model: str | None, terminal: Terminal) -> tuple[str | None, TypedFiles]:
    """Return the model that was typed, with a reference in place of a path, and what may be read for it."""
    settings = settings_of(terminal)
    files = TypedFiles(lambda name: build_registry(settings).find(name) is not None)
    with failures(terminal):
        return (None if model is None else files.reference(model)), files

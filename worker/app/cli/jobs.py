"""Commands that ask one thing of a worker: run, inspect, plan, schema, models."""

import base64
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from worker.app.cli.terminal import ERR, OUT, fail, ignore, open_worker, perform, progress_bars
from worker.core.answer import Answer, ModelList
from worker.transport.local_run import save_files
from worker.wire.result import encode_answer

app = typer.Typer()
Model = Annotated[str | None, typer.Argument(help="A model id of models.yaml, an alias, or a reference.")]


@app.command()
def run(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    model: Annotated[str | None, typer.Option("--model", "-m", help="Model id or reference.")] = None,
    image: Annotated[Path | None, typer.Option(help="An image to start from.", exists=True, dir_okay=False)] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    lora: Annotated[list[str] | None, typer.Option(help="A LoRA reference; may be repeated.")] = None,
    param: Annotated[
        list[str] | None, typer.Option("--param", "-p", help="Any other field, as name=value with a JSON value.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for the images.")] = None,
) -> None:
    """Generate images and save them."""
    fields: dict[str, Any] = {"prompt": prompt, "model": model, "seed": seed, "loras": [*(lora or [])]}
    if image is not None:
        fields["image"] = base64.b64encode(image.read_bytes()).decode()
    fields |= dict(_parameter(text) for text in param or [])
    with open_worker(unregistered=True) as worker, progress_bars() as show:
        payload = {name: value for name, value in fields.items() if value not in (None, [])}
        answer = perform(worker, payload, show)
    if not isinstance(answer, Answer):  # --param action=…
        OUT.print_json(json.dumps(encode_answer(answer)))
        return
    for warning in answer.warnings:
        ERR.print(f"[yellow]warning:[/yellow] {escape(warning)}", highlight=False, soft_wrap=True)
    uploaded = [location for file in answer.files if (location := file.url or file.path)]
    saved = [] if uploaded else save_files(answer, output or worker.settings.outputs_dir)
    print(*uploaded, *saved, sep="\n")  # noqa: T201


@app.command()
def inspect(model: Model = None) -> None:
    """Say what a model is and how that is known; reads headers and JSON only."""
    _answer({"action": "inspect", "model": model})


@app.command()
def plan(model: Model = None) -> None:
    """Say what running a model here would take."""
    _answer({"action": "plan", "model": model})


@app.command()
def schema(model: Model = None) -> None:
    """Print the JSON Schema of a request for a model."""
    _answer({"action": "schema", "model": model})


@app.command()
def models() -> None:
    """List the models of models.yaml."""
    with open_worker() as worker:
        answer = perform(worker, {"action": "models"}, ignore)
    entries = answer.models if isinstance(answer, ModelList) else ()
    table = Table("model", "aliases", "tasks", "family", "served")
    for entry in entries:
        aliases, tasks = ", ".join(entry.aliases), ", ".join(entry.tasks)
        table.add_row(entry.id, aliases, tasks, entry.architecture or "", "yes" if entry.served else "not yet")
    OUT.print(table)


def _answer(payload: dict[str, Any]) -> None:
    with open_worker(unregistered=True) as worker:
        answer = perform(worker, {name: value for name, value in payload.items() if value is not None}, ignore)
    OUT.print_json(json.dumps(encode_answer(answer)))


def _parameter(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        fail(f"--param {text!r} is not name=value.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value

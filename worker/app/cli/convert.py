"""The command that writes a model in another form or precision, and tries what it wrote before it says so."""

import json
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from PIL import Image

from worker.app.cli.files import TypedFiles
from worker.app.cli.run import WEIGHT
from worker.app.cli.session import failures, open_worker, settings_of
from worker.app.cli.terminal import Failure, Terminal
from worker.app.cli.trying import distance, lora_files, planned, small_image, spoken_distance, told
from worker.app.registry import build_registry
from worker.catalog.call import Model
from worker.core.adapter import LoraFiles
from worker.core.device import LoadPlan
from worker.core.errors import WorkerError

if TYPE_CHECKING:
    from worker.app.build import Worker
    from worker.engine.writing import Written

_TYPED = {"model": "MODEL", "vae": "--vae", "loras": "--lora", "output": "OUTPUT", "dtype": "--dtype", "to": "--to"}
_WRITTEN = "written"


def convert(arguments: Namespace, terminal: Terminal) -> None:
    """Write a model anew, load it again, compare every tensor, and generate an image with both."""
    settings = settings_of(terminal)
    files = TypedFiles(lambda name: build_registry(settings).find(name) is not None)
    target = Path(arguments.output).absolute()
    with failures(terminal):
        source = files.reference(arguments.model)
        vae = files.reference(arguments.vae) if arguments.vae else None
        loras = [(files.reference(name), weight) for name, weight in map(_weighted, arguments.lora)]
    if not target.parent.is_dir():
        raise Failure(f"There is no folder {target.parent}; make it first.")
    with open_worker(terminal, unregistered=True, roots=files.roots, typed=_TYPED) as worker:
        model, plan = planned(worker, source, terminal, vae)
        written = _write(plan, target, arguments, [lora_files(worker, *each, terminal) for each in loras])
        before = None
        if not arguments.no_image:
            asked: dict[str, Any] = {"loras": [{"model": name, "weight": weight} for name, weight in loras]}
            before = _before(worker, model, source, terminal, asked | ({"vae": vae} if vae else {}))
    entry = _entry(model, plan, target, single=arguments.to != "diffusers")
    after = None if arguments.no_image else _try(entry, model, [*files.roots, target, plan.root], terminal)
    _report(arguments, terminal, written, entry, distance(before, after))


def _before(
    worker: "Worker", model: Model, source: str, terminal: Terminal, asked: dict[str, Any]
) -> Image.Image | None:
    """Generate an image with the model as it was and what was baked in; None where no job can be given that VAE."""
    try:
        return small_image(worker, model, source, terminal, {name: value for name, value in asked.items() if value})
    except WorkerError as error:
        if error.field != "vae":
            raise
        return None


def _weighted(text: str) -> tuple[str, float]:
    """Read a LoRA and its weight, as they are typed: style.safetensors:0.8."""
    match = WEIGHT.fullmatch(text)
    return (match["model"], float(match["weight"])) if match else (text, 1.0)


def _write(plan: LoadPlan, target: Path, arguments: Namespace, loras: list[LoraFiles]) -> "Written":
    from worker.engine.writing import write_model  # torch, which a mistake in the line need not wait for

    return write_model(plan, target, arguments.to, arguments.dtype, loras)


def _entry(model: Model, plan: LoadPlan, target: Path, *, single: bool) -> dict[str, Any]:
    """Return what models.yaml has to say of what was written: of a single file also what its header may not show."""
    spec, detection = model.spec, model.detection
    entry: dict[str, Any] = {"source": f"file:{target}"}
    if spec.defaults:
        entry["defaults"] = dict(spec.defaults)
    if single:
        entry |= {"prediction_type": detection.prediction_type} if detection.prediction_type else {}
        entry |= {"architecture": detection.architecture} if detection.architecture else {}
        base = f"file:{plan.root}" if plan.format == "diffusers" else spec.base
        entry |= {"base": base} if base else {}
        entry |= {"config": spec.config} if spec.config else {}
    return entry


def _try(entry: dict[str, Any], model: Model, roots: list[Path], terminal: Terminal) -> Image.Image | None:
    """Generate an image with what was written, as a worker does that has it in models.yaml."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "models.yaml"
        file.write_text(json.dumps({"models": {_WRITTEN: entry}}))
        further = {"models_yaml": file, "default_model": _WRITTEN, "models_lock": Path("off"), "preload_models": ()}
        with open_worker(terminal, unregistered=True, roots=roots, further=further) as worker:
            return small_image(worker, model, _WRITTEN, terminal)


def _report(
    arguments: Namespace, terminal: Terminal, written: "Written", entry: dict[str, Any], psnr_db: float | None
) -> None:
    if arguments.json:
        terminal.json(
            {
                "path": str(written.path),
                "tensors": written.tensors,
                "bytes": written.bytes,
                "rounding": written.rounding,
                **told(psnr_db),
                "entry": entry,
            }
        )
        return
    terminal.print(
        f"{written.path}: {written.bytes / 1e6:.1f} MB; loaded again, {written.tensors} tensors came back within "
        f"{written.rounding:.1e} of their largest"
    )
    if psnr_db is not None:
        terminal.print(spoken_distance(psnr_db))
    terminal.print(yaml.safe_dump({"models": {written.path.stem: entry}}, sort_keys=False).rstrip())

"""The command that trains: a folder of images becomes a LoRA, and its samples are what serving draws with it."""

import asyncio
import re
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from worker.app.build import Worker
from worker.app.cli.run import plain_value
from worker.app.cli.session import failures, open_worker
from worker.app.cli.terminal import Failure, Terminal
from worker.app.interrupt import raised_interrupts
from worker.catalog.call import Model
from worker.catalog.interface.sizes import size_bounds
from worker.core.answer import Answer
from worker.core.errors import UnsupportedModel
from worker.core.fingerprint import fingerprint
from worker.core.model import ModelFiles, Task
from worker.core.result import ignore_progress
from worker.core.turn import StopSignal
from worker.training.dataset import Dataset, read_dataset
from worker.training.options import TrainingOptions
from worker.training.run import Subject, TrainingRun, shown
from worker.transport.job_input import read_input

T = TypeVar("T")
_OPTIONS = (
    "steps", "batch_size", "learning_rate", "method", "rank", "targets", "resolution", "trigger", "caption",
    "caption_dropout", "min_snr", "held_out", "save_every", "seed",
)  # fmt: skip
_TEXTS = ("method", "targets", "trigger", "caption")


def train(arguments: Namespace, terminal: Terminal) -> None:
    """Train an adapter, or go on with one, and say where it is."""
    options, data = _options(arguments), Path(arguments.data).expanduser().resolve()
    minutes = _minutes(arguments.minutes)
    with failures(terminal, _typed()):
        dataset = read_dataset(data, trigger=options.trigger, caption=options.caption)
    for fault in shown(dataset.faults):
        terminal.warn(fault)
    if arguments.check:
        _say_what_is_there(terminal, options, dataset, as_json=arguments.json)
        return
    name = re.sub(r"[^\w.-]+", "-", data.stem).strip("-.") or "trained"
    folder = Path(arguments.output).expanduser() if arguments.output else Path("trained") / name
    folder = folder.resolve()
    with open_worker(terminal, unregistered=True, roots=(folder,), typed=_typed()) as worker:
        composed = _Trained(worker, terminal, worker.resolver.known(worker.resolver.resolve(arguments.model)))
        run = TrainingRun(folder, name, composed.subject(options), options, dataset, composed.turn, composed.draw)
        file = _finished(run, terminal, minutes)
    files = [file, file.with_name(f"{file.stem}-kohya.safetensors"), folder / "loss.png"]
    if arguments.json:
        terminal.json({"files": [*map(str, files)], "steps": len(run.losses), "dataset": dataset.digest})
        return
    for path in [*files, *sorted((folder / "samples").glob(f"step-{len(run.losses):06d}-*.png"))]:
        terminal.print(str(path))


def _finished(run: TrainingRun, terminal: Terminal, minutes: float | None) -> Path:
    stop = StopSignal()
    try:
        with raised_interrupts():
            return asyncio.run(run.run(terminal.show, stop, minutes))
    except KeyboardInterrupt:
        raise Failure(
            f"stopped after step {len(run.losses)}; the same command goes on from the last checkpoint in {run.folder}."
        ) from None


@dataclass(frozen=True, slots=True)
class _Trained:
    """The worker that trains and serves: its one engine thread does both in turns."""

    worker: Worker
    terminal: Terminal
    model: Model

    def subject(self, options: TrainingOptions) -> Subject:
        """Return the model with what the trainer needs to know. Raises UnsupportedModel."""
        model, bounds = self.model, size_bounds(self.model)
        pipeline = model.pipeline_for(Task.IMAGE_TO_IMAGE) if Task.IMAGE_TO_IMAGE in model.tasks else None
        if pipeline is None:
            raise UnsupportedModel(
                f"{model.spec.id} has no image-to-image pipeline, whose way of reading images a training needs; train "
                "another model.",
                field="model",
            )
        files = self.worker.provisioner.model_files(model, self.terminal.show, StopSignal())
        return Subject(
            model.spec.id,
            _digest(model, files),
            model.architecture.id if model.architecture else None,
            bounds.native,
            bounds.multiple,
            lambda: self._load(files, pipeline, options),
        )

    def _load(self, files: ModelFiles, pipeline: str, options: TrainingOptions) -> Any:
        """Load the trainer's own copy of the pipeline. Runs in the engine's thread."""
        from worker.engine.devices import choose_device, probe
        from worker.engine.loader import load_pipeline, view
        from worker.engine.plan import make_plan

        spec = self.model.spec
        if options.dtype is not None:
            spec = spec.model_copy(update={"dtype": options.dtype})
        device = probe(choose_device(self.worker.settings.device))
        plan = make_plan(Model(spec, self.model.detection), files, device, megapixels=1.0)
        if plan.offload != "none":
            raise UnsupportedModel(
                f"{spec.id} does not fit into the memory of {device.name} as a whole, and an offloaded model cannot be "
                "trained; use a larger device or a smaller model.",
                field="model",
            )
        return view(load_pipeline(plan), pipeline)

    async def turn(self, work: Callable[[], T], label: str) -> T:
        """Run a piece of the training in the engine's thread."""
        return await self.worker.engine.call(lambda _: work(), label)

    async def draw(self, file: Path | None, prompt: str, seed: int) -> bytes:
        """Return an image as a caller would get it who names this LoRA."""
        request: dict[str, Any] = {"model": self.model.spec.id, "prompt": prompt, "seed": seed}
        if file is not None:
            request["loras"] = [str(file)]
        answer = await self.worker.operations.perform(read_input(request), "sample", ignore_progress)
        return answer.files[0].data if isinstance(answer, Answer) else b""


def _digest(model: Model, files: ModelFiles) -> str:
    """Return a digest of which weights these are, without reading them."""
    root = files.root
    listed = [root] if root.is_file() else sorted(each for each in root.rglob("*") if each.is_file())
    return fingerprint((model.spec.source, files.revision, [(each.name, each.stat().st_size) for each in listed]))


def _options(arguments: Namespace) -> TrainingOptions:
    typed: dict[str, Any] = {"flip": arguments.flip, "samples": tuple(arguments.sample)}
    for name in _OPTIONS:
        if (text := getattr(arguments, name)) is not None:
            typed[name] = text if name in _TEXTS else plain_value(text)
    try:
        return TrainingOptions.model_validate(typed)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]).replace("_", "-")
        raise Failure(f"--{name}: {first['msg'][0].lower()}{first['msg'][1:]}; {first['input']!r} was given.") from None


def _minutes(text: str | None) -> float | None:
    try:
        minutes = None if text is None else float(text)
    except ValueError:
        minutes = 0.0
    if minutes is not None and not minutes > 0:
        raise Failure(f"--minutes must be a number over 0; {text!r} was given.")
    return minutes


def _typed() -> dict[str, str]:
    return {name: f"--{name.replace('_', '-')}" for name in (*_OPTIONS, "model", "output")} | {"data": "DATA"}


def _say_what_is_there(terminal: Terminal, options: TrainingOptions, dataset: Dataset, *, as_json: bool) -> None:
    """Say what would be learnt."""
    images = len(dataset.examples)
    rounds = options.steps * options.batch_size / images / (2 if options.flip else 1)
    facts = {
        "images": images,
        "captions": sum(bool(each.caption) for each in dataset.examples),
        "smallest": min(min(each.width, each.height) for each in dataset.examples),
        "largest": max(max(each.width, each.height) for each in dataset.examples),
        "times_each_image_is_seen": round(rounds, 1),
        "faults": list(dataset.faults),
    }
    if as_json:
        terminal.json(facts)
        return
    for name, value in facts.items():
        if name != "faults":
            terminal.print(f"{name.replace('_', ' ')}: {value}")

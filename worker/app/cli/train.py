"""The command that trains: a folder of images becomes a LoRA, and its samples are what serving draws with it."""

import asyncio
from argparse import Namespace
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from worker.app.ai_toolkit import Trainers
from worker.app.cli.hub_repository import check_repository, commit
from worker.app.cli.run import plain_value
from worker.app.cli.session import failures, open_worker, settings_of
from worker.app.cli.terminal import Failure, Terminal
from worker.app.cli.training_data import laid_data, name_of, typed_data
from worker.app.interrupt import raised_interrupts
from worker.app.registry import build_registry
from worker.catalog.licences import warning_of
from worker.core.model import ModelSpec
from worker.core.training import DatasetFacts, TrainingData, TrainingOptions, TrainingOutcome, check_read
from worker.core.turn import StopSignal
from worker.service.training.trainings import Order
from worker.training.dataset import Dataset, read_as_asked, shown
from worker.training.demands import check_demands

_OPTIONS = (
    "steps", "batch_size", "learning_rate", "method", "rank", "targets", "resolution", "trigger", "caption",
    "caption_dropout", "min_snr", "held_out", "save_every", "seed", "vectors", "like", "class_prompt", "class_images",
    "class_weight", "optimizer", "ema", "patience", "mask", "mask_floor", "accumulation", "template", "precision",
    "crop", "crops", "trainer", "sample_captions", "lora_plus",
)  # fmt: skip
_TEXTS = (
    "method", "optimizer", "targets", "trigger", "caption", "like", "class_prompt", "mask", "template", "crop",
    "precision", "trainer",
)  # fmt: skip


def train(arguments: Namespace, terminal: Terminal) -> None:
    """Train an adapter, or go on with one, and say where it is."""
    typed: str = arguments.data if arguments.named_data is None else arguments.named_data
    options, name = _options(arguments), name_of(typed)
    minutes = _minutes(arguments, terminal)
    folder = Path(arguments.output).expanduser() if arguments.output else Path("trained") / name
    folder = folder.resolve()
    with failures(terminal, _typed()):
        data = typed_data(typed)
        check_read(options)
        check_demands(options)
    if arguments.check:
        spec = _listed(arguments.model, terminal)
        options = options.of_model(spec.training if spec else None)
        _check(data, folder, options, terminal, as_json=arguments.json)
        return
    if arguments.publish:
        check_repository(settings_of(terminal), arguments.publish)
    with open_worker(terminal, unregistered=True, roots=(folder,), typed=_typed()) as worker:
        model = worker.resolver.known(worker.resolver.resolve(arguments.model))
        if warning := warning_of(model.spec.id, worker.trainer.licence(model.spec)):
            terminal.warn(warning)
        path = laid_data(data, folder, terminal)
        options = options.of_model(model.spec.training)
        outcome = _finished(worker.trainer, Order(model, options, name, folder, path, minutes), terminal)
    files = [outcome.file, *outcome.beside]
    if outcome.note:
        terminal.warn(outcome.note)
    published = _published(outcome, arguments, terminal) if arguments.publish else None
    if arguments.json:
        digest = outcome.dataset.digest
        terminal.json({"files": [*map(str, files)], "steps": outcome.steps, "dataset": digest, "published": published})
        return
    for path in files:
        terminal.print(str(path))
    if published:
        terminal.print(published)


def _listed(model: str | None, terminal: Terminal) -> ModelSpec | None:
    """Return the model that is meant, if models.yaml has it."""
    settings = settings_of(terminal)
    with failures(terminal, _typed()):
        return build_registry(settings).find(model or settings.default_model)


def _published(outcome: TrainingOutcome, arguments: Namespace, terminal: Terminal) -> str:
    """Put what came of it into a repository on the Hub, and return the commit's address."""
    file, whole = outcome.file, outcome.file.is_dir()
    folder = file.parents[1] if whole else file.parent
    files: dict[str, bytes | Path] = {each.relative_to(folder).as_posix(): each for each in outcome.beside}
    own = sorted(each for each in file.rglob("*") if each.is_file()) if whole else [file]
    files |= {each.relative_to(file if whole else folder).as_posix(): each for each in own}
    mark, message = "model_index.json" if whole else file.name, f"{folder.name} after {outcome.steps} steps"
    settings, repository = settings_of(terminal), arguments.publish
    return commit(settings, repository, files, mark, message, private=arguments.private)


def _finished(trainer: Trainers, order: Order, terminal: Terminal) -> TrainingOutcome:
    steps = 0

    def warn(facts: DatasetFacts) -> None:
        for fault in shown(facts.faults):
            terminal.warn(fault)

    def count(done: int, earlier: int, seconds: float) -> None:
        nonlocal steps
        steps = done

    order = replace(order, on_data=warn, on_steps=count)
    try:
        with raised_interrupts():
            return asyncio.run(trainer.train(order, terminal.show, StopSignal()))
    except KeyboardInterrupt:
        raise Failure(
            f"stopped after step {steps}; the same command goes on from the last checkpoint in {order.folder}."
        ) from None


def _check(
    data: Path | TrainingData, folder: Path, options: TrainingOptions, terminal: Terminal, *, as_json: bool
) -> None:
    with failures(terminal, _typed()):
        dataset = read_as_asked(laid_data(data, folder, terminal), options)
    for fault in shown(dataset.faults):
        terminal.warn(fault)
    _say_what_is_there(terminal, options, dataset, as_json=as_json)


def _options(arguments: Namespace) -> TrainingOptions:
    typed: dict[str, Any] = {
        "flip": arguments.flip,
        "text_encoder": arguments.text_encoder,
        "tensorboard": arguments.tensorboard,
        "samples": tuple(arguments.sample),
    }
    for name in _OPTIONS:
        if (text := getattr(arguments, name)) is not None:
            typed[name] = text if name in _TEXTS else plain_value(text)
    try:
        return TrainingOptions.model_validate(typed)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]).replace("_", "-")
        raise Failure(f"--{name}: {first['msg'][0].lower()}{first['msg'][1:]}; {first['input']!r} was given.") from None


def _minutes(arguments: Namespace, terminal: Terminal) -> float | None:
    """Return for how long it may train: the said minutes, and those that the said dollars pay for."""
    minutes, usd = _over_0("--minutes", arguments.minutes), _over_0("--max-usd", arguments.max_usd)
    if usd is None:
        return minutes
    price = settings_of(terminal).gpu_price_per_hour
    if not price:
        raise Failure("--max-usd cannot be held: set GPU_PRICE_PER_HOUR to what an hour costs, or give --minutes.")
    paid = usd / price * 60
    return paid if minutes is None else min(minutes, paid)


def _over_0(option: str, text: str | None) -> float | None:
    try:
        number = None if text is None else float(text)
    except ValueError:
        number = 0.0
    if number is not None and not 0 < number < inf:
        raise Failure(f"{option} must be a number over 0; {text!r} was given.")
    return number


def _typed() -> dict[str, str]:
    return {name: f"--{name.replace('_', '-')}" for name in (*_OPTIONS, "model")} | {"data": "DATA", "name": "--output"}


def _say_what_is_there(terminal: Terminal, options: TrainingOptions, dataset: Dataset, *, as_json: bool) -> None:
    """Say what would be learnt."""
    images = len(dataset.examples)
    facts = {
        "images": images,
        "images_with_repeats": dataset.lessons,
        "captions": sum(bool(each.caption) for each in dataset.examples),
        "masks": sum(each.mask is not None for each in dataset.examples),
        "sources": sum(each.source is not None for each in dataset.examples),
        "smallest": min(min(each.width, each.height) for each in dataset.examples),
        "largest": max(max(each.width, each.height) for each in dataset.examples),
        "times_each_image_is_seen": round(dataset.rounds(options), 1),
        "faults": list(dataset.faults),
    }
    if as_json:
        terminal.json(facts)
        return
    for name, value in facts.items():
        if name != "faults":
            terminal.print(f"{name.replace('_', ' ')}: {value}")

"""The command that makes a model's weights smaller once, keeps them on the volume, and says what that costs."""

import asyncio
import io
import time
from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import JsonValue

from worker.app.build import Worker
from worker.app.cli.files import TypedFiles
from worker.app.cli.session import failures, open_worker, settings_of
from worker.app.cli.terminal import Terminal
from worker.app.registry import build_registry
from worker.catalog.call import Model
from worker.catalog.interface.sizes import size_bounds
from worker.core.answer import Answer
from worker.core.device import LoadPlan
from worker.core.errors import UnsupportedModel
from worker.core.model import ModelFiles, Task
from worker.core.precision import KEPT, Precision, form_name
from worker.core.result import ignore_progress
from worker.core.turn import StopSignal
from worker.service.local.weights import identity
from worker.store.reduced import ReducedWeights, write_report
from worker.transport.job_input import read_input

_TYPED = {"model": "MODEL", "precision": "--to"}
_PROMPTS = ("a red apple on a table", "a portrait of an old sailor", "a street in the rain at night")
_SEED = 7
_GIB = 2**30


def quantize(arguments: Namespace, terminal: Terminal) -> None:
    """Make the weights of a model smaller, keep them, and print how near its images are to those of the whole model."""
    settings = settings_of(terminal)
    files = TypedFiles(lambda name: build_registry(settings).find(name) is not None)
    with failures(terminal):
        model = files.reference(arguments.model)
    further = {"allow_precision": True}
    with open_worker(terminal, unregistered=True, roots=files.roots, typed=_TYPED, further=further) as worker:
        report = asyncio.run(_Quantizing(worker, terminal, model, arguments.to).run())
    if arguments.json:
        terminal.json(report)
        return
    terminal.table(("what", "whole", str(report["precision"])), _rows(report))
    terminal.print(f"Kept in {report['folder']}; jobs of this model with precision {report['precision']} take it.")


@dataclass(frozen=True, slots=True)
class _Drawn:
    """The images of the fixed prompts, and the seconds of loading and of one image."""

    images: tuple[np.ndarray[Any, Any], ...]
    load_s: float
    image_s: float
    peak_memory_gb: float


@dataclass(frozen=True, slots=True)
class _Quantizing:
    worker: Worker
    terminal: Terminal
    name: str
    precision: Precision

    async def run(self) -> dict[str, JsonValue]:
        """Generate whole, make smaller, keep, generate again; return the report."""
        model, files, whole, smaller = await self._plans()
        await self.worker.engine.call(lambda _: _import(whole), "import")  # which is no part of loading a model
        before = await self._drawn(model, whole.precision)
        started = time.monotonic()
        volume = ReducedWeights(self.worker.settings.volume / "reduced")
        form = form_name(smaller.precision, smaller.dtype, smaller.quantizer or "gguf")
        entry = await self.worker.engine.call(
            lambda _: volume.publish(identity(model.spec, files), form, lambda folder: _write(smaller, folder), {}),
            f"quantize {model.spec.id}",
        )
        made_s = time.monotonic() - started
        after = await self._drawn(model, smaller.precision)
        report = self._report(model, (whole, smaller), (before, after), made_s)
        write_report(entry, report)
        return report | {"folder": str(entry)}

    async def _plans(self) -> tuple[Model, ModelFiles, LoadPlan, LoadPlan]:
        """Return the model, its files, and how it is loaded whole and smaller. Raises UnsupportedModel, OutOfMemory."""
        from worker.engine.plan import make_plan

        resolver = self.worker.resolver
        asked = resolver.resolve(self.name).model_copy(
            update={"precision": self.precision, "device_map": None, "context_parallel": None}
        )
        model = resolver.known(asked)
        if model.detection.format != "diffusers" or Task.TEXT_TO_IMAGE not in model.tasks:
            raise UnsupportedModel(
                f"quantize keeps diffusers repositories that generate images from text, and {asked.id} is none; name "
                f"the precision in requests or in models.yaml, which makes it smaller at each load.",
                field="model",
            )
        files = self.worker.provisioner.model_files(model, self.terminal.show, StopSignal())
        device = await self.worker.engine.device_info()
        megapixels = size_bounds(model).native ** 2 / 1e6
        plain = Model(asked.model_copy(update={"precision": None}), model.detection)
        smaller = make_plan(model, files, device, megapixels=megapixels)
        if smaller.quantizer not in KEPT:
            raise UnsupportedModel(
                f"precision {self.precision} is held by {smaller.quantizer} here, whose weights are made at each load "
                f"and not kept; use --to fp8, or uninstall {smaller.quantizer}.",
                field="precision",
            )
        return model, files, make_plan(plain, files, device, megapixels=megapixels), smaller

    async def _drawn(self, model: Model, precision: Precision) -> _Drawn:
        """Generate the fixed prompts, as a caller would."""
        images, load_s, image_s, peak = [], 0.0, 0.0, 0.0
        for prompt in model.spec.subjects[:3] or _PROMPTS:
            request = {"model": self.name, "prompt": prompt, "seed": _SEED, "precision": precision}
            answer = await self.worker.operations.perform(read_input(request), f"{precision} {prompt}", ignore_progress)
            if not isinstance(answer, Answer):
                continue
            with Image.open(io.BytesIO(answer.files[0].data)) as image:
                images.append(np.asarray(image.convert("RGB"), dtype=np.float64))
            load_s += answer.timings.load_s
            image_s = answer.timings.inference_s
            peak = max(peak, answer.usage.peak_memory_gb)
        return _Drawn(tuple(images), load_s, image_s, peak)

    def _report(
        self, model: Model, plans: tuple[LoadPlan, LoadPlan], drawn: tuple[_Drawn, _Drawn], made_s: float
    ) -> dict[str, JsonValue]:
        (_, smaller), (before, after) = plans, drawn
        near = [_psnr(one, other) for one, other in zip(before.images, after.images, strict=True)]
        return {
            "model": model.spec.id,
            "precision": smaller.precision,
            "quantizer": smaller.quantizer,
            "dtype": smaller.dtype,
            "device": smaller.device,
            "psnr_db": [None if value is None else round(value, 1) for value in near],  # None for equal images
            "weight_gb": [round(plan.weight_bytes / _GIB, 3) for plan in plans],
            "peak_memory_gb": [round(each.peak_memory_gb, 2) for each in drawn],
            "load_s": [round(each.load_s, 2) for each in drawn],
            "image_s": [round(each.image_s, 2) for each in drawn],
            "made_s": round(made_s, 2),
        }


def _import(plan: LoadPlan) -> None:
    from worker.engine.classes import pipeline_class

    pipeline_class(plan.pipeline)


def _write(plan: LoadPlan, folder: Path) -> None:
    """Load the weights, make them smaller, and write them. Runs in the engine's thread."""
    from worker.engine.loader import load_pipeline
    from worker.engine.reduced_weights import save_reduced

    # What does not fit onto the device as a whole is made smaller beside it.
    device = plan.device if plan.offload == "none" else "cpu"
    save_reduced(load_pipeline(replace(plan, reduced=None, device=device, offload="none")), folder)


def _psnr(image: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float | None:
    error = float(np.mean((image - other) ** 2))
    return float(10 * np.log10(255**2 / error)) if error else None


def _rows(report: dict[str, JsonValue]) -> list[tuple[str, str, str]]:
    names = ("weight_gb", "peak_memory_gb", "load_s", "image_s")
    pairs = [(name, report[name]) for name in names]
    rows = [(name, str(pair[0]), str(pair[1])) for name, pair in pairs if isinstance(pair, list)]
    near = report["psnr_db"]
    texts = ["equal" if value is None else str(value) for value in near] if isinstance(near, list) else []
    return [*rows, ("psnr_db", "", ", ".join(texts)), ("made_s", "", str(report["made_s"]))]

"""A model to be written anew, and the small images by which what was written is held against it."""

import io
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageChops, ImageStat

from worker.app.cli.session import LONG_S, perform
from worker.app.cli.terminal import Terminal
from worker.catalog.call import Model
from worker.catalog.interface.sizes import size_bounds
from worker.core.adapter import Adapter, LoraFiles
from worker.core.answer import Answer
from worker.core.device import LoadPlan
from worker.core.model import LoraSpec, ModelFiles, Task
from worker.core.turn import StopSignal
from worker.engine.machine import cpu_info
from worker.engine.plan import make_plan
from worker.service.local.weights import examine_lora

if TYPE_CHECKING:
    from worker.app.build import Worker

_SIDE = 512  # of the image that is tried, where the model's own is larger


def planned(worker: "Worker", source: str, terminal: Terminal, vae: str | None = None) -> tuple[Model, LoadPlan]:
    """Return the model, with another VAE if one is named, and the plan to load it by; its files are here then."""
    spec = worker.resolver.resolve(source).model_copy(update={"device_map": None, "context_parallel": None})
    known = worker.resolver.known(spec.model_copy(update={"vae": vae}) if vae else spec)
    files = worker.provisioner.model_files(known, terminal.show, StopSignal(LONG_S))
    device = cpu_info()
    return known, make_plan(known, files, replace(device, free_bytes=2**60), megapixels=0.25)


def lora_files(worker: "Worker", name: str, weight: float, terminal: Terminal) -> LoraFiles:
    """Return a LoRA's file, fetched if need be, as a job has it."""
    source = worker.resolver.adapter_source(name, None, "loras")
    files = worker.store.ensure(source, None, terminal.show, StopSignal(LONG_S))
    return _as_in_a_job(LoraSpec(model=name, weight=weight), files)


def lora_file(path: Path) -> LoraFiles:
    """Return a LoRA's file of this machine as a job has it."""
    return _as_in_a_job(LoraSpec(model=path.name), ModelFiles(path, path.stat().st_size))


def _as_in_a_job(spec: LoraSpec, files: ModelFiles) -> LoraFiles:
    found = examine_lora(files.root)
    return LoraFiles(Adapter(spec), files, found.detection, found.sha256, keys=found.keys, scaling=found.scaling)


def small_image(
    worker: "Worker", model: Model, name: str, terminal: Terminal, asked: Mapping[str, Any] = MappingProxyType({})
) -> Image.Image | None:
    """Generate one small image; None for a model that makes none of words alone. A black one is refused on the way."""
    if Task.TEXT_TO_IMAGE not in model.tasks:
        return None
    side = min(_SIDE, size_bounds(model).native)
    payload: dict[str, Any] = {
        **asked,
        "model": name,
        "prompt": "a red apple",
        "seed": 1,
        "task": Task.TEXT_TO_IMAGE.value,
    }
    answer = perform(worker, terminal, payload | {"num_inference_steps": 2, "width": side, "height": side})
    perform(worker, terminal, {"action": "unload", "model": name})
    if not isinstance(answer, Answer) or answer.files[0].data is None:
        return None
    return Image.open(io.BytesIO(answer.files[0].data)).convert("RGB")


def distance(before: Image.Image | None, after: Image.Image | None) -> float | None:
    """Return how near two images are, in decibels of PSNR: infinite for equal ones."""
    if before is None or after is None:
        return None
    squares = ImageStat.Stat(ImageChops.difference(before, after)).sum2
    error = sum(squares) / (3 * before.width * before.height)
    return math.inf if not error else 10 * math.log10(255**2 / error)


def told(psnr_db: float | None) -> dict[str, Any]:
    """Return a distance as a command's JSON says it."""
    is_known = psnr_db is not None and not math.isinf(psnr_db)
    return {
        "psnr_db": round(psnr_db, 1) if psnr_db is not None and is_known else None,
        "same_image": psnr_db is not None and math.isinf(psnr_db),
    }


def spoken_distance(psnr_db: float) -> str:
    """Return a distance in words."""
    return "the same image" if math.isinf(psnr_db) else f"an image within {psnr_db:.1f} dB of the first one's"

"""One tiny pipeline per family, and what tests do with it: draw as floats, apply a file, compare with a merge."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline

from tests import builders
from tests.loras import Lora, merged
from worker.core.adapter import Adapter, LoraFiles
from worker.core.model import LoraSpec, ModelFiles
from worker.engine.adapters.host import Host
from worker.engine.adapters.lora import LoraCache
from worker.engine.resident import Resident
from worker.service.local.weights import examine_lora

BUILDERS = {"sd1": builders.tiny_sd1, "sdxl": builders.tiny_sdxl, "flux": builders.tiny_flux, "sd3": builders.tiny_sd3}


class Bench:
    """A loaded pipeline of one family."""

    def __init__(self, family: str, folder: Path) -> None:
        self.folder = folder / family
        self.pipe: Any = DiffusionPipeline.from_pretrained(BUILDERS[family](self.folder))
        self.pipe.set_progress_bar_config(disable=True)
        self.cache = LoraCache(2)
        self._references: dict[str, np.ndarray] = {}
        self._weights = {key: value.clone() for key, value in self._all()}
        self.plain = self.draw()
        self._hooks = self._count_hooks()  # transformers puts some of its own

    def draw(self, prompt: str = "a red apple") -> np.ndarray:
        """An image of 32 x 32 as floats, from a fixed seed."""
        generator = torch.Generator().manual_seed(0)
        answer = self.pipe(prompt, num_inference_steps=2, width=32, height=32, generator=generator, output_type="np")
        return np.asarray(answer.images)

    def reference(self, key: str, loras: Sequence[tuple[Lora, float]]) -> np.ndarray:
        """The image with W + ΔW in the weights; drawn once for each `key`."""
        if key not in self._references:
            with merged(self.pipe, loras):
                self._references[key] = self.draw()
        return self._references[key]

    def applied(self, files: Sequence[LoraFiles], prompt: str = "a red apple"):
        """The image with the worker's own way, and what it reports."""
        with self.cache.applied(host(self.pipe, "tiny"), files) as effect:
            return self.draw(prompt), effect.reports

    def assert_untouched(self) -> None:
        """Every weight is bit-equal to what was loaded, and no module has one hook more."""
        assert all(torch.equal(value, self._weights[key]) for key, value in self._all())
        assert self._count_hooks() == self._hooks

    def _count_hooks(self) -> int:
        modules = [m for part in self._parts().values() for m in part.modules()]
        return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)

    def _parts(self) -> dict[str, torch.nn.Module]:
        return {name: part for name, part in self.pipe.components.items() if isinstance(part, torch.nn.Module)}

    def _all(self):
        for name, part in self._parts().items():
            yield from ((f"{name}.{key}", value) for key, value in part.state_dict().items())


def adapter(lora: Lora, path: Path, weight: float = 1.0, **options: object) -> LoraFiles:
    """A LoRA on disk as the service hands it to the engine."""
    file = examine_lora(lora.save(path))
    return LoraFiles(
        Adapter(LoraSpec(model=path.name, weight=weight, **options)),
        ModelFiles(path, path.stat().st_size),
        file.detection,
        file.sha256,
        keys=file.keys,
        scaling=file.scaling,
        trigger_words=file.trigger_words,
    )


def host(pipe, model: str) -> Host:
    """`pipe` as it stands, to put adapters on."""
    bare = Host(Resident(model, None, pipe, None), type(pipe).__name__, model)
    bare.pipe = pipe
    return bare


def assert_same(image: np.ndarray, reference: np.ndarray) -> None:
    """Equal to 1e-4 of the range of colours, and not for want of an effect."""
    assert np.abs(image - reference).max() < 1e-4

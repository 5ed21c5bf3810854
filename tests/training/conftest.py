"""A small dataset, and pipelines that a trainer may spoil."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch

from tests import builders
from worker.app.build import build_worker
from worker.core.training import TrainingOptions
from worker.training.dataset import read_dataset
from worker.training.lessons import Lessons
from worker.training.trainer import Trainer

CLASSES = {
    "sd1": (builders.tiny_sd1, "StableDiffusionImg2ImgPipeline"),
    "sdxl": (builders.tiny_sdxl, "StableDiffusionXLImg2ImgPipeline"),
    "sd3": (builders.tiny_sd3, "StableDiffusion3Img2ImgPipeline"),
    "flux": (builders.tiny_flux, "FluxImg2ImgPipeline"),
}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """Four images of two shapes, each with a caption of its own."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.RandomState(0)
    for index in range(4):
        shape = (64, 64, 3) if index < 3 else (48, 96, 3)
        PIL.Image.fromarray((random.rand(*shape) * 255).astype("uint8")).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"thing {index}")
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Callable[[str], Any]:
    """A function that loads a fresh tiny pipeline of a family."""
    folder = tmp_path_factory.mktemp("tiny")

    def load(family: str) -> Any:
        make, cls = CLASSES[family]
        if not (folder / family).exists():
            make(folder / family)
        off = {"safety_checker": None, "requires_safety_checker": False} if family == "sd1" else {}
        pipe = getattr(diffusers, cls).from_pretrained(folder / family, **off)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    load.folder = folder
    return load


@pytest.fixture
def trains(settings):
    """A function that builds a worker which trains."""
    return lambda **changes: build_worker(settings.model_copy(update={"training": "shared", **changes}))


@pytest.fixture
def trainer(tiny, images, tmp_path) -> Callable[..., Trainer]:
    """A function that makes a trainer which has begun."""

    def make(family: str = "sd1", checkpoint: Any = None, data: Path = images, **options: Any) -> Trainer:
        settings = {"rank": 2, "learning_rate": 3e-3, "resolution": 64, "decay": "constant", "warmup_steps": 1}
        made = Trainer(tiny(family), TrainingOptions(**settings | options), 64, 16)
        lessons = Lessons(tmp_path / "lessons", family)
        learnt, held = read_dataset(data).split(options.get("held_out", 0.0))
        made.prepare(learnt, held, lessons, lambda done, total: None)
        made.begin(checkpoint)
        return made

    return make

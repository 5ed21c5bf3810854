"""What a worker answered, as pixels; and what plain diffusers draws, to compare with."""

import base64
import functools
import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.answers import files_of

torch.set_num_threads(1)


def pixels(answer: dict[str, Any], index: int = 0) -> np.ndarray:
    """Image `index` of an answer as HxWx3 bytes."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(files_of(answer)[index]))).convert("RGB"))


def assert_differs(one: np.ndarray, other: np.ndarray, least: float = 8) -> None:
    """Assert that some value differs by `least` of 255, which rounding does on no machine.

    Both are images of one size, of whole numbers to 255 or of floats to 1. Random weights show a change well only if
    they are scaled for it: where this fails, it is the model that is to be made livelier, not the bound lower.
    """
    assert one.shape == other.shape
    most = np.abs(one.astype(float) - other.astype(float)).max() * (255 if one.dtype.kind == "f" else 1)
    assert most >= least, f"the most that differs is {most:.2g} of 255"


def assert_all_differ(*images: np.ndarray) -> None:
    """Assert that each of these images is seen to be another one than each of the rest."""
    for one, other in itertools.combinations(images, 2):
        assert_differs(one, other)


def encoded(array: np.ndarray) -> str:
    """HxWx3 bytes as the base64 of a PNG."""
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def gradient(width: int, height: int) -> np.ndarray:
    """An image with something to see in it."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return np.stack([x, y, 255 - x], axis=-1).astype(np.uint8)


def drawn_by_diffusers(folder: Path, seed: int, cls: str = "DiffusionPipeline", **arguments: Any) -> np.ndarray:
    """What a direct call of the pipeline in `folder` draws with a CPU generator of `seed`."""
    pipe = _pipeline(folder, cls)
    image = pipe(**arguments, generator=torch.Generator("cpu").manual_seed(seed)).images[0]
    return np.asarray(image.convert("RGB"))


@functools.cache
def _pipeline(folder: Path, cls: str) -> Any:
    import diffusers

    pipe = getattr(diffusers, cls).from_pretrained(folder, dtype=torch.float32, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe

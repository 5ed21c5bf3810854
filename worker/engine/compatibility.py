"""Adaptations of the installed libraries to files published for older ones. No library's file is touched."""

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import torch
import transformers
from diffusers import pipelines

from worker.core.json_text import parse_bounded

_DEPRECATED = "diffusers.pipelines.deprecated"


def pipeline_module(name: str) -> ModuleType | None:
    """Return the folder `name` of diffusers' own pipelines, also one that moved; None when there is none."""
    if name in _moved():
        return importlib.import_module(f"{_DEPRECATED}.{name}")
    module = getattr(pipelines, name, None)
    return module if isinstance(module, ModuleType) else None


def reach_moved_parts(folder: Path) -> None:
    """Make the moved classes and folders that a repository's model_index.json names reachable under those names.

    diffusers 0.42 moved 30 pipelines to `pipelines/deprecated`. Repositories of Würstchen, unCLIP, Paint-by-Example and
    BLIP-Diffusion name some parts by the old folder, as in `["wuerstchen", "WuerstchenPrior"]`. diffusers itself has
    since saved `["diffusers", "WuerstchenPrior"]`. It refuses both as unknown. Only classes that diffusers ships are
    ever set.
    """
    index = parse_bounded((folder / "model_index.json").read_bytes())
    for entry in index.values():
        if not isinstance(entry, list) or len(entry) != 2 or not all(isinstance(word, str) for word in entry):
            continue
        library, name = entry
        if library in _moved() and not hasattr(pipelines, library):
            setattr(pipelines, library, pipeline_module(library))
        if library == "diffusers" and not hasattr(diffusers, name) and (cls := _moved_class(name)) is not None:
            setattr(diffusers, name, cls)
            # What makes it loadable is looked up beside it.
            diffusers.PreTrainedModel = transformers.PreTrainedModel
        if library == "transformers" and name == "T5GemmaEncoder" and not hasattr(transformers, name):
            # PRX's text encoder left the top of transformers.
            from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

            transformers.T5GemmaEncoder = T5GemmaEncoder


@contextmanager
def compatible(pipe: Any) -> Iterator[None]:
    """Let a call of `pipe` find its parts as it was written for them; afterwards they are as they were."""
    with ExitStack() as undone_after:
        for adapt in (old_clip_names, _old_glm_features):
            undone_after.enter_context(adapt(pipe))
        yield


@contextmanager
def old_clip_names(pipe: Any) -> Iterator[None]:
    """Let a call find its text encoder's layers under `text_model`, where transformers had them until 5.6.

    I2VGenXL and every pipeline with `clip_skip` look there. Only for the call: by that very name diffusers decides how
    a LoRA's keys are spelt.
    """
    encoder = getattr(pipe, "text_encoder", None)
    if not isinstance(encoder, transformers.CLIPTextModel) or hasattr(encoder, "text_model"):
        yield
        return
    # Past nn.Module, which would register the encoder as its own part.
    object.__setattr__(encoder, "text_model", encoder)
    try:
        yield
    finally:
        object.__delattr__(encoder, "text_model")


@contextmanager
def _old_glm_features(pipe: Any) -> Iterator[None]:
    """Let GLM-Image get the features of an image as a row for each patch, which diffusers 0.42 joins and hands back.

    transformers 5.23 gives them as a plane for each image, CxHxW, and reads the joined rows as one plane per row.
    """
    encoder = getattr(pipe, "vision_language_encoder", None)
    if not isinstance(encoder, transformers.GlmImageForConditionalGeneration):
        yield
        return
    planes, tokens = encoder.get_image_features, encoder.get_image_tokens

    def as_rows(pixel_values: Any, image_grid_thw: Any = None, images_per_sample: Any = None, **options: Any) -> Any:
        features = planes(pixel_values, image_grid_thw, images_per_sample, **options)
        if images_per_sample is None:  # transformers itself says how many there are, and wants planes
            features.pooler_output = [plane.flatten(1).T for plane in features.pooler_output]
        return features

    def of_rows(rows: torch.Tensor, image_grid_thw: torch.Tensor) -> Any:
        parts = rows.split(image_grid_thw.prod(-1).tolist())
        sides = image_grid_thw[:, 1:].tolist()
        return tokens([part.T.unflatten(1, side) for part, side in zip(parts, sides, strict=True)])

    encoder.get_image_features, encoder.get_image_tokens = as_rows, of_rows
    try:
        yield
    finally:
        del encoder.get_image_features, encoder.get_image_tokens


@contextmanager
def input_as_the_vae(pipe: Any) -> Iterator[None]:
    """Give the VAE images of its own dtype: Z-Image-Omni makes them bfloat16 and Lucy float32, whatever it is."""
    encoder = pipe.vae.encoder
    hook = encoder.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(next(encoder.parameters()).dtype),))
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def sides_in_order(pipe: Any) -> Iterator[None]:
    """Let Kandinsky 2.1 fit an image into its width and height, which it gives in the other order (diffusers 0.42)."""
    processor = pipe.decoder_pipe.image_processor
    preprocess = processor.preprocess
    processor.preprocess = lambda image, width, height: preprocess(image, height, width)
    try:
        yield
    finally:
        del processor.preprocess


@cache
def import_spandrel() -> ModuleType:
    """Import spandrel, also where torchvision is not installed. Raises ImportError where spandrel itself is not.

    It imports two functions of torchvision for LaMa and RestoreFormer, which are no upscalers. Stand-ins take their
    place during the import. torchvision itself has to be of torch's own build, which no requirement can say.
    """
    if importlib.util.find_spec("torchvision") is not None:
        return importlib.import_module("spandrel")
    functional: Any = ModuleType("torchvision.transforms.functional")
    functional.InterpolationMode = functional.rotate = functional.normalize = None
    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    sys.modules |= dict.fromkeys(names, functional)
    try:
        return importlib.import_module("spandrel")
    finally:
        for name in names:
            del sys.modules[name]


@cache
def _moved() -> frozenset[str]:
    try:
        deprecated = importlib.import_module(_DEPRECATED)
    except ImportError:  # a later diffusers may have removed it
        return frozenset()
    return frozenset(module.name for module in pkgutil.iter_modules(deprecated.__path__))


@cache
def _moved_class(name: str) -> type | None:
    for folder in sorted(_moved()):
        module = importlib.import_module(f"{_DEPRECATED}.{folder}")
        if name in dir(module):  # its names, without importing what is behind them
            part = getattr(module, name)
            return part if isinstance(part, type) else None
    return None

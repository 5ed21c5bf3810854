"""The classes that may be loaded, and the dtypes by name."""

from typing import Any

import diffusers
import torch

from worker.core.errors import UnsupportedModel
from worker.engine.custom import custom_class
from worker.engine.modular import called_with_keywords, is_modular
from worker.engine.upscaling import SpandrelUpscalePipeline

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def pipeline_class(name: str) -> type[Any]:
    """Return the class called `name`: of diffusers, the worker's or the operator's own. Raises UnsupportedModel."""
    if name == SpandrelUpscalePipeline.__name__:
        return SpandrelUpscalePipeline
    cls = custom_class(name) or getattr(diffusers, name, None)
    if is_modular(cls):
        return called_with_keywords(cls)
    if not isinstance(cls, type) or not issubclass(cls, diffusers.DiffusionPipeline):
        raise UnsupportedModel(
            f"{name} is no pipeline of diffusers {diffusers.__version__}; "
            "models that bring their own code are not run.",
            field="model",
        )
    return cls

"""The device's memory that what learns takes: counted on the denoiser's shapes, before its weights are there."""

from collections.abc import Mapping
from typing import Any

import diffusers
import torch

from worker.core.errors import UnsupportedModel
from worker.core.training import OptimizerName, TrainingOptions
from worker.training.adapter import attach

_FLOAT = 4
# Of each parameter's state: two moments; one; two, its beginning and a sum; two of a byte each.
_STATE: Mapping[OptimizerName, int] = {"adamw": 8, "lion": 4, "prodigy": 16, "adamw8bit": 2}


def learnt_bytes(config: Mapping[str, object], options: TrainingOptions) -> int | None:
    """Return the bytes of what learns in a denoiser of this config, of its gradients, and of the optimizer's state.

    None for a class that diffusers does not have, or without layers that the options mean. A word's are nearly none.
    """
    if options.method == "embedding":
        return 0
    cls: Any = getattr(diffusers, str(config.get("_class_name")), None)
    if cls is None:
        return None
    try:
        with torch.device("meta"):
            denoiser = cls.from_config(dict(config))
            whole = options.field == "model"
            learning = list(denoiser.named_parameters()) if whole else attach(denoiser, options)
    except (UnsupportedModel, TypeError, ValueError):
        return None
    mean = _FLOAT if options.ema is not None else 0
    each = 2 * _FLOAT + _STATE[options.optimizer] + mean
    count: int = sum(parameter.numel() for _, parameter in learning)
    return each * count

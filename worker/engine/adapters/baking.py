"""LoRAs merged into a model's weights, for a model that is written with them in it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from worker.core.adapter import LoraFiles
from worker.core.errors import IncompatibleAdapter
from worker.engine.adapters.adapter_cache import denoiser_of
from worker.engine.adapters.lora import match, placed
from worker.engine.adapters.merging import MergeCache


@contextmanager
def baked(pipe: Any, loras: Sequence[LoraFiles]) -> Iterator[None]:
    """Let the weights of `pipe` have these LoRAs in them, each with its weight, and be its own again at the end.

    Raises IncompatibleAdapter for a LoRA of another model, and for one that is more than a change of plain weights.
    """
    if not loras:
        yield
        return
    denoiser = denoiser_of(pipe)
    if denoiser is None:
        raise IncompatibleAdapter("The model has no UNet or transformer, which a LoRA changes.", field="loras")
    matched = [match(pipe, lora, "this model") for lora in loras]
    if any(each.embeddings for each in matched):
        raise IncompatibleAdapter("A LoRA brings words of its own, which are no weights of the model.", field="loras")
    with MergeCache(1).applied(pipe, denoiser, "baked", placed(loras, matched)) as others:
        if others:
            component, path, *_ = others[0]
            raise IncompatibleAdapter(
                f"A LoRA changes {component}.{path}, which is no layer with plain weights: it cannot be baked in; give "
                "it to each job as loras instead.",
                field="loras",
            )
        yield

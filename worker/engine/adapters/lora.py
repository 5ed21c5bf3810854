"""LoRAs for the length of one job: applied, verified, and removed so that the weights are bit-equal to before."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from safetensors.torch import load_file

from worker.core.errors import IncompatibleAdapter, UnsupportedModel
from worker.core.job import AdapterFiles
from worker.core.result import LoraReport
from worker.engine.devices import is_out_of_memory

_LOG = logging.getLogger(__name__)
# Below this share of matched modules a LoRA was made for something else (reference: every silent no-op is 0).
MINIMUM_MATCH = 0.95


@contextmanager
def applied(pipe: Any, adapters: Sequence[AdapterFiles], model: str) -> Iterator[tuple[LoraReport, ...]]:
    """Put `adapters` on `pipe`, yield what each matched, and take them off whatever happens.

    Raises IncompatibleAdapter when fewer than 95 % of a LoRA's modules find their place: a LoRA that does nothing
    is an error, never a warning.
    """
    if not adapters:
        yield ()
        return
    if not hasattr(pipe, "load_lora_weights"):
        raise UnsupportedModel(
            f"loras are not supported by {model}: {type(pipe).__name__} has no LoRA loader; leave loras out.",
            field="loras",
        )
    try:
        reports = tuple(_load(pipe, adapter, f"job_{index}", model) for index, adapter in enumerate(adapters))
        pipe.set_adapters([f"job_{index}" for index in range(len(adapters))], [item.spec.weight for item in adapters])
        yield reports
    finally:
        pipe.unload_lora_weights()


def _load(pipe: Any, adapter: AdapterFiles, name: str, model: str) -> LoraReport:
    try:
        pipe.load_lora_weights(load_file(adapter.files.root), adapter_name=name)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        _LOG.warning("LoRA refused by diffusers", exc_info=True)
        raise IncompatibleAdapter(
            f"LoRA {adapter.spec.model} does not fit {model}: its layers have other names or sizes "
            f"({type(error).__name__}); use a LoRA trained for this model's family.",
            field="loras",
        ) from None
    matched = min(_injected(pipe, name), len(adapter.modules))
    if matched < MINIMUM_MATCH * len(adapter.modules):
        samples = list(adapter.modules[:3])
        raise IncompatibleAdapter(
            f"LoRA {adapter.spec.model} finds {matched} of its {len(adapter.modules)} layers in {model}, "
            f"fewer than {MINIMUM_MATCH:.0%}; use a LoRA trained for this model's family.",
            field="loras",
            details={"matched": matched, "total": len(adapter.modules), "samples": samples},
        )
    return LoraReport(adapter.spec.model, adapter.spec.weight, matched, len(adapter.modules), adapter.sha256)


def _injected(pipe: Any, name: str) -> int:
    """How many layers of all components carry the adapter `name`."""
    count = 0
    for component in pipe.components.values():
        for module in component.modules() if hasattr(component, "modules") else ():
            if name in getattr(module, "lora_A", {}) or name in getattr(module, "lora_embedding_A", {}):
                count += 1
    return count

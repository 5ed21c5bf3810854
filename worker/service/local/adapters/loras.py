"""LoRAs for a job: fetched, and checked to be LoRAs for its model, before the model is."""

from worker.core.adapter import Adapter, LoraFiles
from worker.core.errors import UnsupportedModel
from worker.core.job import Job
from worker.core.model import LoraSpec
from worker.core.result import Emit
from worker.service.accepting.adapters.compatibility import Inspected
from worker.service.local.adapters.fetching import AdapterFetcher
from worker.service.local.weights import LoraFile, examine_lora

_APPLIED = ("LoRA", "DoRA", "LoHa", "LoKr", "GLoRA", "OFT", "full-difference")
# The names that diffusers and peft give the one file of a LoRA repository.
_USUAL_NAMES = frozenset({"pytorch_lora_weights.safetensors", "adapter_model.safetensors"})


def provide_lora(adapter: Adapter[LoraSpec], job: Job, fetcher: AdapterFetcher, emit: Emit) -> LoraFiles:
    """Fetch the file of one LoRA. Raises IncompatibleAdapter, UnsupportedModel, SourceError …"""
    lora = adapter.spec
    source = fetcher.source(lora.model, lora.weight_name, "loras")
    outline, peeked = fetcher.look(source, "loras")
    if peeked is not None and outline.header is not None:  # a file of another kind is not even fetched
        _check_kind(Inspected(lora, peeked), job)
    files, examined = fetcher.fetch_file(source, "loras", examine_lora, emit, job.stop, _USUAL_NAMES)
    _check(examined, lora, job)
    return LoraFiles(
        adapter,
        files,
        examined.detection,
        examined.sha256,
        keys=examined.keys,
        scaling=examined.scaling,
        trigger_words=examined.trigger_words or (outline.declared.trigger_words if outline.declared else ()),
    )


def _check(examined: LoraFile, lora: LoraSpec, job: Job) -> None:
    """Refuse a file that is no LoRA, is for another family, or has an algorithm that the engine cannot apply."""
    inspected = Inspected(lora, examined.detection)
    _check_kind(inspected, job)
    layout = inspected.detection.format
    keys = examined.keys
    refused = "a control LoRA, which gives the model a second input" if "+control" in layout else keys.refused
    if refused or not (keys.embeddings or any(module.algorithm for module in keys.modules)):
        raise UnsupportedModel(
            f"loras: {lora.model} is {refused or f'of the kind {layout}'}, which this worker cannot apply; "
            f"use a {', '.join(_APPLIED)} or IA3 file.",
            field="loras",
        )


def _check_kind(inspected: Inspected[LoraSpec], job: Job) -> None:
    """Refuse a file that is no LoRA, or is for another family."""
    inspected.check_kind()
    inspected.check_family(job.call)

"""LoRAs for a job: fetched, and checked to be what the job takes them for, before the model is."""

from worker.core.adapter import Adapter, LoraFiles
from worker.core.errors import UnsupportedModel
from worker.core.job import Job
from worker.core.model import Detection, LoraSpec
from worker.core.result import Emit
from worker.service.accepting.adapters.compatibility import check_family, check_kind
from worker.service.local.adapters.fetching import AdapterFetcher
from worker.service.local.weights import LoraFile, examine_lora

_APPLIED = ("LoRA", "DoRA", "LoHa", "LoKr", "GLoRA", "OFT", "full-difference")
# What diffusers and peft call the one file of a LoRA repository.
_USUAL_NAMES = frozenset({"pytorch_lora_weights.safetensors", "adapter_model.safetensors"})


def provide_lora(adapter: Adapter[LoraSpec], job: Job, fetcher: AdapterFetcher, emit: Emit) -> LoraFiles:
    """The file of one LoRA. Raises IncompatibleAdapter, UnsupportedModel, SourceError …"""
    lora = adapter.spec
    source = fetcher.source(lora.model, lora.weight_name, "loras")
    outline, seen = fetcher.look(source, "loras")
    if seen is not None and outline.header is not None:  # what is seen to be another thing is not even fetched
        _check_kind(seen, lora, job)
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
    """Refuse what is no LoRA, is for another family, or of an algorithm that the engine cannot apply."""
    found = examined.detection
    _check_kind(found, lora, job)
    keys = examined.keys
    refused = "a control LoRA, which gives the model a second input" if "+control" in found.format else keys.refused
    if refused or not (keys.embeddings or any(module.algorithm for module in keys.modules)):
        raise UnsupportedModel(
            f"loras: {lora.model} is {refused or f'of the kind {found.format}'}, which this worker cannot apply; "
            f"use a {', '.join(_APPLIED)} or IA3 file.",
            field="loras",
        )


def _check_kind(found: Detection, lora: LoraSpec, job: Job) -> None:
    """Refuse what is no LoRA, or one for another family."""
    check_kind(found, lora)
    check_family(found, lora, job.call)

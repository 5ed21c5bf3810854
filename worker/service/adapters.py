"""Adapter files for a job: fetched, and checked to be what the job takes them for, before the model is."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from worker.catalog.architectures import ARCHITECTURES, fits
from worker.catalog.detector import detect
from worker.core.errors import IncompatibleAdapter, UnsupportedModel, WorkerError
from worker.core.job import AdapterFiles, Job
from worker.core.model import Detection, Kind, LoraSpec
from worker.core.result import Emit
from worker.service.resolving import ModelResolver
from worker.service.weights import LoraFile, examine_lora
from worker.store.store import Store

_APPLIED = ("LoRA", "DoRA", "LoHa", "LoKr", "GLoRA", "OFT", "full-difference")
# What diffusers and peft call the one file of a LoRA repository.
_USUAL_NAMES = frozenset({"pytorch_lora_weights.safetensors", "adapter_model.safetensors"})
_MAX_NAMES = 20


class AdapterProvisioner:
    """Finds the file behind each adapter of a job and refuses what does not belong on its model."""

    def __init__(self, store: Store, resolver: ModelResolver, without_pickles: Callable[[Path], Path]) -> None:
        self._store = store
        self._resolver = resolver
        self._without_pickles = without_pickles

    def provide(self, lora: LoraSpec, job: Job, emit: Emit) -> AdapterFiles:
        """The file of one LoRA. Raises IncompatibleAdapter, UnsupportedModel, SourceError …"""
        try:
            source = self._resolver.adapter_source(lora.model, lora.weight_name)
            outline = self._store.peek(source)
            if outline.header is not None:  # what is seen to be another thing is not even fetched
                _check_kind(detect(outline), lora, job)
            files = self._store.ensure(source, None, emit, job.stop)
            root = files.root if files.is_single_file else _only_weights(files.root, lora)
            with self._store.harmless(root):
                root = self._without_pickles(root)
            examined = examine_lora(root)
        except WorkerError as error:
            if error.field in (None, "model"):  # the store takes every source for one
                error.field = "loras"
            raise
        _check(examined, lora, job)
        return AdapterFiles(
            lora,
            replace(files, root=root),
            examined.sha256,
            examined.keys,
            examined.scaling,
            examined.trigger_words or (outline.declared.trigger_words if outline.declared else ()),
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
    wanted = job.detection.architecture
    if found.kind is not Kind.LORA:
        raise IncompatibleAdapter(
            f"loras: {lora.model} is a {found.kind}, not a LoRA; name a LoRA file.",
            field="loras",
            details={"evidence": list(found.evidence)},
        )
    if not fits(found.architecture, wanted):
        raise IncompatibleAdapter(
            f"loras: {lora.model} was made for {_title(found.architecture)} and {job.spec.id} is "
            f"{_title(wanted)}; use a LoRA of that family.",
            field="loras",
            details={"lora": found.architecture, "model": wanted, "evidence": list(found.evidence)},
        )


def _only_weights(folder: Path, lora: LoraSpec) -> Path:
    found = sorted(folder.glob("*.safetensors"))
    usual = [path for path in found if path.name in _USUAL_NAMES]
    if len(usual) == 1 or len(found) == 1:
        return (usual or found)[0]
    names = ", ".join(path.name for path in found[:_MAX_NAMES])
    listed = f" ({names}{', …' if len(found) > _MAX_NAMES else ''})" if found else ""
    raise UnsupportedModel(
        f"loras: {lora.model} holds {len(found)} weight files{listed}; name one with weight_name.",
        field="loras",
        details={"files": [path.name for path in found[:_MAX_NAMES]]},
    )


def _title(name: str | None) -> str:
    return next((row.title for row in ARCHITECTURES if row.id == name), name or "unknown")

"""Adapter files for a job: fetched, and checked to be what the job takes them for, before the model is."""

from dataclasses import replace
from pathlib import Path

from worker.catalog.architectures import ARCHITECTURES, fits
from worker.core.errors import IncompatibleAdapter, UnsupportedModel
from worker.core.job import AdapterFiles, Job
from worker.core.model import Kind, LoraSpec
from worker.core.result import Emit
from worker.service.resolving import ModelResolver
from worker.service.weights import examine_lora
from worker.store.store import Store


class AdapterProvisioner:
    """Finds the file behind each adapter of a job and refuses what does not belong on its model."""

    def __init__(self, store: Store, resolver: ModelResolver) -> None:
        self._store = store
        self._resolver = resolver

    def provide(self, lora: LoraSpec, job: Job, emit: Emit) -> AdapterFiles:
        """The file of one LoRA. Raises IncompatibleAdapter, UnsupportedModel, SourceError …"""
        source = self._resolver.adapter_source(lora.model, lora.weight_name)
        files = self._store.ensure(source, None, emit, job.stop)
        root = files.root if files.is_single_file else _only_weights(files.root, lora)
        examined = examine_lora(root)
        found = examined.detection
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
        if not examined.modules:
            raise UnsupportedModel(
                f"loras: {lora.model} is of the kind {found.format}, which this version cannot apply; "
                "use a plain LoRA (lora_A/lora_B or lora_down/lora_up).",
                field="loras",
            )
        return AdapterFiles(lora, replace(files, root=root), examined.modules, examined.sha256)


def _only_weights(folder: Path, lora: LoraSpec) -> Path:
    found = sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        raise UnsupportedModel(
            f"loras: {lora.model} holds {len(found)} weight files; name one with weight_name.", field="loras"
        )
    return found[0]


def _title(name: str | None) -> str:
    return next((row.title for row in ARCHITECTURES if row.id == name), name or "unknown")

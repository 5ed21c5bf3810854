"""Files for a job: the model's and its LoRAs', fetched where needed, and checked to belong together."""

import asyncio
from dataclasses import replace
from pathlib import Path

from worker.catalog.architectures import ARCHITECTURES, architecture, fits
from worker.core.errors import IncompatibleAdapter, UnsupportedModel
from worker.core.job import AdapterFiles, Batch, Job, StopSignal
from worker.core.model import Detection, Kind, LoraSpec, ModelFiles, ModelSpec
from worker.core.result import Emit
from worker.service.resolving import ModelResolver
from worker.service.weights import count_parameters, examine_lora
from worker.store.store import Store

CONFIGS = Path(__file__).resolve().parent.parent / "catalog" / "configs"
_SINGLE_FILES = {Kind.CHECKPOINT, Kind.DENOISER}


class Provisioner:
    """Makes a Batch of an accepted job. Downloads run in threads and never in the engine's."""

    def __init__(self, store: Store, resolver: ModelResolver) -> None:
        self._store = store
        self._resolver = resolver

    async def provide(self, job: Job, emit: Emit) -> Batch:
        """The job with all its files on disk. Raises SourceError, IncompatibleAdapter …"""
        return await asyncio.to_thread(self._provide, job, emit)

    def _provide(self, job: Job, emit: Emit) -> Batch:
        job.stop.check()
        # Adapters first: they are small, and a wrong one should not cost a model's download.
        adapters = tuple(self._adapter(spec, job, emit) for spec in job.loras)
        spec, files = self.model_files(job.spec, job.detection, emit, job.stop)
        return Batch((replace(job, spec=spec),), files, adapters)

    def model_files(
        self, spec: ModelSpec, detection: Detection, emit: Emit, stop: StopSignal
    ) -> tuple[ModelSpec, ModelFiles]:
        """A model's files with the number of weights per component, and its spec with the config they need."""
        if detection.kind in _SINGLE_FILES and spec.config is None:
            spec = spec.model_copy(update={"config": str(CONFIGS / _bundled_config(spec, detection))})
        files = self._store.ensure(spec.source, spec.variant, emit, stop)
        return spec, replace(files, parameters=count_parameters(files.root))

    def _adapter(self, lora: LoraSpec, job: Job, emit: Emit) -> AdapterFiles:
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


def _bundled_config(spec: ModelSpec, detection: Detection) -> str:
    """The config folder that a single file of this family loads with. Raises UnsupportedModel before a download."""
    row = architecture(detection.architecture) if detection.architecture else None
    if row is not None and row.config is not None:
        return row.config
    family = row.title if row else "an unknown family"
    example = f" ({row.base_repo}, say)" if row and row.base_repo else ""
    raise UnsupportedModel(
        f"{spec.id} is a single file of {family}, and no config of that family is bundled; name the diffusers "
        f"repository that it was made from{example}, or set config in models.yaml.",
        field="model",
    )


def _only_weights(folder: Path, lora: LoraSpec) -> Path:
    found = sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        raise UnsupportedModel(
            f"loras: {lora.model} holds {len(found)} weight files; name one with weight_name.", field="loras"
        )
    return found[0]


def _title(name: str | None) -> str:
    return next((row.title for row in ARCHITECTURES if row.id == name), name or "unknown")

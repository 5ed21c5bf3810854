"""A caller's words to a model: the registry first, then a reference if the operator allows it; and what it is."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from worker.catalog.detector import detect
from worker.catalog.registry import Registry
from worker.catalog.schema import architecture_of, declared, pipeline_for, tasks_of
from worker.core.errors import InvalidRequest, ModelNotFound, UnsupportedModel
from worker.core.model import Detection, Kind, ModelSource, ModelSpec, Outline

_MEMORY = 256
_RUNNABLE = {Kind.PIPELINE, Kind.CHECKPOINT}
# Read like plain weights, these give garbage without an error.
_UNREADABLE = {"safetensors/fp8-scaled", "safetensors/nf4", "safetensors/svdquant"}


@dataclass(frozen=True, slots=True)
class Policy:
    """What callers may name beside the registry's models."""

    default_model: str
    allow_unregistered: bool = False
    allowed_orgs: tuple[str, ...] = ()
    denied_orgs: tuple[str, ...] = ()


class ModelResolver:
    """Finds a model's spec and detects what it is. Detections are remembered; blocking where it has to peek."""

    def __init__(
        self,
        registry: Registry,
        policy: Policy,
        parse_reference: Callable[[str], ModelSource],
        peek: Callable[[ModelSource, str | None], Outline],
    ) -> None:
        self.registry = registry
        self._policy = policy
        self._parse = parse_reference
        self._peek = peek
        self._detections: dict[tuple[str, ModelSource], Detection] = {}
        self._lock = threading.Lock()

    def resolve(self, model: str | None) -> ModelSpec:
        """The spec of a model id, alias or reference. Raises ModelNotFound, UnsupportedModel, InvalidRequest."""
        name = (model or self._policy.default_model).strip()
        spec = self.registry.find(name)
        if spec is not None:
            return spec
        near = self.registry.nearest(name)
        try:
            source = self._parse(name)
        except InvalidRequest as error:
            if isinstance(error, UnsupportedModel):
                raise
            raise _unknown(name, near, "") from None
        self.check_allowed(source, "model", near)
        return ModelSpec(id=name, source=source)

    def adapter_source(self, reference: str, filename: str | None) -> ModelSource:
        """Where a LoRA comes from; the same rules as for models. Raises like `resolve`."""
        source = self._parse(reference)
        if not self._is_registered_adapter(reference):
            self.check_allowed(source, "loras", [])
        return source.model_copy(update={"filename": filename}) if filename else source

    def check_allowed(self, source: ModelSource, field: str, near: list[str]) -> None:
        """Raise ModelNotFound unless the operator lets callers name this source themselves."""
        if source.scheme == "file":
            return  # the store lets nothing through but the operator's own folders
        org = source.locator.split("/")[0].lower()
        if org in {name.lower() for name in self._policy.denied_orgs}:
            raise ModelNotFound(f"{field}: {source.locator} is not allowed on this worker.", field=field)
        if not self._policy.allow_unregistered:
            raise _unknown(
                source.locator, near, "; the operator can add it there or set ALLOW_UNREGISTERED_MODELS=true", field
            )
        allowed = {name.lower() for name in self._policy.allowed_orgs}
        if allowed and org not in allowed:
            raise ModelNotFound(
                f"{field}: {source.locator} is not allowed on this worker, which takes models of "
                f"{', '.join(self._policy.allowed_orgs)}.",
                field=field,
            )

    def detect(self, spec: ModelSpec) -> Detection:
        """What `spec` is: from the registry's own words, else from the files' JSON or header."""
        key = (spec.id, spec.source)
        with self._lock:
            known = self._detections.get(key)
        if known is not None:
            return known
        # What lies on this machine is looked at; what would be a request is believed when the registry says it.
        whole_repository = spec.source.scheme == "hf" and spec.source.filename is None
        said = declared(spec) if whole_repository else None
        detection = _completed(spec, said or _merged(spec, detect(self._peek(spec.source, spec.variant))))
        with self._lock:
            if len(self._detections) >= _MEMORY:
                self._detections.clear()
            self._detections[key] = detection
        return detection

    def _is_registered_adapter(self, reference: str) -> bool:
        """The operator's own LoRAs, named in models.yaml or LORAS, need no further leave."""
        for spec in self.registry.models.values():
            lightning = [spec.lightning.lora] if spec.lightning else []
            if reference in [lora.model for lora in spec.loras] + lightning:
                return True
        return False


def _merged(spec: ModelSpec, found: Detection) -> Detection:
    """What the files say, completed by what the registry says. Raises UnsupportedModel where the two disagree."""
    # Where the header says nothing of a family, the operator's word counts.
    declared_so = spec.architecture is not None and found.architecture is None and found.format != "diffusers"
    if found.kind not in _RUNNABLE and not declared_so:
        what = "nothing that the detector knows" if found.kind is Kind.UNKNOWN else f"a {found.kind}"
        near = f" (nearest: {', '.join(found.near)})" if found.near else ""
        raise UnsupportedModel(
            f"{spec.id} is {what}{near}, and not a model that can draw by itself; name a diffusers repository or a "
            "checkpoint.",
            field="model",
            details={"kind": found.kind, "evidence": list(found.evidence)},
        )
    if spec.architecture and found.architecture and spec.architecture != found.architecture:
        raise UnsupportedModel(
            f"{spec.id} is declared as {spec.architecture} in models.yaml, but its files say {found.architecture}; "
            "correct the entry.",
            field="model",
            details={"evidence": list(found.evidence)},
        )
    if found.format in _UNREADABLE or (found.prediction_type or "").startswith("edm"):
        kind = found.prediction_type if found.format == "safetensors" else found.format.rpartition("/")[2]
        raise UnsupportedModel(
            f"{spec.id} is a file of the kind {kind}, which this version cannot read correctly; use a plain fp16, bf16 "
            "or fp32 version of it.",
            field="model",
            details={"evidence": list(found.evidence)},
        )
    return replace(
        found,
        kind=Kind.CHECKPOINT if declared_so else found.kind,
        architecture=spec.architecture or found.architecture,
    )


def _completed(spec: ModelSpec, found: Detection) -> Detection:
    """`found` with what the registry and the family's row add to it."""
    row = architecture_of(spec, found)
    tasks = tasks_of(spec, found)
    return replace(
        found,
        tasks=tasks,
        pipeline=spec.pipeline or found.pipeline or (pipeline_for(spec, found, tasks[0]) if tasks else None),
        native_size=found.native_size or (row.native_size if row else None),
        activation_gb_per_mp=row.activation_gb_per_mp if row else found.activation_gb_per_mp,
    )


def _unknown(name: str, near: list[str], fix: str, field: str = "model") -> ModelNotFound:
    listed = f"did you mean {' or '.join(near)}?" if near else 'see {"action": "models"} for the list'
    return ModelNotFound(f"{field} {name[:120]!r} is not in models.yaml{fix}; {listed}", field=field)

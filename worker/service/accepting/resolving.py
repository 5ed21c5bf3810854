"""A caller's words to a model: the registry first, then a reference if the operator allows it; and what it is."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from worker.catalog.call import Model, declared
from worker.catalog.capabilities import check_loadable
from worker.catalog.classes.auto_pipelines import auto_pipelines
from worker.catalog.detector import detect
from worker.catalog.registry import Registry
from worker.core.errors import InvalidRequest, ModelNotFound, UnsupportedModel, WorkerError
from worker.core.model import Detection, Kind, ModelSource, ModelSpec, Outline

_MEMORY = 256
_RUNNABLE = {Kind.PIPELINE, Kind.CHECKPOINT, Kind.DENOISER, Kind.UPSCALER}


@dataclass(frozen=True, slots=True)
class Policy:
    """What callers may name beside the registry's models."""

    default_model: str
    allow_unregistered: bool = False
    allowed_orgs: tuple[str, ...] = ()
    denied_orgs: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    denied_hosts: tuple[str, ...] = ()


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

    def replace_registry(self, registry: Registry) -> None:
        """Serve another registry's models from now on; jobs that were accepted keep what they were accepted with."""
        with self._lock:
            self.registry = registry
            self._detections.clear()

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
            # What was meant as a reference is told what is wrong with it, and is not repeated: it may hold a token.
            if isinstance(error, UnsupportedModel) or ":" in name or "?" in name:
                raise
            raise _unknown(name, near, "") from None
        self.check_allowed(source, "model", near)
        return ModelSpec(id=name, source=source)

    def registered_id(self, name: str | None) -> str | None:
        """The id in models.yaml of a model's id or alias, or of the default model; None for what is not there."""
        spec = self.registry.find(name or self._policy.default_model)
        return spec.id if spec else None

    def adapter_source(self, reference: str, filename: str | None, field: str) -> ModelSource:
        """Where an adapter comes from; the same rules as for models, and ids of models.yaml too.

        Raises like `resolve`, naming `field`.
        """
        spec = self.registry.find(reference)
        source = spec.source if spec is not None else self._parse(reference)
        if spec is None and not self._is_registered_adapter(reference):
            self.check_allowed(source, field, [])
        return source.model_copy(update={"filename": filename}) if filename else source

    def look_at_adapter(self, source: ModelSource) -> Detection | None:
        """What a control says it is; None where it has no header to read. Blocking.

        A whole pipeline is told too: None stands for a pickle, which is fetched to see what it is.
        """
        outline = self._peek(source, None)
        told = outline.header is not None or outline.configs.keys() & {"config.json", "model_index.json"}
        return detect(outline) if told else None

    def part_source(self, reference: str) -> ModelSource:
        """Where a part of a model comes from, as the registry or the architecture table names it."""
        spec = self.registry.find(reference)
        return spec.source if spec is not None else self._parse(reference)

    def check_allowed(self, source: ModelSource, field: str, near: list[str]) -> None:
        """Raise ModelNotFound unless the operator lets callers name this source themselves."""
        if source.is_local:
            return  # the store lets nothing through but the operator's own folders
        host, org = source.host, source.locator.split("/")[0].lower() if source.is_repository else None
        what = source.locator if source.is_repository else host
        denied_orgs = {name.lower() for name in self._policy.denied_orgs}
        if org in denied_orgs or _is_listed(host, self._policy.denied_hosts):
            raise ModelNotFound(f"{field}: {what} is not allowed on this worker.", field=field)
        if not self._policy.allow_unregistered:
            what = what if source.is_repository else source.reference.partition("?")[0]
            raise _unknown(what, near, "; the operator can add it there or set ALLOW_UNREGISTERED_MODELS=true", field)
        allowed = (*self._policy.allowed_orgs, *self._policy.allowed_hosts)
        allowed_orgs = {name.lower() for name in self._policy.allowed_orgs}
        if allowed and org not in allowed_orgs and not _is_listed(host, self._policy.allowed_hosts):
            raise ModelNotFound(
                f"{field}: {what} is not allowed on this worker, which takes models of {', '.join(allowed)}.",
                field=field,
            )

    def known(self, spec: ModelSpec) -> Model:
        """`spec` with what it is. Blocking where it has to peek."""
        return Model(spec, self.detect(spec))

    def detect(self, spec: ModelSpec) -> Detection:
        """What `spec` is: from the registry's own words, else from the files' JSON or header."""
        key = (spec.id, spec.source)
        with self._lock:
            known = self._detections.get(key)
        if known is not None:
            return known
        # What lies on this machine is looked at; what would be a request is believed when the registry says it.
        whole_repository = spec.source.is_repository and spec.source.filename is None
        # A base completes a single file only, and which parts that lacks is not declared.
        said = declared(spec) if whole_repository and spec.base is None else None
        detection = _completed(Model(spec, said or _merged(spec, self._look_at(spec))))
        with self._lock:
            if len(self._detections) >= _MEMORY:
                self._detections.clear()
            self._detections[key] = detection
        return detection

    def _look_at(self, spec: ModelSpec) -> Detection:
        """What the files of `spec` say. What is wrong with them is wrong with `model`, which no reader knows."""
        try:
            return detect(self._peek(spec.source, spec.variant))
        except WorkerError as error:
            error.field = error.field or "model"
            raise

    def _is_registered_adapter(self, reference: str) -> bool:
        """The operator's own LoRAs, named in models.yaml or LORAS, need no further leave."""
        for spec in self.registry.models.values():
            lightning = [spec.lightning.lora] if spec.lightning else []
            if reference in [lora.model for lora in spec.loras] + lightning:
                return True
        return False


def _is_listed(host: str, hosts: tuple[str, ...]) -> bool:
    """Whether a list names `host`, or a domain that it belongs to."""
    return any(host == name.lower() or host.endswith(f".{name.lower()}") for name in hosts)


def _merged(spec: ModelSpec, found: Detection) -> Detection:
    """What the files say, completed by what the registry says. Raises UnsupportedModel where the two disagree."""
    # Where the header says nothing of a family, the operator's word counts.
    declared_so = spec.architecture is not None and found.architecture is None and found.format != "diffusers"
    if found.kind is Kind.UPSCALER and found.pipeline is None:
        raise UnsupportedModel(
            f"{spec.id} is a {found.variant}, which needs faces cut out of an image first, and no upscaler of whole "
            "images; name an ESRGAN, SwinIR, HAT, DAT or SPAN file.",
            field="model",
            details={"kind": found.kind, "evidence": list(found.evidence)},
        )
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
    return replace(
        found,
        kind=Kind.CHECKPOINT if declared_so else found.kind,
        architecture=spec.architecture or found.architecture,
        prediction_type=spec.prediction_type or found.prediction_type,
    )


def _completed(model: Model) -> Detection:
    """What `model` was detected as, with what the registry and the family's row add to it."""
    spec, found, row = model.spec, model.detection, model.architecture
    # A task whose class is broken is not offered; one that the registry asks for is refused by name.
    known = model.tasks
    if row is None:  # a family no row knows serves what diffusers says of it
        known = tuple(dict.fromkeys((*known, *auto_pipelines(model.pipeline))))
    works = tuple(task for task in known if not model.call(task).row.broken)
    tasks = spec.tasks or works or known
    completed = replace(
        found,
        tasks=tasks,
        pipeline=model.pipeline or (model.pipeline_for(tasks[0]) if tasks else None),
        native_size=found.native_size or (row.native_size if row else None),
        activation_gb_per_mp=row.activation_gb_per_mp if row else found.activation_gb_per_mp,
        few_steps=row.few_steps.get(found.variant or "") if row else None,
    )
    check_loadable(spec.id, completed)
    return completed


def _unknown(name: str, near: list[str], fix: str, field: str = "model") -> ModelNotFound:
    listed = f"did you mean {' or '.join(near)}?" if near else '{"action": "models"} lists those there are.'
    return ModelNotFound(f"{field} {name[:120]!r} is not in models.yaml{fix}; {listed}", field=field)

"""From a model's name to the model: the registry first, then a reference if the operator allows it; detection."""

import re
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from worker.catalog.call import Model, declared
from worker.catalog.capabilities import check_loadable, check_modular
from worker.catalog.classes.auto_pipelines import auto_pipelines
from worker.catalog.detector import detect
from worker.catalog.interface.precisions import settled
from worker.catalog.registry import Registry
from worker.catalog.versions import is_selector
from worker.core.errors import InvalidRequest, ModelNotFound, UnsupportedModel, WorkerError
from worker.core.model import Detection, Kind, ModelSource, ModelSpec, Outline, Task
from worker.core.precision import Precision
from worker.core.request import GenerationRequest
from worker.core.tuned import named
from worker.core.version import VersionChoice
from worker.service.versions.serving import Versions

_MEMORY = 256
_KEPT = {"loras": "lora", "embeddings": "embedding"}  # what is found by name, by the request's field
_PLAIN_NAME = re.compile(r"[\w.-]{1,120}")  # no path, and no reference
_RUNNABLE = {Kind.PIPELINE, Kind.CHECKPOINT, Kind.DENOISER, Kind.UPSCALER}


@dataclass(frozen=True, slots=True)
class Policy:
    """The operator's rules on names beside the registry's models."""

    default_model: str
    allow_unregistered: bool = False
    allowed_orgs: tuple[str, ...] = ()
    denied_orgs: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    denied_hosts: tuple[str, ...] = ()
    precision: Precision | None = None  # of models for which neither request nor models.yaml names one


@dataclass(frozen=True, slots=True)
class OwnFiles:
    """What is found by its name on the volume: an adapter's reference by its kind, and a model's folder and base."""

    adapter: Callable[[str, str], str | None] = lambda kind, name: None
    model: Callable[[str], tuple[Path, str] | None] = lambda name: None


_NONE = OwnFiles()


class ModelResolver:
    """Resolves a model's spec and detects its nature. Detections are remembered. Blocking if it has to peek."""

    def __init__(
        self,
        registry: Registry,
        policy: Policy,
        parse_reference: Callable[[str], ModelSource],
        peek: Callable[[ModelSource, str | None], Outline],
        versions: Versions,
        own: OwnFiles = _NONE,
    ) -> None:
        self.registry = registry
        self.versions = versions
        self._policy = policy
        self._parse = parse_reference
        self._peek = peek
        self._own = own
        self._lent: dict[str, ModelSpec] = {}
        self._detections: dict[tuple[str, ModelSource], Detection] = {}  # by the name of one version
        self._lock = threading.Lock()

    def replace_registry(self, registry: Registry) -> None:
        """Serve another registry's models from now on. Accepted jobs keep their models."""
        with self._lock:
            self.registry = registry
            self._detections.clear()

    def resolve(self, model: str | None) -> ModelSpec:
        """Return the spec of a model id, alias or reference, at the version that is served or that it names.

        Raises ModelNotFound, UnsupportedModel, InvalidRequest.
        """
        name = (model or self._policy.default_model).strip()
        if (lent := self._lent.get(name)) is not None:
            return lent
        entry, selector = self._entry(name)
        if entry is not None:
            served = self.versions.served(entry) if selector is None else self.versions.named(entry, selector)
            if served is not None:
                return served
        if (recipe := self.registry.recipe(name)) is not None:
            raise UnsupportedModel(
                f"{recipe.id} is a recipe of {len(recipe.steps)} steps and has no files of its own; name one of its "
                f"models: {', '.join(recipe.models)}.",
                field="model",
            )
        if (tuned := self._own.model(name)) is not None:
            folder, base = tuned
            return named(name, self.registry.find(base), folder)
        nearest = self.registry.nearest(name)
        try:
            source = self._parse(name)
        except InvalidRequest as error:
            # A malformed reference raises its own error, which does not repeat it: it may hold a token.
            if isinstance(error, UnsupportedModel) or ":" in name or "?" in name:
                raise
            raise _unknown(name, nearest, "") from None
        self.check_allowed(source, "model", nearest)
        return ModelSpec(id=name, source=source)

    @contextmanager
    def lent(self, spec: ModelSpec) -> Iterator[str]:
        """Have `spec`, an entry that stands in no models.yaml, named by what this yields, while the block runs."""
        version = uuid.uuid4().hex  # nobody guesses it
        spec = spec.model_copy(update={"version": version})
        self._lent[spec.served_name] = spec
        try:
            yield spec.served_name
        finally:
            del self._lent[spec.served_name]

    def choose(self, request: GenerationRequest, caller: str | None) -> VersionChoice | None:
        """Return the version that a request gets; None where its model has none. Blocking. Raises ModelNotFound."""
        entry, selector = self._entry((request.model or self._policy.default_model).strip())
        if entry is None:
            return None
        return self.versions.choose(entry, selector, request.sticky or caller)

    def is_at_hand(self, name: str | None) -> bool:
        """True if the detection of a registered model takes no word from another server."""
        entry, _ = self._entry(name or self._policy.default_model)
        if entry is None:
            return False
        spec = self.versions.last_known(entry)
        return (
            spec.source.is_local or (spec.served_name, spec.source) in self._detections or _declared(spec) is not None
        )

    def _entry(self, name: str) -> tuple[ModelSpec | None, str | None]:
        """Return the entry of models.yaml that a name means, and what stands behind its @."""
        entry = self.registry.find(name)
        if entry is not None:
            return entry, None
        base, _, selector = name.rpartition("@")
        return (self.registry.find(base), selector) if is_selector(selector) else (None, None)

    def _specs(self) -> Iterator[ModelSpec]:
        """Yield the operator's own models: the entries of models.yaml, and what they were in each version."""
        yield from self.registry.models.values()
        yield from self.versions.contents()

    def host_of(self, name: str | None) -> str:
        """Return the host that a model comes from; "" for local files, and for what is no reference."""
        spec, _ = self._entry(name or self._policy.default_model)
        try:
            source = spec.source if spec else self._parse((name or "").strip())
        except WorkerError:
            return ""
        return "" if source.is_local else source.host

    def registered_id(self, name: str | None) -> str | None:
        """Return the id of a recipe, or the id in models.yaml of an id or alias or the default model; else None.

        A version of a model may be named too: what stands behind the @ is not looked at.
        """
        entry, _ = self._entry(name or self._policy.default_model)
        known = entry or self.registry.recipe(name)
        return known.id if known else None

    def id_of(self, name: str | None) -> str:
        """Return the id of a registered model by any of its names, or the reference as it is written."""
        return self.registered_id(name) or (name or "").strip()

    def is_registered(self, source: ModelSource) -> bool:
        """True if models.yaml has a model or an adapter at this source, at this revision."""
        named = {"only": (), "without": (), "sha256": None}
        asked = source.model_copy(update=named)
        return any(spec.source.model_copy(update=named) == asked for spec in self._specs())

    def adapter_source(self, reference: str, filename: str | None, field: str) -> ModelSource:
        """Return an adapter's source, by the same rules as for models; ids of models.yaml count too.

        A LoRA or an embedding may be the name of a file of the operator's, as one that was trained here. Raises like
        `resolve`, naming `field`.
        """
        spec = self.registry.find(reference)
        if spec is None and field in _KEPT and _PLAIN_NAME.fullmatch(reference):
            reference = self._own.adapter(_KEPT[field], reference) or reference
        source = spec.source if spec is not None else self._parse(reference)
        if spec is None and not self._is_registered_adapter(reference):
            self.check_allowed(source, field, [])
        return source.model_copy(update={"filename": filename}) if filename else source

    def adapter_named(self, name: str) -> str | None:
        """Return the reference of an adapter that models.yaml has under this name: an id, or the name of a LoRA."""
        spec = self.registry.find(name)
        if spec is not None:
            return spec.id
        own = (lora for spec in self.registry.models.values() for lora in spec.loras)
        return next((lora.model for lora in own if lora.name and lora.name.casefold() == name.casefold()), None)

    def look_at_adapter(self, source: ModelSource) -> Detection | None:
        """Detect an adapter from its header or JSON; None for a pickle. Blocking.

        A pickle shows its kind only once fetched. A whole pipeline is detected too.
        """
        outline = self._peek(source, None)
        readable = outline.header is not None or outline.configs.keys() & {"config.json", "model_index.json"}
        return detect(outline) if readable else None

    def part_source(self, reference: str) -> ModelSource:
        """Return the source of a model's part, as the registry or the architecture table names it."""
        spec = self.registry.find(reference)
        return spec.source if spec is not None else self._parse(reference)

    def check_not_denied(self, source: ModelSource, field: str) -> None:
        """Raise ModelNotFound for a source of an organisation or a host that the operator denies to everybody."""
        host, org, origin = _whose(source)
        denied_orgs = {name.lower() for name in self._policy.denied_orgs}
        if org in denied_orgs or _is_listed(host, self._policy.denied_hosts):
            raise ModelNotFound(f"{field}: {origin} is not allowed on this worker.", field=field)

    def check_allowed(self, source: ModelSource, field: str, nearest: list[str]) -> None:
        """Raise ModelNotFound unless the operator lets callers name this source themselves."""
        if source.is_local:
            return  # the store opens only the operator's own folders
        self.check_not_denied(source, field)
        host, org, origin = _whose(source)
        if not self._policy.allow_unregistered:
            origin = origin if source.is_repository else source.reference.partition("?")[0]
            raise _unknown(
                origin, nearest, "; the operator can add it there or set ALLOW_UNREGISTERED_MODELS=true", field
            )
        allowed = (*self._policy.allowed_orgs, *self._policy.allowed_hosts)
        allowed_orgs = {name.lower() for name in self._policy.allowed_orgs}
        if allowed and org not in allowed_orgs and not _is_listed(host, self._policy.allowed_hosts):
            raise ModelNotFound(
                f"{field}: {origin} is not allowed on this worker, which takes models of {', '.join(allowed)}.",
                field=field,
            )

    def known(self, spec: ModelSpec) -> Model:
        """Return the model of `spec` in its precision, with its detection. Blocking if it has to peek."""
        return settled(Model(spec, self.detect(spec)), self._policy.precision)

    def detect(self, spec: ModelSpec) -> Detection:
        """Detect the nature of `spec`: as the registry declares it, else from the files' JSON or header."""
        key = (spec.served_name, spec.source)
        with self._lock:
            remembered = self._detections.get(key)
        if remembered is not None:
            return remembered
        detection = _completed(Model(spec, _declared(spec) or _merged(spec, self._look_at(spec))))
        with self._lock:
            if len(self._detections) >= _MEMORY:
                self._detections.clear()
            self._detections[key] = detection
        return detection

    def _look_at(self, spec: ModelSpec) -> Detection:
        """Detect from the files of `spec`. Errors get the field `model`, which the readers do not know."""
        try:
            return detect(self._peek(spec.source, spec.variant))
        except WorkerError as error:
            error.field = error.field or "model"
            raise

    def _is_registered_adapter(self, reference: str) -> bool:
        """True for the operator's own LoRAs, named in models.yaml or LORAS: they need no further permission."""
        for spec in self._specs():
            lightning = [spec.lightning.lora] if spec.lightning else []
            if reference in [lora.model for lora in spec.loras] + lightning:
                return True
        return False


def _declared(spec: ModelSpec) -> Detection | None:
    """Return the detection that the registry declares; None where the files are to be read, as local ones always are.

    To save a request, the declaration of a repository is believed.
    """
    whole_repository = spec.source.is_repository and spec.source.filename is None
    # A base completes a single file only, whose missing parts are not declared.
    return declared(spec) if whole_repository and spec.base is None else None


def _whose(source: ModelSource) -> tuple[str, str | None, str]:
    """Return the host of a source, its organisation in lower case, and what it is called in a refusal."""
    org = source.locator.split("/")[0].lower() if source.is_repository else None
    return source.host, org, source.locator if source.is_repository else source.host


def _is_listed(host: str, hosts: tuple[str, ...]) -> bool:
    """True if `hosts` names `host`, or a domain that it belongs to."""
    return any(host == name.lower() or host.endswith(f".{name.lower()}") for name in hosts)


def _merged(spec: ModelSpec, detection: Detection) -> Detection:
    """Complete the files' detection by the registry's entry. Raises UnsupportedModel if the two disagree."""
    # If the header shows no family, the operator's declaration counts.
    is_pipeline = detection.format in ("diffusers", "modular")
    declared_so = spec.architecture is not None and detection.architecture is None and not is_pipeline
    if detection.kind is Kind.UPSCALER and detection.pipeline is None:
        raise UnsupportedModel(
            f"{spec.id} is a {detection.variant}, which needs faces cut out of an image first, and no upscaler of "
            "whole images; name an ESRGAN, SwinIR, HAT, DAT or SPAN file.",
            field="model",
            details={"kind": detection.kind, "evidence": list(detection.evidence)},
        )
    if detection.kind not in _RUNNABLE and not declared_so:
        label = "nothing that the detector knows" if detection.kind is Kind.UNKNOWN else f"a {detection.kind}"
        nearest = f" (nearest: {', '.join(detection.near)})" if detection.near else ""
        raise UnsupportedModel(
            f"{spec.id} is {label}{nearest}, and not a model that can draw by itself; name a diffusers repository or "
            "a checkpoint.",
            field="model",
            details={"kind": detection.kind, "evidence": list(detection.evidence)},
        )
    if spec.architecture and detection.architecture and spec.architecture != detection.architecture:
        raise UnsupportedModel(
            f"{spec.id} is declared as {spec.architecture} in models.yaml, but its files say {detection.architecture}; "
            "correct the entry.",
            field="model",
            details={"evidence": list(detection.evidence)},
        )
    return replace(
        detection,
        kind=Kind.CHECKPOINT if declared_so else detection.kind,
        architecture=spec.architecture or detection.architecture,
        prediction_type=spec.prediction_type or detection.prediction_type,
    )


def offered_tasks(model: Model) -> tuple[Task, ...]:
    """Return the tasks that a model is offered for: without those whose class is broken, where another is left.

    One that the registry asks for is refused by name.
    """
    candidates = model.tasks
    if model.architecture is None:  # a family without a row serves the tasks of diffusers' auto pipelines
        candidates = tuple(dict.fromkeys((*candidates, *auto_pipelines(model.pipeline))))
    return tuple(task for task in candidates if not model.call(task).row.broken) or candidates


def _completed(model: Model) -> Detection:
    """Return the detection of `model`, completed from the registry and the family's row."""
    spec, detection, row = model.spec, model.detection, model.architecture
    tasks = spec.tasks or offered_tasks(model)
    completed = replace(
        detection,
        tasks=tasks,
        pipeline=model.pipeline or (model.pipeline_for(tasks[0]) if tasks else None),
        native_size=detection.native_size or (row.native_size if row else None),
        activation_gb_per_mp=row.activation_gb_per_mp if row else detection.activation_gb_per_mp,
        few_steps=row.few_steps.get(detection.variant or "") if row else None,
    )
    check_loadable(spec.id, completed)
    check_modular(spec, completed)
    return completed


def _unknown(name: str, nearest: list[str], fix: str, field: str = "model") -> ModelNotFound:
    listed = f"did you mean {' or '.join(nearest)}?" if nearest else '{"action": "models"} lists those there are.'
    return ModelNotFound(f"{field} {name[:120]!r} is not in models.yaml{fix}; {listed}", field=field)

"""What a version is made of: an entry's sources at their present revisions and digests, and if they are still there."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from worker.catalog.versions import CONTENT, content_digest
from worker.core.errors import CorruptFile, ModelNotFound, SourceUnavailable, UnsupportedModel, WorkerError
from worker.core.model import ModelSource, ModelSpec
from worker.core.result import ignore_progress
from worker.core.turn import StopSignal
from worker.core.version import PinnedFile, PinnedSource, VersionContent
from worker.service.accepting.resolving import ModelResolver
from worker.service.local.provisioning import Provisioner
from worker.store.lockfile import LockedModel
from worker.store.store import Store

Sources = list[tuple[ModelSource, str | None]]


@dataclass(frozen=True, slots=True)
class Pinning:
    """Pins entries of models.yaml. `holds` knows if the volume has a model with files of these digests. Blocking."""

    store: Store
    resolver: ModelResolver
    provisioner: Provisioner
    holds: Callable[[Collection[str]], bool]

    def sources(self, spec: ModelSpec) -> Sources:
        """Return an entry's sources, the model first, each with its variant; other entries that it names left out."""
        loras = [(lora.model, lora.weight_name) for lora in spec.loras]
        loras += [(spec.lightning.lora, None)] if spec.lightning else []
        adapters = [(self.resolver.adapter_source(name, filename, "loras"), None) for name, filename in loras]
        try:
            model_sources = self.provisioner.sources(self.resolver.known(spec))
        except (UnsupportedModel, ModelNotFound):  # a companion, or a model that only another machine can run or has
            model_sources = self.provisioner.adapter_sources(spec)
        return [*model_sources, *adapters]

    def pin(self, spec: ModelSpec, stop: StopSignal) -> VersionContent:
        """Return the content of `spec` as it is now. Files are fetched only where a source names no digests."""
        pins = _Pins([(*pair, self.store.lock(*pair, ignore_progress, stop)) for pair in self.sources(spec)])
        part, adapter = self.resolver.part_source, self.resolver.adapter_source
        lightning = spec.lightning
        if lightning is not None:
            lora = pins.text(adapter(lightning.lora, None, "loras"))
            lightning = lightning.model_copy(update={"lora": lora, "others": {}})
        pinned = spec.model_copy(
            update={
                "source": pins.source(spec.source),
                "base": spec.base and pins.text(part(spec.base)),
                "vae": spec.vae and pins.text(part(spec.vae)),
                "components": {name: pins.text(part(text)) for name, text in spec.components.items()},
                "loras": tuple(
                    lora.model_copy(
                        update={"model": pins.text(adapter(lora.model, lora.weight_name, "loras")), "weight_name": None}
                    )
                    for lora in spec.loras
                ),
                "lightning": lightning,
                "version": None,
            }
        )
        alone = ModelSpec(id=spec.id, **{name: getattr(pinned, name) for name in CONTENT})
        return VersionContent(
            digest=content_digest(pinned), entry=content_digest(spec), spec=alone, sources=tuple(pins.listed())
        )

    def check(self, content: VersionContent, name: str, stop: StopSignal) -> None:
        """Raise the reason why a version could not be served; nothing is fetched that its source has by digest."""
        for pinned in content.sources:
            if self.holds({file.sha256 for file in pinned.files.values()}):
                continue
            try:
                now = self._now(pinned, stop)
            except WorkerError as error:
                raise type(error)(f"{name} cannot be served: {error.message}", field="version") from None
            if now != pinned.files:
                changed = sorted(file for file in pinned.files if now.get(file) != pinned.files[file])
                raise CorruptFile(
                    f"{name} cannot be served: {', '.join(changed[:3]) or 'the list of files'} of "
                    f"{_shown(pinned.source)} is not what it was, and the volume has no copy; promote another version.",
                    field="version",
                )

    def _now(self, pinned: PinnedSource, stop: StopSignal) -> dict[str, PinnedFile]:
        """Return the files that a source has now."""
        try:
            return _files(self.store.lock(pinned.source, pinned.variant, ignore_progress, stop))
        except SourceUnavailable:
            # They may lie in another program's cache, whose files are held against their digests too.
            self.store.ensure(pinned.source, pinned.variant, ignore_progress, stop)
            return pinned.files


@dataclass(slots=True)
class _Pins:
    """What each source stands for now."""

    locked: list[tuple[ModelSource, str | None, LockedModel]]
    _by_place: dict[tuple[object, ...], LockedModel] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._by_place = {_place(source): locked for source, _, locked in self.locked}

    def source(self, source: ModelSource) -> ModelSource:
        """Return `source` at what it stands for now; unchanged if it was not locked."""
        locked = self._by_place.get(_place(source))
        return source if locked is None else _pinned(source, locked)

    def text(self, source: ModelSource) -> str:
        """Return the same as a reference."""
        return self.source(source).reference

    def listed(self) -> list[PinnedSource]:
        """Return all of them, with their files."""
        return [
            PinnedSource(source=_pinned(source, locked), variant=variant, files=_files(locked))
            for source, variant, locked in self.locked
        ]


def _pinned(source: ModelSource, locked: LockedModel) -> ModelSource:
    """Return `source` at its locked revision; what has no revision by its digest."""
    changes: dict[str, str] = {"revision": locked.revision} if locked.revision else {}
    if source.is_local or (not source.is_repository and len(locked.files) == 1):
        changes["sha256"] = locked.whole_sha256
    return source.model_copy(update=changes)


def _place(source: ModelSource) -> tuple[object, ...]:
    return source.scheme, source.locator, source.filename, source.subfolder, source.revision


def _files(locked: LockedModel) -> dict[str, PinnedFile]:
    return {name: PinnedFile(size=file.size, sha256=file.sha256) for name, file in locked.files.items()}


def _shown(source: ModelSource) -> str:
    return f"file:…/{source.locator.rpartition('/')[2][:80]}" if source.is_local else source.locator[:120]

"""Commands that hand a recipe on, and take one: its text, with its models pinned by revision and digests."""

import json
import re
import uuid
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pydantic import JsonValue

from worker.app.build import Worker
from worker.app.cli.cache import sources_of
from worker.app.cli.recipe import place_of, read
from worker.app.cli.session import LONG_S, failures, open_worker, settings_of
from worker.app.cli.terminal import Failure, Terminal
from worker.app.settings import Settings
from worker.catalog.operator_file import FileError, OperatorFile
from worker.catalog.recipes.recipe import Recipe
from worker.catalog.recipes.shared import (
    PORTABLE,
    Share,
    SharedFile,
    SharedModel,
    SharedSource,
    read_share,
    text_of,
    write_share,
)
from worker.catalog.registry_edit import EditError, with_entry
from worker.core.errors import WorkerError
from worker.core.model import ModelSource, ModelSpec
from worker.core.turn import StopSignal
from worker.service.recipes.checking import names_in
from worker.store.entries import write_atomically
from worker.store.lockfile import LockedFile, LockedModel, Lockfile, LockfileError, lock_key

Sources = list[tuple[ModelSource, str | None]]


def export(arguments: Namespace, terminal: Terminal) -> None:
    """Write one file that has a recipe and all that its models are."""
    recipe, models, text = exported(arguments.recipe, terminal)
    path = Path(arguments.file).expanduser()
    _write(path, text)
    terminal.print(f"{path}: {recipe.id} with {', '.join(models)}")


def exported(file: str, terminal: Terminal) -> tuple[Recipe, dict[str, SharedModel], str]:
    """Return a recipe, what its models are, and the text of both as one file. Raises Failure."""
    place = place_of(file)
    recipe = read(file, terminal)
    with open_worker(terminal, further={"recipes": place}) as worker:
        models = {spec.id: _shared(worker, spec, terminal) for spec in _needed(worker, recipe)}
    return recipe, models, write_share(recipe.id, text_of(place), models)


def take(arguments: Namespace, terminal: Terminal) -> None:
    """Verify a shared recipe, and put it where recipes are served from; with --add its models into models.yaml."""
    settings = settings_of(terminal)
    with failures(terminal):
        share = read_share(place_of(arguments.file))
        target = _target(settings, share)
    missing = _missing(settings, share, terminal)
    if missing and not arguments.add:
        raise Failure(
            f"{', '.join(missing)} is not in {settings.models_yaml.name}; --add writes what is missing there."
        )
    registry = _with_models(settings, {name: share.models[name] for name in missing})
    with _drafts(settings, share, registry) as (draft_registry, draft_recipe):
        further = {"models_yaml": draft_registry, "recipes": draft_recipe, "models_lock": Path("off")}
        with open_worker(terminal, further=further) as worker:
            locks = _verified(worker, share, terminal)
        _lock(settings, locks)
        if missing:
            draft_registry.replace(settings.models_yaml.resolve())
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, share.recipe)
    terminal.print(f"{target}: {share.name}; a server reads it on SIGHUP, or when it starts")


def _needed(worker: Worker, recipe: Recipe) -> list[ModelSpec]:
    """Return the models that a recipe's steps name, and those that these name, each once. Raises Failure."""
    if recipe.detectors:
        raise Failure(f"{recipe.id} finds parts by {Path(recipe.detectors[0]).name}, which lies on this machine alone.")
    waiting, needed = [*names_in(recipe)], dict[str, ModelSpec]()
    while waiting:
        name = waiting.pop(0)
        spec = worker.registry.find(name)
        if spec is None:
            raise Failure(f"{name[:128]} is not in models.yaml; add it there: what is shared is pinned by its entry.")
        if spec.id not in needed:
            needed[spec.id] = spec
            waiting += [other for field, other in spec.other_models.items() if field != "fallback"]
    return [*needed.values()]


def _shared(worker: Worker, spec: ModelSpec, terminal: Terminal) -> SharedModel:
    sources = sources_of(worker, spec)
    stop, lockfile = StopSignal(LONG_S), _lockfile(worker.settings)
    locked = [
        lockfile.find(source, variant) or worker.store.lock(source, variant, terminal.show, stop)
        for source, variant in sources
    ]
    return SharedModel(
        entry=None if spec.source.is_local else _portable(worker.settings, spec, locked[0].revision),
        sources=tuple(_source(source, each) for (source, _), each in zip(sources, locked, strict=True)),
    )


def _source(source: ModelSource, locked: LockedModel) -> SharedSource:
    files = {name: SharedFile(size=file.size, sha256=file.sha256) for name, file in locked.files.items()}
    reference = None if source.is_local else source.reference.partition("?")[0]
    return SharedSource(reference=reference, revision=locked.revision, files=files)


def _portable(settings: Settings, spec: ModelSpec, revision: str | None) -> dict[str, JsonValue]:
    """Return an entry of models.yaml as another operator may have it, at the revision that it stands for now."""
    models = OperatorFile(settings.models_yaml).data().get("models")
    written = models.get(spec.id) if isinstance(models, dict) else None
    entry = {key: value for key, value in (written if isinstance(written, dict) else {}).items() if key in PORTABLE}
    if any(text.startswith("file:") for text in re.findall(r'"(file:[^"]*)"', json.dumps(entry))):
        raise Failure(f"{spec.id} has a part that lies on this machine; name it by a reference in models.yaml.")
    source = (
        spec.source
        if spec.source.revision or revision is None
        else spec.source.model_copy(update={"revision": revision})
    )
    return {"source": source.reference.partition("?")[0], **{key: entry[key] for key in entry if key != "source"}}


def _target(settings: Settings, share: Share) -> Path:
    """Return the path for the recipe. Raises Failure where another one has it."""
    folder = settings.recipes_place or settings.models_yaml.with_name("recipes")
    if folder.is_file():
        raise Failure("RECIPES names a single file; name a folder, so that a further recipe can be put there.")
    target = folder / f"{share.name}.yaml"
    if target.exists() and text_of(target) != share.recipe:
        raise Failure(f"{target} is another recipe; rename it or the one that is shared.")
    return target


def _missing(settings: Settings, share: Share, terminal: Terminal) -> list[str]:
    with open_worker(terminal, further={"recipes": None}) as worker:  # whose folder may not be there yet
        missing = [name for name in share.models if worker.registry.find(name) is None]
    for name in missing:
        if share.models[name].entry is None:
            raise Failure(f"{name} was a model of local files, and {settings.models_yaml.name} has none of this name.")
    return missing


def _with_models(settings: Settings, models: Mapping[str, SharedModel]) -> str:
    """Return the text of models.yaml with further entries. Raises Failure."""
    text = settings.models_yaml.read_text(encoding="utf-8")
    for name, model in models.items():
        lines = [f"  {key}: {json.dumps(value)}" for key, value in (model.entry or {}).items()]
        try:
            text = with_entry(text, name, "\n".join([f"{json.dumps(name)}:  # shared", *lines]))
        except EditError as error:
            raise Failure(f"{settings.models_yaml.name}: {error}") from None
    return text


@contextmanager
def _drafts(settings: Settings, share: Share, registry: str) -> Iterator[tuple[Path, Path]]:
    """Write registry and recipe beside the real ones, under names that nobody reads; they are gone afterwards."""
    mark = uuid.uuid4().hex[:8]
    real = settings.models_yaml.resolve()
    draft = real.with_name(f".{real.stem}-{mark}.yaml")
    folder = real.with_name(f".recipes-{mark}")
    recipe = folder / f"{share.name}.yaml"
    try:
        folder.mkdir()
        draft.write_text(registry, encoding="utf-8", newline="")
        recipe.write_text(share.recipe, encoding="utf-8", newline="")
        yield draft, recipe
    except FileError as error:
        raise Failure(str(error).replace(draft.name, real.name)) from None
    except OSError as error:
        raise Failure(f"{real.parent} cannot be written ({error.strerror}).") from None
    finally:
        draft.unlink(missing_ok=True)
        recipe.unlink(missing_ok=True)
        if folder.exists():
            folder.rmdir()


def _verified(worker: Worker, share: Share, terminal: Terminal) -> dict[str, LockedModel]:
    """Return the locks of all sources that are fetched, each of which is what was shared. Raises Failure."""
    recipe = worker.registry.recipes[share.name]
    locks: dict[str, LockedModel] = {}
    for spec in _needed(worker, recipe):
        model = share.models.get(spec.id)
        if model is None:
            raise Failure(f"The file says nothing of {spec.id}, which {recipe.id} needs; ask for a whole one.")
        sources = sources_of(worker, spec)
        if len(sources) != len(model.sources):
            raise Failure(
                f"{spec.id} has {len(sources)} sources here and had {len(model.sources)} where it was shared."
            )
        for (source, variant), shared in zip(sources, model.sources, strict=True):
            wanted = LockedModel(shared.revision, {name: _file(file) for name, file in shared.files.items()})
            pinned = (
                source
                if source.revision or source.is_local
                else source.model_copy(update={"revision": shared.revision})
            )
            found = worker.store.lock(pinned, variant, terminal.show, StopSignal(LONG_S))
            _compare(spec, found, wanted)
            if not source.is_local:
                locks[lock_key(source, variant)] = wanted
    return locks


def _file(file: SharedFile) -> LockedFile:
    return LockedFile(file.size, file.sha256)


def _compare(spec: ModelSpec, found: LockedModel, wanted: LockedModel) -> None:
    for name, file in wanted.files.items():
        if found.files.get(name) != file:
            here = "missing" if name not in found.files else "another file"
            raise Failure(f"{spec.id} is not the model that was shared: {name} is {here} here.")
    if found.revision != wanted.revision:
        raise Failure(f"{spec.id} is at {found.revision} here, and was shared at {wanted.revision}.")


def _lock(settings: Settings, locks: Mapping[str, LockedModel]) -> None:
    """Add to the lockfile, so that only these files are ever loaded. Raises Failure where it names others."""
    path = settings.lock_file
    if path is None or not locks:
        return
    lockfile = _lockfile(settings)
    for key, locked in locks.items():
        if lockfile.models.setdefault(key, locked) != locked:
            raise Failure(f"{path.name} has {key} with other files; write it anew, or take another recipe.")
    lockfile.write(path)


def _lockfile(settings: Settings) -> Lockfile:
    path = settings.lock_file
    try:
        return Lockfile.read(path) if path is not None and path.exists() else Lockfile()
    except LockfileError as error:
        raise Failure(str(error)) from None


def _write(path: Path, text: str) -> None:
    try:
        write_atomically(path.absolute(), text)
    except (OSError, WorkerError) as error:
        raise Failure(f"{path} cannot be written ({type(error).__name__}).") from None

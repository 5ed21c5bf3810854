"""A repository in the Hub's cache layout on disk: found, judged complete, and remembered, without a request."""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from worker.core.errors import CorruptFile, UnsafeFormat, UnsupportedModel
from worker.core.model import ModelFiles, ModelSource
from worker.store.local import read_json
from worker.store.selection import MODEL_INDEX, Selection, components, is_shard, pipeline_files, single_file

MANIFESTS = ".manifests"
# Components of these classes have no weights of their own.
_WEIGHTLESS = re.compile(r"Tokenizer|Processor|Scheduler|Extractor|Guider")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One commit of a repository on disk."""

    folder: Path
    commit: str


def repo_folder(cache: Path, repo: str) -> Path:
    """Where the Hub's cache keeps `repo`; names are case-sensitive."""
    return cache / f"models--{repo.replace('/', '--')}"


def find_snapshots(cache: Path, repo: str, revision: str | None) -> Iterator[Snapshot]:
    """The snapshots in `cache` that may stand for `revision` (default: main), best first; complete or not."""
    folder = repo_folder(cache, repo)
    reference = folder / "refs" / (revision or "main")
    named = reference.read_text().strip() if reference.is_file() else revision
    if named and (folder / "snapshots" / named).is_dir():
        yield Snapshot(folder / "snapshots" / named, named)
    if revision is None:
        # RunPod's cached-model layout may lack refs, and a file may be newer than the pipeline beside it.
        others = [path for path in (folder / "snapshots").glob("*") if path.is_dir() and path.name != named]
        for path in sorted(others, key=lambda path: (-path.stat().st_mtime, path.name)):
            yield Snapshot(path, path.name)


def write_reference(cache: Path, repo: str, revision: str | None, commit: str) -> None:
    """Note which commit `revision` (default: main) was, as the Hub's own client does."""
    if revision == commit:
        return
    path = repo_folder(cache, repo) / "refs" / (revision or "main")
    _write(path, commit)


def complete_files(
    found: Snapshot, source: ModelSource, variant: str | None, *, guess: bool = False
) -> ModelFiles | None:
    """What `source` names in a snapshot that another tool put there, when nothing of it is missing.

    With `guess`, the only file of a folder that is no pipeline stands for the repository: right where repositories
    are cached whole, wrong where somebody may have fetched one file of many.
    """
    if source.filename:
        return _file(found, source.filename) if (found.folder / source.filename).is_file() else None
    names = file_names(found.folder)
    if MODEL_INDEX in names:
        chosen = _complete_pipeline(found.folder, names, variant)
        if chosen is None:
            return None
        total = sum((found.folder / name).stat().st_size for name in chosen.names)
        return ModelFiles(found.folder, total, revision=found.commit, variant=chosen.variant)
    if not guess:
        return None
    try:
        return _file(found, single_file([name for name in names if "/" not in name], source.locator))
    except (UnsupportedModel, UnsafeFormat):
        return None


def file_names(folder: Path) -> list[str]:
    """Every file below `folder`, relative to it; links to nothing are left out."""
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _file(found: Snapshot, name: str) -> ModelFiles:
    path = found.folder / name
    return ModelFiles(path, path.stat().st_size, revision=found.commit)


def _complete_pipeline(folder: Path, names: list[str], variant: str | None) -> Selection | None:
    try:
        index = read_json(folder / MODEL_INDEX)
        chosen = pipeline_files(index, names, variant)
        parts = [
            (name, cls, [file for file in chosen.names if file.startswith(f"{name}/")])
            for name, cls in components(index)
        ]
        whole = all(_is_whole(folder, name, cls, files) for name, cls, files in parts)
    except (CorruptFile, UnsafeFormat):
        return None
    return chosen if whole else None


def _is_whole(folder: Path, component: str, cls: str, files: list[str]) -> bool:
    """Whether a component has all that its class loads: files at all, config and weights together, every shard."""
    weights = {name for name in files if name.endswith(".safetensors")}
    if not files or (not _WEIGHTLESS.search(cls) and bool(weights) != (f"{component}/config.json" in files)):
        return False
    shards: set[str] = set()
    for name in files:
        if name.endswith(".json") and ".index." in name:
            weight_map = read_json(folder / name).get("weight_map")
            if not isinstance(weight_map, dict):
                return False
            shards |= {f"{component}/{shard}" for shard in weight_map.values()}
    return shards <= weights and all(name in shards for name in weights if is_shard(name))


def _manifest_path(cache: Path, repo: str, commit: str, filename: str | None, wanted: str | None) -> Path:
    # A digest, because names of files may be longer than a file name.
    what = hashlib.sha256(json.dumps([filename, wanted]).encode()).hexdigest()[:16]
    return cache / MANIFESTS / repo_folder(cache, repo).name / f"{commit}-{what}.json"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a finished download put on disk: sizes in bytes by file name, and the variant that was chosen."""

    files: Mapping[str, int]
    variant: str | None

    @property
    def total_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(self.files.values())


def write_manifest(
    cache: Path, repo: str, commit: str, filename: str | None, wanted: str | None, manifest: Manifest
) -> None:
    """Publish `manifest` atomically: it exists only once every file of it does."""
    path = _manifest_path(cache, repo, commit, filename, wanted)
    _write(path, json.dumps({"files": dict(manifest.files), "variant": manifest.variant}))


def read_manifest(
    cache: Path, repo: str, commit: str, filename: str | None, wanted: str | None, folder: Path
) -> Manifest | None:
    """The manifest of a finished download, if all its files are still there with their sizes; else None."""
    path = _manifest_path(cache, repo, commit, filename, wanted)
    if not path.is_file():
        return None
    try:
        value = read_json(path)
    except CorruptFile:
        return None
    files = value.get("files")
    if not isinstance(files, dict):
        return None
    for name, size in files.items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != size:
            return None
    variant = value.get("variant")
    return Manifest(files, variant if isinstance(variant, str) else None)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text)
    part.replace(path)

"""models.lock: the revision and the digests of each model of the registry, so that a deploy can be repeated exactly.

JSON, sorted, one entry per reference (with its variant): the revision that it stood for, and size and SHA-256 of every
file. Where it exists, a reference means that revision, and a file with another digest is refused.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from worker.core.errors import CorruptFile
from worker.core.model import ModelFiles, ModelSource
from worker.store.entries import known_digest, write_atomically
from worker.store.transfer import digest_of

VERSION = 1
_SHA256 = re.compile(r"[0-9a-f]{64}")


class LockfileError(ValueError):
    """A lockfile that cannot be used; the message names it and the fix."""


@dataclass(frozen=True, slots=True)
class LockedFile:
    """Size in bytes and SHA-256 of one file."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class LockedModel:
    """A locked reference: files by their names below the model's folder, or the one file."""

    revision: str | None
    files: Mapping[str, LockedFile]

    @property
    def whole_sha256(self) -> str:
        """The digest of all files: of one its own, of several that of their names and digests."""
        if len(self.files) == 1:
            return next(iter(self.files.values())).sha256
        lines = [f"{file.sha256} {name}\n" for name, file in sorted(self.files.items())]
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


class Lockfile:
    """The locked models by reference. An empty one locks nothing."""

    def __init__(self, models: Mapping[str, LockedModel] | None = None) -> None:
        self.models = dict(models or {})
        self._digests: dict[tuple[Path, int, int], str] = {}

    @classmethod
    def read(cls, path: Path) -> "Lockfile":
        """Read the lockfile at `path`. Raises LockfileError for one that is damaged or of another version."""
        try:
            value = json.loads(path.read_bytes())
            if value["version"] != VERSION:
                raise LockfileError(f"{path.name} has version {value['version']!r}, and this worker reads {VERSION}.")
            return cls({str(key): _locked_model(item) for key, item in value["models"].items()})
        except OSError as error:
            raise LockfileError(f"{path.name} cannot be read ({error.strerror}).") from None
        except LockfileError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise LockfileError(f"{path.name} is damaged; write it anew with `python -m worker lock`.") from None

    def write(self, path: Path) -> None:
        """Write the file; the same models give the same bytes."""
        models = {
            key: {
                "revision": model.revision,
                "files": {name: {"sha256": file.sha256, "size": file.size} for name, file in model.files.items()},
            }
            for key, model in self.models.items()
        }
        write_atomically(path, json.dumps({"version": VERSION, "models": models}, indent=2, sort_keys=True) + "\n")

    def find(self, source: ModelSource, variant: str | None) -> LockedModel | None:
        """Return the locked model of `source`, if there is one."""
        return self.models.get(lock_key(source, variant))

    def pin(self, source: ModelSource, variant: str | None) -> ModelSource:
        """Return `source` at its locked revision, one file with its digest too; unchanged if it is not locked."""
        locked = self.find(source, variant)
        if locked is None:
            return source
        changes: dict[str, str] = {"revision": locked.revision} if locked.revision else {}
        if len(locked.files) == 1:
            changes["sha256"] = next(iter(locked.files.values())).sha256
        return source.model_copy(update=changes)

    def check(self, source: ModelSource, variant: str | None, files: ModelFiles, may_go_on: Callable[[], None]) -> None:
        """Raise CorruptFile unless the files on disk are the locked ones. `may_go_on` may raise, while hashing."""
        locked = self.find(source, variant)
        if locked is None:
            return
        for name, expected in locked.files.items():
            if "/" in name and not source.wants(name.partition("/")[0]):
                continue
            # The companions of a single file lie beside it.
            path = files.root.with_name(PurePosixPath(name).name) if files.is_single_file else files.root / name
            if not path.is_file() or self._digest(path, may_go_on) != expected.sha256:
                raise CorruptFile(
                    f"{name} of {source.reference} is not the file that the lockfile names; write it anew with "
                    "`python -m worker lock`, or set MODELS_LOCK=off.",
                    field="model",
                )

    def _digest(self, path: Path, may_go_on: Callable[[], None]) -> str:
        if digest := known_digest(path):
            return digest
        state = path.stat()
        key = (path, state.st_size, state.st_mtime_ns)
        if key not in self._digests:
            self._digests[key] = digest_of(path, hashlib.sha256(), may_go_on)
        return self._digests[key]


def lock_key(source: ModelSource, variant: str | None) -> str:
    """Return the key of a model in the lockfile: its reference, and the variant of its weights."""
    return f"{source.reference} (variant {variant})" if variant else source.reference


def locked_from_disk(files: ModelFiles, may_go_on: Callable[[], None]) -> LockedModel:
    """Lock files that were fetched; those that the volume cache did not verify are hashed."""
    root = files.root
    paths = [root] if files.is_single_file else sorted(path for path in root.rglob("*") if path.is_file())
    folder = root.parent if files.is_single_file else root
    locked = {
        path.relative_to(folder).as_posix(): LockedFile(
            path.stat().st_size, known_digest(path) or digest_of(path, hashlib.sha256(), may_go_on)
        )
        for path in paths
    }
    return LockedModel(files.revision, locked)


def _locked_model(value: Mapping[str, object]) -> LockedModel:
    revision, files = value["revision"], value["files"]
    if not isinstance(revision, str | None) or not isinstance(files, dict) or not files:
        raise ValueError("no locked model")
    locked = {str(name): LockedFile(int(item["size"]), str(item["sha256"])) for name, item in files.items()}
    if not all(_SHA256.fullmatch(file.sha256) for file in locked.values()):
        raise ValueError("no digest")
    return LockedModel(revision, locked)

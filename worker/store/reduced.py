"""Weights that were made smaller once, on the volume: an entry for each model, precision, dtype and quantizer.

An entry is written beside and published by a rename. Its manifest has size and SHA-256 of every file: one that does
not have them is not taken, and its model is made smaller anew as it is loaded.
"""

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

from pydantic import JsonValue

_LOG = logging.getLogger(__name__)
_MANIFEST = "reduced.json"
_VERSION = 1
_BLOCK = 2**22


class ReducedWeights:
    """The entries below one folder: a folder for each model, and in it one for each form of its weights."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, model: str) -> dict[str, Path]:
        """Return the entries of a model by their forms, those that are whole."""
        try:
            folders = [path for path in sorted((self._folder / model).iterdir()) if path.is_dir()]
        except OSError:
            return {}
        return {path.name: path for path in folders if not path.name.startswith(".") and _is_whole(path)}

    def publish(self, model: str, form: str, write: Callable[[Path], None], report: Mapping[str, JsonValue]) -> Path:
        """Have `write` fill a folder, and publish it as this model's entry, in the place of an older one."""
        target = self._folder / model / form
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".", dir=target.parent))
        try:
            write(scratch)
            files = {str(path.relative_to(scratch)): _facts(path) for path in sorted(scratch.rglob("*.*"))}
            manifest = {"version": _VERSION, "files": files, "report": dict(report)}
            (scratch / _MANIFEST).write_text(json.dumps(manifest, indent=1))
            for path in (scratch, *scratch.rglob("*")):  # other users' workers read them too
                path.chmod(0o755 if path.is_dir() else 0o644)
            shutil.rmtree(target, ignore_errors=True)
            scratch.rename(target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return target


def write_report(entry: Path, report: Mapping[str, JsonValue]) -> None:
    """Write what was found out of an entry into its manifest."""
    manifest = json.loads((entry / _MANIFEST).read_bytes())
    fresh = entry / f".{_MANIFEST}"
    fresh.write_text(json.dumps(manifest | {"report": dict(report)}, indent=1))
    fresh.replace(entry / _MANIFEST)


def _facts(path: Path) -> dict[str, JsonValue]:
    return {"bytes": path.stat().st_size, "sha256": _sha256(str(path), path.stat().st_size, path.stat().st_mtime_ns)}


def _is_whole(entry: Path) -> bool:
    try:
        manifest = json.loads((entry / _MANIFEST).read_bytes())
        whole = manifest["version"] == _VERSION and all(
            _facts(entry / name) == facts for name, facts in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        _LOG.warning("the reduced weights in %s are damaged, and are not used", entry.name)
    return whole


@lru_cache(maxsize=1_024)
def _sha256(path: str, size: int, mtime_ns: int) -> str:
    """Return a file's digest, computed once as long as its size and time stay."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()

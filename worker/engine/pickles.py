"""Conversion of pickles to safetensors, once each, where the operator allows them.

No pickle is ever read in the worker's process.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from worker.core.errors import CorruptFile, LoadFailed, UnsafeFormat
from worker.core.model import PICKLES, safetensors_files
from worker.engine.pickle_child import DAMAGED, UNSAFE

_CHILD = Path(__file__).with_name("pickle_child.py")
_TIMEOUT_S = 1_200
_BLOCK = 2**22


class PickleConverter:
    """A converter that keeps its results below `folder`, each named by the SHA-256 of its source."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def convert(self, root: Path) -> Path:
        """Return a safetensors file for a pickle, a folder without pickles for one with them, or else `root` itself.

        Raises UnsafeFormat for a file that holds more than tensors, CorruptFile for a damaged one.
        """
        if root.is_file():
            return self._file(root) if root.suffix.lower() in PICKLES else root
        lacking = [folder for folder in [root, *filter(Path.is_dir, root.iterdir())] if _needs(folder)]
        return self._mirrored(root, lacking) if lacking else root

    def _file(self, path: Path) -> Path:
        digest = _sha256(path)
        target = self._folder / f"{digest}.safetensors"
        if not target.is_file():
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._folder) as scratch:
                converted = Path(scratch) / "made.safetensors"
                _run(path, converted)
                converted.replace(target)
        return target

    def _mirrored(self, root: Path, lacking: list[Path]) -> Path:
        """Return a copy of the folder: links to its files, and safetensors in place of pickles. The original stays."""
        files = sorted(path for path in root.rglob("*") if path.is_file())
        state = [(str(path.relative_to(root)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        name = hashlib.sha256(repr((str(root.resolve()), state)).encode()).hexdigest()
        target = self._folder / name
        if target.is_dir():
            return target
        self._folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=self._folder))
        for path in files:
            link = scratch / path.relative_to(root)
            link.parent.mkdir(parents=True, exist_ok=True)
            if path.parent not in lacking or not _is_pickled(path):
                link.symlink_to(path.resolve())
            elif path.suffix == ".json":
                link.with_name(_renamed(path.name)).write_text(_index(path))
            elif path.suffix == ".bin":
                link.with_name(_renamed(path.name)).symlink_to(self._file(path).resolve())
        try:
            scratch.rename(target)
        except OSError:  # another worker was faster
            if not target.is_dir():
                raise
        return target


def _needs(folder: Path) -> bool:
    """True if a component has its weights as pickles and not as safetensors."""
    return any(folder.glob("*.bin")) and not safetensors_files(folder)


def _is_pickled(path: Path) -> bool:
    return path.suffix == ".bin" or path.name.endswith(".bin.index.json")


def _renamed(name: str) -> str:
    """Return the name that diffusers and transformers give the same weights in safetensors."""
    return re.sub(r"^pytorch_model\b", "model", name).replace(".bin", ".safetensors")


def _index(path: Path) -> str:
    index = json.loads(path.read_bytes())
    index["weight_map"] = {name: _renamed(shard) for name, shard in index["weight_map"].items()}
    return json.dumps(index)


def _run(source: Path, target: Path) -> None:
    """Convert in a child: no secret in its environment, no module of the worker, limits on time, memory and disk."""
    command = [sys.executable, "-I", str(_CHILD), str(source.resolve()), str(target), str(source.stat().st_size)]
    environment = {"PATH": os.defpath, "OMP_NUM_THREADS": "1"}
    try:
        process = subprocess.run(
            command,
            env=environment,
            cwd=target.parent,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise LoadFailed(
            f"{source.name[:80]} was not converted from a pickle within {_TIMEOUT_S} seconds; use a safetensors file.",
            field="model",
        ) from None
    if process.returncode == 0:
        return
    if process.returncode == DAMAGED:
        raise CorruptFile(f"{source.name[:80]} is damaged, or no weights at all; fetch it again.", field="model")
    if process.returncode != UNSAFE:
        raise LoadFailed(
            f"{source.name[:80]} could not be converted from a pickle (status {process.returncode}, memory perhaps); "
            "use a safetensors version of it.",
            field="model",
        )
    raise UnsafeFormat(
        f"{source.name[:80]} is a pickle that holds more than tensors, and reading it could run code; "
        "use a safetensors version of it.",
        field="model",
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()

"""Weight files read ahead of their loader, each from its beginning to its end.

The libraries map a file and take its pages as they come to them: in small pieces and in the order of the model, with a
pause for every cast. A disk is read at a third of its speed that way. Read ahead, the pages are there already; and
where a model of diffusers is wanted in another dtype than its file's, its tensors are there, cast.
"""

import json
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.models import model_loading_utils

from worker.core.device import LoadPlan
from worker.core.model import safetensors_files
from worker.engine.classes import DTYPES
from worker.engine.compatibility import reach_moved_parts
from worker.engine.components import read_index
from worker.engine.machine import ram
from worker.engine.weight_file import Wanted, is_cast, plain_entries, read_tensors

_BLOCK = 2**20
_AT_ONCE = 64
Tensors = dict[str, torch.Tensor]


@dataclass(slots=True)
class _File:
    """A file to be read; `wanted` where its tensors are, and not only its pages."""

    path: Path
    wanted: Wanted | None = None
    tensors: "Future[Tensors]" = field(default_factory=Future)


@contextmanager
def yielding() -> Iterator[None]:
    """Let whoever puts a model together give way to the readers of its files every tenth of a millisecond.

    A reader needs Python for a moment after each piece, and would wait five milliseconds for it: as long as the disk
    takes for the next one.
    """
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


@contextmanager
def read_ahead(plan: LoadPlan) -> Iterator[None]:
    """Have the files of `plan` read while it is loaded; none of them where they do not fit into memory.

    Ends once they are read, so that nobody takes pages of a file from its middle before.
    """
    # What is read into memory at once, in the order of the file, needs nobody ahead of it.
    files = [] if plan.root.is_file() and plan.device == "cpu" else [*_files(plan)]
    if not files or sum(file.path.stat().st_size for file in files) >= ram()[1]:
        yield
        return
    given_up = threading.Event()
    reader = threading.Thread(target=_read_all, args=(files, given_up), name="read ahead", daemon=True)
    with _taken_by_diffusers({file.path.resolve(): file for file in files if file.wanted}):
        reader.start()
        try:
            yield
        except BaseException:
            given_up.set()
            raise
        reader.join()


def weight_files(plan: LoadPlan) -> Iterator[Path]:
    """Yield the files that are loaded, in the loader's order."""
    for name, path in sorted(plan.parts.items()):
        yield from _of(path / name if (path / name).is_dir() else path, None)
    if plan.root.is_file():
        yield plan.root
    else:
        for folder in sorted(path for path in plan.root.iterdir() if path.is_dir() and _is_loaded(path, plan)):
            reduced = plan.reduced / folder.name if plan.reduced else None
            yield from _of(reduced, None) if reduced and reduced.is_dir() else _of(folder, plan.variant)


def _is_loaded(folder: Path, plan: LoadPlan) -> bool:
    """False for parts that come from elsewhere, for a safety checker, which is left out, and for what is no part."""
    is_reduced = plan.reduced is not None and (plan.reduced / folder.name).is_dir()
    if is_reduced or folder.name in plan.parts or folder.name == "safety_checker":
        return False
    return plan.format != "diffusers" or folder.name in read_index(plan.root)


def _files(plan: LoadPlan) -> Iterator[_File]:
    """Yield the files of a plan, each once."""
    classes, dtype = _classes(plan), DTYPES[plan.dtype]
    for path in dict.fromkeys(weight_files(plan)):
        cls = classes.get(path.parent)
        wanted = Wanted(dtype, frozenset(getattr(cls, "_keep_in_fp32_modules", None) or ()))
        if path.suffix != ".safetensors" or not is_cast(plain_entries(path) or (), wanted):
            yield _File(path)
        elif path != plan.root:  # which is read at once
            yield _File(path, None if cls is None else wanted)


def _classes(plan: LoadPlan) -> dict[Path, Any]:
    """Return diffusers' classes of the components that are loaded by `from_pretrained`, by their folders."""
    if plan.format != "diffusers":
        return {}
    reach_moved_parts(plan.root)
    return {
        plan.root / name: component.cls
        for name, component in read_index(plan.root).items()
        if name not in plan.parts and component.is_model and issubclass(component.cls, ModelMixin)
        if not _is_quantized(plan.root / name)
    }


def _is_quantized(folder: Path) -> bool:
    with suppress(OSError, ValueError):  # the loader will say what is wrong with it
        return "quantization_config" in json.loads((folder / "config.json").read_bytes())
    return True


def _of(path: Path, variant: str | None) -> list[Path]:
    if path.is_file():
        return [path]
    files = safetensors_files(path)
    of_variant = [file for file in files if variant and f".{variant}" in file.name]
    return of_variant or [file for file in files if file.name.count(".") == 1]


def _read_all(files: list[_File], given_up: threading.Event) -> None:
    for file in files:
        try:
            if given_up.is_set():
                return
            if file.wanted is None:
                _read_pages(file.path, given_up)
            else:
                file.tensors.set_result(read_tensors(file.path, file.wanted, mapped=True))
        except BaseException as error:  # who takes them hears of it
            file.tensors.set_exception(error)


def _read_pages(path: Path, given_up: threading.Event) -> None:
    # The same small block over and over: it stays in the processor's cache, and Python is asked for once in 64 MB.
    blocks, at = [bytearray(_BLOCK)] * _AT_ONCE, 0
    with suppress(OSError), path.open("rb", buffering=0) as file:  # the loader will say what is wrong with a file
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while not given_up.is_set() and (count := os.preadv(file.fileno(), blocks, at)):
            at += count


@contextmanager
def _taken_by_diffusers(files: dict[Path, _File]) -> Iterator[None]:
    """Have diffusers take the tensors of `files` where it reads one of them; each is taken once."""
    if not files:
        yield
        return
    usual = model_loading_utils.safetensors

    def load(path: str, device: Any = "cpu") -> Tensors:
        file = files.pop(Path(path).resolve(), None)
        if file is None:
            tensors: Tensors = usual.torch.load_file(path, device=device)
            return tensors
        return file.tensors.result()

    model_loading_utils.safetensors = SimpleNamespace(torch=SimpleNamespace(load_file=load, load=usual.torch.load))
    try:
        yield
    finally:
        model_loading_utils.safetensors = usual

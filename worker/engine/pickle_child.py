"""Turn one pickle of tensors into safetensors. Run as a script, in a process of its own, by `worker.engine.pickles`.

It imports nothing of the worker and gets an empty environment: code that a file may smuggle into torch finds no secret.
The barrier is torch's own reader for plain tensors (`weights_only`); the check of the names before it only answers
sooner. Exit statuses: 0 written, 3 more than tensors in it, 4 damaged.
"""

import io
import json
import pickle
import pickletools
import resource
import sys
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO

UNSAFE, DAMAGED = 3, 4
_GIB = 2**30
# The modules that tensors are made of. Weights need no names outside of these.
_MODULES = frozenset({"torch", "torch._utils", "torch._tensor", "torch.storage", "torch.nn.parameter", "collections"})
_MODULES |= {"numpy", "numpy.core.multiarray", "numpy._core.multiarray", "_codecs"}
_NOT_THESE = frozenset({"load", "hub", "compile", "jit", "ops", "classes"})
_PICKLES_OF_A_LEGACY_FILE = 5
_METADATA_ENTRIES, _METADATA_CHARS = 64, 200  # of metadata, and the length of one entry


def main(source: str, target: str, file_bytes: int) -> int:
    """Read `source` as tensors alone and write `target`. Returns the exit status."""
    _limit(file_bytes)
    if _names_code(source):
        return UNSAFE
    if not _looks_pickled(source):
        return DAMAGED
    import torch
    from safetensors.torch import save_file

    try:
        loaded = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        return UNSAFE if "Weights only load failed" in str(error) and "GLOBAL" in str(error) else DAMAGED
    except Exception:
        return DAMAGED
    tensors = {name: item.clone().contiguous() for name, item in _items(loaded) if isinstance(item, torch.Tensor)}
    if not tensors:
        return DAMAGED
    save_file(tensors, target, {**_metadata(loaded), "format": "pt"})
    return 0


def _limit(file_bytes: int) -> None:
    limits = {
        resource.RLIMIT_CPU: 900,
        resource.RLIMIT_DATA: 3 * file_bytes + 8 * _GIB,
        resource.RLIMIT_FSIZE: 2 * file_bytes + _GIB,
        resource.RLIMIT_CORE: 0,
    }
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))


def _names_code(source: str) -> bool:
    """True if the pickle names anything beside tensors' parts. A file that cannot be parsed is left to torch."""
    try:
        with open(source, "rb") as file:  # noqa: PTH123
            return any(
                module not in _MODULES or name.split(".")[0] in _NOT_THESE
                for stream in _streams(file)
                for module, name in _globals(stream)
            )
    except (ValueError, zipfile.BadZipFile, EOFError, IndexError, UnicodeDecodeError, NotImplementedError, OSError):
        return False


def _looks_pickled(source: str) -> bool:
    """True if the file begins as torch writes them: a zip archive, or a pickle of protocol 2 and up."""
    with open(source, "rb") as file:  # noqa: PTH123
        return file.read(1) == pickle.PROTO or zipfile.is_zipfile(file)


def _streams(file: BinaryIO) -> Iterator[BinaryIO]:
    """Yield the pickles of a file: those of torch's zip, or the first of the several in torch's old format."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                if name.endswith(".pkl"):
                    yield io.BytesIO(archive.read(name))
        return
    file.seek(0)
    for _ in range(_PICKLES_OF_A_LEGACY_FILE):
        yield file  # read up to its own end, so that the next one begins there


def _globals(stream: BinaryIO) -> Iterator[tuple[str, str]]:
    texts: list[str] = []
    for operation, argument, _ in pickletools.genops(stream):
        if operation.name in {"GLOBAL", "INST"}:
            module, _, name = str(argument).partition(" ")
            yield module, name
        elif operation.name == "STACK_GLOBAL":
            yield (texts[-2], texts[-1]) if len(texts) > 1 else ("?", "?")
        elif isinstance(argument, str):
            texts.append(argument)


def _items(loaded: Any) -> Iterator[tuple[str, Any]]:
    """Yield names and values. A training checkpoint has those of its model; a textual inversion, one level down."""
    if not isinstance(loaded, dict):
        return
    for key in ("state_dict", "params_ema", "params"):
        if isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    for name, value in loaded.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{key}", item) for key, item in value.items())
        elif isinstance(name, int) and isinstance(value, list | tuple):  # a hypernetwork's two networks of one width
            networks = [part for part in value if isinstance(part, dict)]
            yield from ((f"{name}.{at}.{key}", item) for at, part in enumerate(networks) for key, item in part.items())
        else:
            yield str(name), value


def _metadata(loaded: Any) -> dict[str, str]:
    """Return the file's entries beside its tensors: texts as they are, numbers and lists of them as JSON."""
    metadata: dict[str, str] = {}
    for name, value in loaded.items() if isinstance(loaded, dict) else ():
        if isinstance(name, str) and len(name) <= _METADATA_CHARS and len(metadata) < _METADATA_ENTRIES:
            numbers = value if isinstance(value, list | tuple) else [value]
            if isinstance(value, str):
                metadata[name] = value[:_METADATA_CHARS]
            elif len(numbers) <= _METADATA_ENTRIES and all(isinstance(item, int | float) for item in numbers):
                metadata[name] = json.dumps(value)
    return metadata


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))

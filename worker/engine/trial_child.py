"""Trials of foreign models, each in a process of its own. Run as a script by `worker.engine.trial`.

The script imports the libraries once and then forks for every socket that it is handed: a fork reads one request, tries
what it names, answers and ends. It gets an empty environment and never a secret. A fork has limits on processor time,
time and memory, can write small files only and reach no server; the operating system ends it, whatever code it is in.

A trial of an upscaler's file loads it. One of a folder builds each model from its config on the meta device, which
takes no memory for weights, and holds it against its files' headers; tokenizers, schedulers and processors are loaded
for good. Any failure but those is left to the real load, which meets it as soon and has its own sentence for it.
"""

import contextlib
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_MIB = 2**20
_IDLE_S = 600.0
# A packed tensor holds up to eight numbers in one of the file's; beyond that the config is not the files'.
_PACKED = 8
_SLACK_NUMBERS = 2**24
_MAX_BUFFER_BYTES = 2**30


def main(control_fd: int, project: str, cpu_s: int, wall_s: int, memory_mib: int) -> int:
    """Fork for every socket that arrives; end with the parent, or after ten idle minutes."""
    sys.path.insert(0, project)
    os.nice(5)  # the worker's own threads go first
    control = socket.socket(fileno=control_fd)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # forks need no wait
    _import_libraries()
    control.settimeout(_IDLE_S)
    while True:
        try:
            message, handed, _, _ = socket.recv_fds(control, 1, 1)
        except TimeoutError:
            return 0
        if not message:
            return 0
        connection = socket.socket(fileno=handed[0])
        if os.fork() == 0:
            control.close()
            _limit(cpu_s, wall_s, memory_mib)
            _answer(connection)
            os._exit(0)
        connection.close()


def _import_libraries() -> None:
    """Import what nearly every model needs. In the same order as the engine, whose modules these are."""
    import diffusers
    import transformers

    from worker.engine import loader as _loader  # noqa: F401

    for name in ("UNet2DConditionModel", "FluxTransformer2DModel", "AutoencoderKL", "ControlNetModel"):
        getattr(diffusers, name)
    for name in ("CLIPTextModel", "CLIPTokenizer", "T5EncoderModel"):
        getattr(transformers, name)


def _limit(cpu_s: int, wall_s: int, memory_mib: int) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(wall_s)  # ends the process, in whatever code it is
    with open("/proc/self/status") as status:  # noqa: PTH123
        data = next((int(line.split()[1]) // 1024 for line in status if line.startswith("VmData:")), 2048)
    limits = {
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_DATA: (data + memory_mib) * _MIB,
        resource.RLIMIT_FSIZE: 64 * _MIB,  # copies of JSON files that the libraries could not read
        resource.RLIMIT_CORE: 0,
    }
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))
    sys.addaudithook(_refuse)


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event in {"socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.system"}:
        raise PermissionError(event)


def _answer(connection: socket.socket) -> None:
    connection.sendall(b"%d\n" % os.getpid())
    request = json.loads(connection.makefile("rb").readline())
    try:
        root = Path(request["folder"])
        misfit = try_folder(root, request.get("variant")) if root.is_dir() else try_upscaler(root)
    except MemoryError:
        misfit = "memory"
    connection.sendall(json.dumps({"misfit": misfit}).encode() + b"\n")


def try_folder(folder: Path, variant: str | None = None) -> str | None:
    """Try all that lies in `folder`; return the misfit of its first part that is one, as `worker.engine.trial` has it.

    Raises MemoryError.
    """
    from worker.engine.compatibility import reach_moved_parts
    from worker.engine.mirror import mirrored

    with contextlib.ExitStack() as undone_after:
        with contextlib.suppress(Exception):
            folder = undone_after.enter_context(mirrored(folder))
        with contextlib.suppress(Exception):
            reach_moved_parts(folder)
        for component, path in _components(folder):
            misfit = _try(component, path, variant)
            if misfit is not None:
                return f"{misfit} {component.name[:80]}"
    return None


def try_upscaler(file: Path) -> str | None:
    """Load an upscaler's file for good: how many blocks it has is read from the names of its tensors.

    Returns None, since whatever else is wrong with it the real load says. Raises MemoryError.
    """
    from worker.engine.upscaling import read_network

    try:
        read_network(file)
    except MemoryError:
        raise
    except RuntimeError as error:
        _raise_if_memory(error)
    except Exception:  # the real load fails at the same place, and says at what
        return None
    return None


def _raise_if_memory(error: RuntimeError) -> None:
    if "can't allocate memory" in str(error) or "bad_alloc" in str(error):
        raise MemoryError from None


def _components(folder: Path) -> Iterator[tuple[Any, Path]]:
    """Yield the parts of a pipeline's folder, or the one model of any other, each with its own folder."""
    from worker.engine.components import Component

    for name in ("model_index.json", "modular_model_index.json"):
        for part, entry in _read(folder / name).items():
            words = entry[:2] if isinstance(entry, list) else []
            if len(words) == 2 and all(isinstance(word, str) for word in words):
                yield Component(part, *words), folder / part
    config = _read(folder / "config.json")
    names = config.get("architectures")
    if isinstance(config.get("_class_name"), str):
        yield Component(folder.name, "diffusers", config["_class_name"]), folder
    elif isinstance(names, list) and names and isinstance(names[0], str):
        yield Component(folder.name, "transformers", names[0]), folder


def _read(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        value = json.loads(path.read_bytes())
        return value if isinstance(value, dict) else {}
    return {}


def _try(component: Any, folder: Path, variant: str | None) -> str | None:
    import torch

    try:
        if not component.is_model:
            from worker.engine.components import load_component

            load_component(component, folder, torch.float32)
            return None
        model = _built(component.cls, folder)
        stored = _stored_numbers(folder, variant)
    except MemoryError:
        raise
    except RuntimeError as error:
        _raise_if_memory(error)
        return None
    except Exception:  # the real load fails at the same place, and says at what
        return None
    numbers = sum(parameter.numel() for parameter in model.parameters())
    if stored is not None and numbers > _PACKED * stored + _SLACK_NUMBERS:
        return "parameters"
    if sum(buffer.numel() * buffer.itemsize for buffer in model.buffers()) > _MAX_BUFFER_BYTES:
        return "buffers"
    return None


def _built(cls: Any, folder: Path) -> Any:
    """Return a model of `cls` by the config in `folder`, without memory for its tensors."""
    import torch
    from accelerate import init_empty_weights
    from diffusers.models.modeling_utils import no_init_weights

    if hasattr(cls, "from_config") and hasattr(cls, "load_config"):
        config = cls.load_config(str(folder), local_files_only=True)

        def build() -> Any:
            return cls.from_config(config)

    else:
        config = cls.config_class.from_pretrained(str(folder), local_files_only=True)

        def build() -> Any:
            return cls(config)

    try:
        with torch.device("meta"):
            return build()
    except (RuntimeError, NotImplementedError) as error:
        if "meta" not in str(error):
            raise
    # Some classes compute with their tensors while they are built.
    with no_init_weights(), init_empty_weights():
        return build()


def _stored_numbers(folder: Path, variant: str | None) -> int | None:
    """Return the count of numbers in the weight files that would be loaded; None where a header cannot be read."""
    from safetensors import safe_open

    from worker.engine.pretrained import weight_files

    total = 0
    for file in weight_files(folder, variant):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 -- it is no mapping
                numbers = 1
                for size in opened.get_slice(name).get_shape():
                    numbers *= size
                total += numbers
    return total or None


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:6])))

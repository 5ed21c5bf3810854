"""The environment before it is read as settings: the file `.env`, presets, names that look like misspelt settings."""

import difflib
import io
from collections.abc import Collection, Mapping, MutableMapping
from pathlib import Path

from dotenv import dotenv_values
from dotenv.parser import parse_stream

# Whole set-ups by name. A variable that is set goes before its preset.
PRESETS: Mapping[str, Mapping[str, str]] = {
    "firered": {
        "standalone_mode": "true",
        "api_port": "7000",
        "default_model": "FireRedTeam/FireRed-Image-Edit-1.0",
        "max_concurrent_jobs": "2",
        "timeout_seconds": "120",
        "default_steps": "28",
        "default_guidance": "7.0",
    }
}
# Beginnings of names that other programs read many of.
_FOREIGN = ("HF", "RUNPOD", "OTEL", "DIFFUSERS", "AWS")


class EnvironmentFileError(ValueError):
    """A `.env` that cannot be read; the message names the line."""


def load_env_file(path: Path, environment: MutableMapping[str, str]) -> None:
    """Put the variables of a `.env` into `environment`, but none that is set there. Raises EnvironmentFileError.

    They are put there and not only read: the libraries and the worker's own processes have variables too.
    """
    if not path.is_file():
        return
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise EnvironmentFileError(f"{path.name} cannot be read as UTF-8 text; mend or remove it.") from None
    for binding in parse_stream(io.StringIO(text)):
        if binding.error or (binding.key is not None and binding.value is None):
            line = binding.original.line + len(binding.original.string) - len(binding.original.string.lstrip("\r\n"))
            raise EnvironmentFileError(f"{path.name}:{line}: a line must be NAME=value; mend or remove it.")
    for name, value in dotenv_values(stream=io.StringIO(text)).items():
        if value is not None and not environment.get(name):  # an empty variable counts as unset
            environment[name] = value


def visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """Return the GPUs of this process, as CUDA_VISIBLE_DEVICES names them. It asks the driver: torch takes too long."""
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu.strip() for gpu in named.split(",") if gpu.strip() not in ("", "-1")]
    return [str(index) for index, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]


def choose_gpu(environment: MutableMapping[str, str], gpu: str | None) -> None:
    """Have this process see one GPU only; call it before torch is imported."""
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu


def misspelt(names: Collection[str], known: Collection[str]) -> list[str]:
    """Return one sentence for each of `names` that is no setting and looks like one of `known`."""
    beginnings = {name.partition("_")[0] for name in known if "_" in name}.difference(_FOREIGN)
    sentences = []
    for name in sorted(set(names).difference(known)):
        upper = name.upper()
        if "_" not in upper or upper in known:
            continue
        cutoff = 0.75 if upper.partition("_")[0] in beginnings else 0.85
        if nearest := difflib.get_close_matches(upper, known, n=1, cutoff=cutoff):
            sentences.append(f"{name[:80]} is no setting and has no effect; did you mean {nearest[0]}?")
    return sentences

"""Whether this machine can do the work: a line for each part, and the fix beside whatever is wrong."""

import asyncio
import logging
import platform
import shutil
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

from worker import __version__
from worker.app.build import build_worker
from worker.app.cli.session import failures
from worker.app.cli.terminal import Failure, Terminal
from worker.app.fitness import check_device, check_volume
from worker.app.posture import library_warnings, old_libraries, runpod_volume_is_open, shared_mount, untrusted_paths
from worker.app.registry import build_registry, registry_warnings
from worker.app.settings import Settings, read_settings
from worker.app.stores import build_cache
from worker.core.errors import WorkerError
from worker.net.client import Client

_PACKAGES = ("torch", "diffusers", "transformers", "safetensors")
_TOKENS = ("hf_token", "civitai_token", "api_keys")
_GB = 1e9
_LITTLE_BYTES = 2e9  # free on the volume or in memory: less than most models need
_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. The text of what is not right says what to do."""

    name: str
    text: str
    state: Literal["ok", "warning", "error"] = "ok"


def doctor(arguments: Namespace, terminal: Terminal) -> int:
    """Print the report, and return the status to exit with: 1 where something is wrong."""
    logging.disable(logging.CRITICAL)  # the report says it once
    findings = [*_examine(arguments.network, terminal)]
    wrong = any(finding.state == "error" for finding in findings)
    if arguments.json:
        checks = [{"name": item.name, "state": item.state, "text": item.text} for item in findings]
        terminal.json({"ok": not wrong, "checks": checks})
    else:
        terminal.table(("state", "part", "finding"), [(item.state, item.name, item.text) for item in findings])
    return int(wrong)


def _examine(network: bool, terminal: Terminal) -> Iterator[Finding]:
    yield Finding("worker", __version__)
    yield Finding("python", platform.python_version())
    yield from _packages()
    try:
        with failures(terminal):
            settings = read_settings()
    except Failure as failure:
        yield Finding("settings", failure.message, "error")
        return
    yield from _posture(settings)
    for part in (_device, _volume, _tokens):
        yield from part(settings)
    yield from _models(settings, terminal)
    if network:
        yield from _network(settings)


def _packages() -> Iterator[Finding]:
    for name in _PACKAGES:
        try:
            yield Finding(name, metadata.version(name))
        except metadata.PackageNotFoundError:
            fix = "run `make run` in the repository, or pip install -r requirements.txt"
            yield Finding(name, f"is not installed; {fix}.", "error")
    yield from (Finding("packages", sentence, "error") for sentence in library_warnings())
    yield from (Finding("packages", sentence, "warning") for sentence in old_libraries())


def _posture(settings: Settings) -> Iterator[Finding]:
    """What is open to others: each loosened switch, each missing key, each file that somebody else may change."""
    sentences = [*settings.warnings(), *settings.server_warnings()]
    yield from (Finding("settings", sentence, "warning") for sentence in sentences)
    yield from (Finding("files", sentence, "warning") for sentence in untrusted_paths(settings))
    if runpod_volume_is_open(settings):
        text = (
            f"{settings.volume} may be written by every user of a container that mounts it, as RunPod makes volumes. "
        )
        yield Finding("mount", text + "Files are held against their digests; mount it in your own endpoints alone.")
    if (kind := shared_mount(settings.volume)) is not None:
        text = f"{settings.volume} is a {kind} mount: whoever may write there may replace what is cached. "
        yield Finding("mount", text + "Files are held against their digests; give other machines no right to write.")


def _device(settings: Settings) -> Iterator[Finding]:
    if (fault := _fault(check_device(settings))) is not None:
        yield Finding("device", fault, "error")
        return
    try:
        from worker.engine.devices import choose_device, probe

        device = probe(choose_device(settings.device))
        memory = probe(choose_device("cpu"))
    except WorkerError as error:
        yield Finding("device", error.message, "error")
        return
    except Exception as error:  # an import of torch fails in as many ways as there are broken installations
        text = f"torch cannot be used ({type(error).__name__}: {error}); install it again from requirements.txt."
        yield Finding("device", text, "error")
        return
    size = "" if device.type == "cpu" else f", {_gb(device.free_bytes)} of {_gb(device.total_bytes)} free"
    yield Finding("device", f"{device.type} ({device.name}){size}")
    text = f"{_gb(memory.free_bytes)} of {_gb(memory.total_bytes)} free"
    if memory.free_bytes < _LITTLE_BYTES:
        yield Finding("memory", f"{text}, too little for most models; end other programs, or take more.", "warning")
    else:
        yield Finding("memory", text)


def _volume(settings: Settings) -> Iterator[Finding]:
    if (fault := _fault(check_volume(settings))) is not None:
        yield Finding("volume", fault, "error")
        return
    free = shutil.disk_usage(settings.models_dir).free
    text = f"{settings.volume}, {_gb(free)} free"
    if free < _LITTLE_BYTES:
        yield Finding("volume", f"{text}, too little for most models; enlarge it, or `cache rm` a model.", "warning")
    else:
        yield Finding("volume", text)
    cache = build_cache(settings)
    limit = f" of {settings.cache_max_gb:g} GB" if settings.cache_max_gb else ""
    yield Finding("cache", f"{len([*cache.entries()])} models, {_gb(cache.used_bytes())}{limit}")


def _tokens(settings: Settings) -> Iterator[Finding]:
    for name in _TOKENS:
        yield Finding(name.upper(), "not set" if getattr(settings, name) is None else "set")


def _models(settings: Settings, terminal: Terminal) -> Iterator[Finding]:
    try:
        with failures(terminal):
            registry = build_registry(settings)
            worker = build_worker(settings)
    except Failure as failure:
        yield Finding("models.yaml", failure.message, "error")
        return
    yield Finding("models.yaml", f"{len(registry.models)} models in {settings.models_yaml}")
    yield from (Finding("models.yaml", sentence, "warning") for sentence in registry_warnings(registry, settings))
    readiness = worker.operations.readiness
    asyncio.run(readiness.prepare(loaded=False))
    problems = readiness.problems()
    yield from (Finding("default model", problem, "error") for problem in problems)
    if not problems:
        yield Finding("default model", f"{settings.default_model_id} can be had")


def _network(settings: Settings) -> Iterator[Finding]:
    if settings.offline:
        yield Finding("network", "not asked, since OFFLINE is on; unset it to download models.", "warning")
        return
    for source, endpoint in (("HF", settings.hf_endpoint), ("CivitAI", settings.civitai_endpoint)):
        part = f"network ({source})"
        try:
            Client({endpoint: None}).get(endpoint, timeout_s=_TIMEOUT_S).close()
            yield Finding(part, f"{endpoint} answers")
        except OSError as error:
            fix = "check this machine's network, proxy and firewall"
            yield Finding(part, f"{endpoint} does not answer ({error}); {fix}.", "error")


def _fault(check: Callable[[], None]) -> str | None:
    try:
        check()
    except RuntimeError as error:
        return str(error)
    return None


def _gb(size: float) -> str:
    return f"{size / _GB:.1f} GB"

"""What this installation leaves open: old libraries, files that others may write, and the settings' own warnings.

The start prints it, a line each, and `doctor` shows it beside the fix.
"""

import os
import re
import stat
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from worker.app.setting_groups.models import RUNPOD_VOLUME
from worker.app.settings import Settings

FLOORS = {
    "torch": (2, 10),
    "diffusers": (0, 38),
    "transformers": (5, 3),
    "pillow": (12, 2),
    "runpod": (1, 12),
}
"""The oldest major and minor version of each library that has no known way to run code or reach private addresses."""

_SHARED_TYPES = ("nfs", "cifs", "smb", "fuse", "9p", "ceph", "lustre", "glusterfs")


def installation_warnings(settings: Settings) -> list[str]:
    """Return what the start says of this installation, beside the warnings of the settings."""
    return [*library_warnings(), *old_libraries(), *untrusted_paths(settings)]


def library_warnings() -> list[str]:
    """Return the faults of the installed libraries, one sentence each; from their metadata, importing none."""
    builds = {}
    for name in ("torch", "torchvision"):
        try:
            builds[name] = _version_of(name)
        except metadata.PackageNotFoundError:
            return []
    on_cpu = [name for name, version in builds.items() if version.endswith("+cpu")]
    if len(on_cpu) != 1:
        return []
    versions = " and ".join(f"{name} {version}" for name, version in builds.items())
    return [
        f"{versions} are of different builds: torchvision fails to import then, and almost every pipeline with it; "
        "install both from one index, or uninstall torchvision."
    ]


def _version_of(name: str) -> str:
    """Return an installed version by the head of its metadata. Raises PackageNotFoundError.

    `metadata.version` reads the whole of it as a letter, README and all, which takes ten times as long.
    """
    text = metadata.distribution(name).read_text("METADATA") or ""
    found = re.search(r"^Version:[ \t]*(\S+)", text, re.MULTILINE)
    return found[1] if found else metadata.version(name)


def old_libraries() -> list[str]:
    """Return a sentence for each installed library below its floor; from their metadata, importing none."""
    sentences = []
    for name, floor in FLOORS.items():
        try:
            version = _version_of(name)
        except metadata.PackageNotFoundError:
            continue
        parts = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
        if len(parts) == 2 and parts < floor:
            lowest = ".".join(map(str, floor))
            sentences.append(
                f"{name} {version} has known security faults: install {name}>={lowest}, as requirements.txt pins it."
            )
    return sentences


def untrusted_paths(settings: Settings) -> list[str]:
    """Return a sentence for each file or folder that decides what is served and that others may change or read."""
    sentences = []
    for name, path in _deciding(settings):
        try:
            status = path.stat()
        except OSError:
            continue  # what is not there is another check's
        if path.is_relative_to(RUNPOD_VOLUME):
            continue  # as RunPod makes it: nothing that an operator could change at each start
        if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
            sentences.append(f"{name}: {path} may be written by every user of this machine; chmod o-w it.")
        elif status.st_uid not in (0, os.geteuid()):
            sentences.append(
                f"{name}: {path} belongs to another user (uid {status.st_uid}), who may change it; chown it."
            )
    for name, secret in (("API_KEYS_FILE", settings.api_keys_file), (".env", Path(".env"))):
        if secret is not None and secret.is_file() and secret.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH):
            sentences.append(f"{name}: {secret} may be read by every user of this machine; chmod 600 it.")
    return sentences


def runpod_volume_is_open(settings: Settings) -> bool:
    """True if the volume is RunPod's own and every user of a container may write there."""
    try:
        return settings.volume.is_relative_to(RUNPOD_VOLUME) and bool(settings.volume.stat().st_mode & stat.S_IWOTH)
    except OSError:
        return False


def _deciding(settings: Settings) -> Iterator[tuple[str, Path]]:
    yield "MODELS_YAML", settings.models_yaml
    yield "VOLUME_DIR", settings.volume
    yield "VOLUME_DIR", settings.models_dir
    for path in settings.allowed_model_dirs:
        yield "ALLOWED_MODEL_DIRS", path


def shared_mount(path: Path | str, mounts: Path = Path("/proc/mounts")) -> str | None:
    """Return the type of the network filesystem that `path` lies on, or None if it is the machine's own."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    target = Path(os.path.realpath(path))
    best: tuple[int, str] = (0, "")
    for line in lines:
        _, point, kind, *_ = (*line.split(), "", "", "")
        folder = Path(point.replace("\\040", " "))
        if point and (folder == target or folder in target.parents):
            best = max(best, (len(folder.parts), kind))
    return best[1] if best[1].startswith(_SHARED_TYPES) else None

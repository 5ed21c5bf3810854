"""The attention kernels that the operator allows, each a folder of the image at a pinned revision, never a download."""

import re
from collections.abc import Mapping
from pathlib import Path

from worker.app.settings import Settings, SettingsError

_PINNED = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)@(?P<revision>[0-9a-f]{40})")
_KINDS = ("kernels", "models")  # as a cache names repositories, of kernels and of older ones


def allowed_kernels(settings: Settings) -> Mapping[str, Path]:
    """Return the folder of each kernel of ATTENTION_KERNELS by its repository. Raises SettingsError.

    KERNELS_DIR is a cache in the Hub's layout: `kernels--<organisation>--<name>/snapshots/<revision>`.
    """
    folders = {}
    for text in settings.attention_kernels:
        pinned = _PINNED.fullmatch(text)
        if pinned is None:
            raise SettingsError(
                f"ATTENTION_KERNELS: {text[:128]!r} is not pinned; write repository@revision with all 40 digits, "
                "as kernels-community/flash-attn3@0123…"
            )
        name = pinned["repository"].replace("/", "--")
        places = [settings.kernels_dir / f"{kind}--{name}/snapshots/{pinned['revision']}" for kind in _KINDS]
        folder = next((place for place in places if place.is_dir()), None)
        if folder is None:
            raise SettingsError(
                f"ATTENTION_KERNELS: {text} is not in {settings.kernels_dir}; fetch it there when the image is built "
                "(docs/performance.md), or take it out."
            )
        folders[pinned["repository"]] = folder
    return folders

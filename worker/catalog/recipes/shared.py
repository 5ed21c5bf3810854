"""A recipe as one file to hand on: its text, and every model that it needs, at a revision and with digests. No weights.

YAML, read as strictly as an operator's own files. `digest` is over all the rest: a file that was cut or edited is
refused. It says nothing of who wrote it.
"""

import hashlib
import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

from pydantic import Field, JsonValue

from worker.catalog.operator_file import FileError, OperatorFile
from worker.catalog.registry_schema import NAME
from worker.core.model import Parsed

VERSION = 1
# What an entry of models.yaml says of the model itself, wherever it is served: no paths, tiers or other names.
PORTABLE = frozenset(
    {
        *("source", "description", "tasks", "architecture", "pipeline", "dtype", "variant", "prediction_type"),
        *("base", "vae", "components", "min_vram_gb", "licence", "defaults", "limits", "loras", "lightning", "upscale"),
        *("quality", "refiner"),
    }
)


class ShareError(FileError):
    """A shared recipe that cannot be taken. The message starts with `FILE:LINE: `."""


class SharedFile(Parsed):
    """Size in bytes and SHA-256 of one file of a model."""

    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class SharedSource(Parsed):
    """One source of a model: its reference, which a local one has not, its revision, and its files by name."""

    reference: str | None = None
    revision: str | None = None
    files: dict[str, SharedFile] = Field(min_length=1)


class SharedModel(Parsed):
    """One model: its entry for models.yaml, which a model of local files has not, and its sources, itself first."""

    entry: dict[str, JsonValue] | None = None
    sources: tuple[SharedSource, ...] = ()


class Share(Parsed):
    """The whole file."""

    share: int = Field(ge=VERSION, le=VERSION)
    name: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,63}$")
    recipe: str = Field(min_length=1)
    models: dict[Annotated[str, Field(pattern=NAME)], SharedModel] = Field(default_factory=dict)
    digest: str

    @property
    def content(self) -> str:
        """The digest of everything but itself."""
        return digest_of(self.name, self.recipe, self.models)


def digest_of(name: str, recipe: str, models: Mapping[str, SharedModel]) -> str:
    """Return the SHA-256 of what a shared file says."""
    plain = {key: model.model_dump(mode="json") for key, model in models.items()}
    text = json.dumps([VERSION, name, recipe, plain], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def read_share(path: Path) -> Share:
    """Read a shared recipe. Raises ShareError for one that is damaged, or says more than it may."""
    return _Reading(path).share()


def write_share(name: str, recipe: str, models: Mapping[str, SharedModel]) -> str:
    """Return the text of a shared recipe. The same recipe and models give the same text."""
    text = f"{recipe.replace(chr(13), '').rstrip()}\n"
    lines = [f"share: {VERSION}", f"name: {name}", "recipe: |2", textwrap.indent(text, "  ").rstrip(), "models:"]
    for key, model in sorted(models.items()):
        lines += [f"  {json.dumps(key)}:", f"    entry: {json.dumps(model.entry)}", "    sources:"]
        for source in model.sources:
            lines += [f"      - reference: {json.dumps(source.reference)}"]
            lines += [f"        revision: {json.dumps(source.revision)}", "        files:"]
            for file, facts in sorted(source.files.items()):
                lines.append(
                    f"          {json.dumps(file)}: {{size: {facts.size}, sha256: {json.dumps(facts.sha256)}}}"
                )
    if not models:
        lines[-1] = "models: {}"
    return "\n".join([*lines, f"digest: {json.dumps(digest_of(name, text, models))}"]) + "\n"


class _Reading(OperatorFile):
    """One reading of one shared recipe."""

    error = ShareError
    keys = "share, name, recipe, models and digest"
    nested = MappingProxyType({"models": SharedModel})

    def share(self) -> Share:
        share = self.parsed(Share, self.data(), ())
        if share.content != share.digest:
            raise self.fail(("digest",), "digest is of another content: the file was cut or edited; ask for it again.")
        for name, model in share.models.items():
            for key in model.entry or {}:
                if key not in PORTABLE:
                    raise self.fail(("models", name, "entry"), f"{key} of {name} is an operator's own; remove it.")
            local = [value for value in _texts(model.entry) if value.startswith("file:")]
            if local:
                raise self.fail(("models", name, "entry"), f"{name} names a file of another machine; it is not taken.")
        return share


def _texts(value: JsonValue) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.values() for text in _texts(item)]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) else []


def text_of(path: Path) -> str:
    """Return a recipe's text as it is shared: lines end in a line feed, and nothing follows the last."""
    return f"{path.read_text(encoding='utf-8').replace(chr(13), '').rstrip()}\n"

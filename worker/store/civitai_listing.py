"""CivitAI's descriptions of models: JSON read with care, and the version and the file that a source means.

Pure: no request is made here. The vocabulary grows every month, so an unknown word is kept as it is and never an error.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from urllib.parse import parse_qsl

from worker.core.errors import AccessDenied, ModelNotFound, SourceUnavailable, UnsafeFormat, UnsupportedModel
from worker.core.model import PICKLES, Declaration, ModelSource

# The model types that hold no weights which could generate or help to generate.
_WEIGHTLESS = {
    "Workflows": "a workflow of another program",
    "ComfyWorkflows": "a workflow of another program",
    "Poses": "a collection of pose images",
    "Wildcards": "a collection of prompt words",
    "Detection": "a detector of things in images",
    "AestheticGradient": "an aesthetic gradient, which nothing here can apply",
}
# File types that are the model itself; a version may carry its training data, its workflow or a VAE beside it.
_MAIN_TYPES = ("Model", "Diffusion Model", "UNet", "Pruned Model")
_OWN_TYPES = {
    "VAE": "VAE",
    "TextEncoder": "Text Encoder",
    "CLIP": "Text Encoder",
    "CLIPVision": "CLIPVision",
    "Controlnet": "ControlNet",
    "Upscaler": "Upscaler",
}
_FORMATS = ("SafeTensor", "GGUF", "PickleTensor")
_SUFFIXES = {".safetensors": "SafeTensor", ".sft": "SafeTensor", ".gguf": "GGUF"} | dict.fromkeys(
    PICKLES, "PickleTensor"
)
_MAX_LISTED = 8
_HALF = re.compile(r"(?<![a-z])(high|low)[ _.-]?noise", re.IGNORECASE)  # Wan 2.2 has a model for each


@dataclass(frozen=True, slots=True)
class CivitaiFile:
    """One file of a version. The API's size is rounded, so no download is measured by it and it is left out."""

    id: int
    name: str
    type: str
    format: str
    size: str  # "full" or "pruned"
    fp: str
    quant: str
    sha256: str | None
    primary: bool
    scans: Mapping[str, str]  # which scan -> Success, Pending, Danger, Error

    def words(self) -> Mapping[str, str]:
        """Return the properties by which a reference may choose this file."""
        return {"type": self.type, "format": self.format, "size": self.size, "fp": self.fp, "quantType": self.quant}

    def __str__(self) -> str:
        properties = " ".join(filter(None, (self.type, self.format, self.size, self.fp, self.quant)))
        return f"{self.id} ({self.name[:60]}: {properties})"


@dataclass(frozen=True, slots=True)
class CivitaiVersion:
    """One version of a model."""

    id: int
    model_id: int
    name: str
    type: str
    mode: str | None  # "Archived", "TakenDown", else None
    base: str | None
    usage_control: str
    early_access_until: str | None
    trained_words: tuple[str, ...]
    tags: tuple[str, ...]
    files: tuple[CivitaiFile, ...]

    @property
    def label(self) -> str:
        """This version as a reference."""
        return f"civitai:{self.model_id}@{self.id}"

    @property
    def declared(self) -> Declaration:
        """The declarations of the model's page."""
        return Declaration(
            base=self.base, kind=self.type or None, tags=self.tags, trigger_words=self.trained_words, name=self.name
        )


def newest_version(model: Mapping[str, object], now: datetime) -> int:
    """Return the number of the newest published version open to everybody, else of the newest one published.

    Early access can still be bought: name such a version to get it. Raises ModelNotFound.
    """
    published: list[tuple[bool, datetime, int, int]] = []
    for index, item in enumerate(_objects(model.get("modelVersions"))):
        at = _time(item.get("publishedAt"))
        number = _number(item.get("id"))
        if number is None or at is None or at > now or _text(item.get("status")) not in {"", "Published"}:
            continue
        public = _text(item.get("availability")) not in {"EarlyAccess", "Private"}
        published.append((public, at, -index, number))
    if not published:
        raise ModelNotFound(f"civitai:{_number(model.get('id')) or '?'} has no published version.", field="model")
    return max(published)[-1]


def read_version(value: Mapping[str, object], model: Mapping[str, object]) -> CivitaiVersion:
    """Read a version's JSON, with its model's if that was fetched too. Raises SourceUnavailable for anything else."""
    owner = _object(value.get("model"))
    number, model_id = _number(value.get("id")), _number(value.get("modelId")) or _number(model.get("id"))
    if number is None or model_id is None:
        raise SourceUnavailable("CivitAI answered with no model version; send the job again later.", field="model")
    title = " ".join(filter(None, (_text(owner.get("name")) or _text(model.get("name")), _text(value.get("name")))))
    return CivitaiVersion(
        id=number,
        model_id=model_id,
        name=title[:200],
        type=_text(owner.get("type")) or _text(model.get("type")),
        mode=_text(owner.get("mode")) or _text(model.get("mode")) or None,
        base=_text(value.get("baseModel")) or None,
        usage_control=_text(value.get("usageControl")) or "Download",
        early_access_until=_text(value.get("earlyAccessEndsAt")) or _text(value.get("earlyAccessDeadline")) or None,
        trained_words=_texts(value.get("trainedWords")),
        tags=_texts(model.get("tags")),
        files=tuple(file for item in _objects(value.get("files")) if (file := _file(item)) is not None),
    )


def check_version(version: CivitaiVersion, source: ModelSource, hosted_only: Collection[str]) -> None:
    """Refuse by name a version without weights to be had. Raises ModelNotFound, UnsupportedModel, AccessDenied."""
    if source.locator and source.locator != str(version.model_id):
        raise ModelNotFound(
            f"Version {version.id} belongs to civitai:{version.model_id}, not to civitai:{source.locator}; "
            f"write {version.label}.",
            field="model",
        )
    if version.type in _WEIGHTLESS:
        raise UnsupportedModel(f"{version.label} is {_WEIGHTLESS[version.type]}, not a model.", field="model")
    if version.base is not None and version.base in hosted_only:
        raise UnsupportedModel(
            f"{version.label} is for {version.base}, which its owner runs as a service only: there are no weights "
            "that could run here.",
            field="model",
        )
    if version.mode is not None:
        how = "archived by its creator" if version.mode == "Archived" else "taken down by CivitAI"
        raise ModelNotFound(f"{version.label} was {how} and cannot be downloaded; use another model.", field="model")
    if version.usage_control != "Download":
        raise AccessDenied(
            f"{version.label} may be used on CivitAI's own site only: its creator does not allow downloads "
            f"(usageControl {version.usage_control[:40]}); use another model.",
            field="model",
        )


def choose_file(version: CivitaiVersion, source: ModelSource) -> CivitaiFile:
    """Choose the file that `source` names or describes, by default the model itself in its safest format.

    Raises ModelNotFound naming the files there are, UnsupportedModel when none of them holds weights.
    """
    if source.filename:
        return _named(version, source.filename)
    if source.sha256 and (pinned := [file for file in version.files if file.sha256 == source.sha256]):
        return pinned[0]  # the default may change: a version can be given more files
    choice = dict(parse_qsl(source.choice or ""))
    matching = [file for file in version.files if _matches(file, choice)]
    if choice and not matching:
        raise ModelNotFound(
            f"{version.label} has no file with {source.choice}; it has {_listing(version.files)}.", field="model"
        )
    types = (*_MAIN_TYPES, _OWN_TYPES.get(version.type, "Model"))
    usable = [file for file in matching if _is_usable(file, types, "type" in choice)]
    if not usable:
        contents = f"it has {_listing(matching)}" if matching else "it has no files"
        raise UnsupportedModel(
            f"{version.label} holds no weights in a format that can be loaded: {contents}.", field="model"
        )
    _refuse_halves(version, usable)
    return min(usable, key=lambda file: (_FORMATS.index(file.format), not file.primary, _rank(file, types), file.id))


def _refuse_halves(version: CivitaiVersion, usable: Sequence[CivitaiFile]) -> None:
    """Raise UnsupportedModel where some files are for high and some for low noise: neither stands for the other."""
    halves = {match[1].lower() for file in usable if (match := _HALF.search(file.name))}
    if len(halves) == 2:
        raise UnsupportedModel(
            f"{version.label} has one file for high and one for low noise; name the one that is meant, as in "
            f"{version.label}#{usable[0].id}: {_listing(usable)}.",
            field="model",
        )


def _is_usable(file: CivitaiFile, types: Collection[str], any_type: bool) -> bool:
    return file.format in _FORMATS and (any_type or not file.type or file.type in types)


def _named(version: CivitaiVersion, name: str) -> CivitaiFile:
    """Return the file of this name or number. Raises ModelNotFound."""
    for file in version.files:
        if name.casefold() in {str(file.id), file.name.casefold()}:
            return file
    raise ModelNotFound(f"{version.label} has no file {name[:80]!r}; it has {_listing(version.files)}.", field="model")


def check_file(file: CivitaiFile, version: CivitaiVersion, source: ModelSource, *, allow_pickles: bool) -> None:
    """Refuse a file that CivitAI warns of, that could run code, or that is not the pinned one."""
    for scan, result in file.scans.items():
        if result == "Pending":
            raise SourceUnavailable(
                f"{file.name[:80]!r} of {version.label} was not yet scanned by CivitAI; send the job again in an hour.",
                field="model",
            )
        if result not in {"", "Success"}:
            ending = "found it dangerous" if result == "Danger" else f"ended with {result[:40]!r}"
            raise UnsafeFormat(
                f"{file.name[:80]!r} of {version.label} is not used: CivitAI's {scan} scan {ending}; use another file.",
                field="model",
            )
    if file.format == "PickleTensor" and not allow_pickles:
        raise UnsafeFormat(
            f"{file.name[:80]!r} of {version.label} is a pickle, which can run code when read; use a version that has "
            "a SafeTensor file.",
            field="model",
        )
    if file.format not in _FORMATS:
        raise UnsupportedModel(
            f"{file.name[:80]!r} of {version.label} is in the format {file.format[:40] or 'unknown'}; use a "
            "SafeTensor file.",
            field="model",
        )
    if source.sha256 and file.sha256 and source.sha256 != file.sha256:
        raise ModelNotFound(
            f"{file.name[:80]!r} of {version.label} is not the pinned file: its sha256 is {file.sha256}.",
            field="model",
        )


def _rank(file: CivitaiFile, types: Sequence[str]) -> int:
    return types.index(file.type) if file.type in types else len(types)


def _matches(file: CivitaiFile, choice: Mapping[str, str]) -> bool:
    properties = file.words()
    for key, value in choice.items():
        # One of the API's endpoints leaves the quantization out; people write it into the name.
        text = properties[key] or (file.name if key == "quantType" else "")
        is_match = value.casefold() in text.casefold() if key == "quantType" else value.casefold() == text.casefold()
        if not is_match:
            return False
    return True


def _listing(files: Sequence[CivitaiFile]) -> str:
    names = "; ".join(str(file) for file in files[:_MAX_LISTED])
    return f"{names}; and {len(files) - _MAX_LISTED} more" if len(files) > _MAX_LISTED else names or "none"


def _file(item: Mapping[str, object]) -> CivitaiFile | None:
    number = _number(item.get("id"))
    if number is None:
        return None
    name, metadata = _text(item.get("name")) or str(number), _object(item.get("metadata"))
    named, by_suffix = _text(metadata.get("format")), _SUFFIXES.get(PurePosixPath(name).suffix.lower(), "")
    sha256 = _text(_object(item.get("hashes")).get("SHA256")).lower()
    return CivitaiFile(
        id=number,
        name=name,
        type=_text(item.get("type")),
        format=by_suffix or named if named in {"", "Other"} else named,
        size=_text(metadata.get("size")),
        fp=_text(metadata.get("fp")),
        quant=_text(metadata.get("quantType")),
        sha256=sha256 if len(sha256) == 64 and not set(sha256) - set("0123456789abcdef") else None,
        primary=item.get("primary") is True,
        scans={"virus": _text(item.get("virusScanResult")), "pickle": _text(item.get("pickleScanResult"))},
    )


def _object(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _objects(value: object) -> list[Mapping[str, object]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _text(value: object) -> str:
    """Return a short printable text, or "" for anything else."""
    return "".join(char for char in value[:300] if char.isprintable()) if isinstance(value, str) else ""


def _texts(value: object) -> tuple[str, ...]:
    return tuple(text for item in value[:50] if (text := _text(item))) if isinstance(value, list) else ()


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**63 else None


def _time(value: object) -> datetime | None:
    try:
        at = datetime.fromisoformat(_text(value))
    except ValueError:
        return None
    return at if at.tzinfo else at.replace(tzinfo=UTC)

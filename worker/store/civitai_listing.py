"""CivitAI's descriptions of models: JSON read with care, and the version and the file that a source means.

Pure: no request is made here. The vocabulary grows every month, so an unknown word is kept as it is and never an error.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath
from urllib.parse import parse_qsl

from worker.core.errors import AccessDenied, ModelNotFound, SourceUnavailable, UnsafeFormat, UnsupportedModel
from worker.core.model import PICKLES, Declaration, ModelSource
from worker.store.loose_json import number_in, object_in, objects_in, text_in, texts_in, time_in

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
_LICENCES = (("allowNoCredit", "credit needed"), ("allowDerivatives", "no derivatives"))
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
    versions = newest_versions(model, now)
    if not versions:
        raise ModelNotFound(f"civitai:{number_in(model.get('id')) or '?'} has no published version.", field="model")
    return versions[0]


def newest_versions(model: Mapping[str, object], now: datetime, bases: Collection[str] = ()) -> tuple[int, ...]:
    """Return the number of the newest published version open to everybody, and then of a newer one in early access.

    With `bases` only versions for one of these base models count.
    """
    published = [version for version in _published(model, now) if not bases or version.base in bases]
    order = sorted(published, key=lambda version: version.age)
    public = [version for version in order if version.public][-1:]
    early = [version for version in order if not version.public and (not public or version.age > public[0].age)][-1:]
    return tuple(version.id for version in public + early)


@dataclass(frozen=True, slots=True)
class _Published:
    """A published version; `age` grows from older to newer ones."""

    id: int
    base: str
    public: bool
    age: tuple[datetime, int, int]


def _published(model: Mapping[str, object], now: datetime) -> Iterator[_Published]:
    for index, item in enumerate(objects_in(model.get("modelVersions"))):
        at, number = time_in(item.get("publishedAt")), number_in(item.get("id"))
        if number is None or at is None or at > now or text_in(item.get("status")) not in {"", "Published"}:
            continue
        public = text_in(item.get("availability")) not in {"EarlyAccess", "Private"}
        yield _Published(number, text_in(item.get("baseModel")), public, (at, -index, number))


def read_version(value: Mapping[str, object], model: Mapping[str, object]) -> CivitaiVersion:
    """Read a version's JSON, with its model's if that was fetched too. Raises SourceUnavailable for anything else."""
    owner = object_in(value.get("model"))
    number, model_id = number_in(value.get("id")), number_in(value.get("modelId")) or number_in(model.get("id"))
    if number is None or model_id is None:
        raise SourceUnavailable("CivitAI answered with no model version; send the job again later.", field="model")
    title = " ".join(
        filter(None, (text_in(owner.get("name")) or text_in(model.get("name")), text_in(value.get("name"))))
    )
    return CivitaiVersion(
        id=number,
        model_id=model_id,
        name=title[:200],
        type=text_in(owner.get("type")) or text_in(model.get("type")),
        mode=text_in(owner.get("mode")) or text_in(model.get("mode")) or None,
        base=text_in(value.get("baseModel")) or None,
        usage_control=text_in(value.get("usageControl")) or "Download",
        early_access_until=text_in(value.get("earlyAccessEndsAt")) or text_in(value.get("earlyAccessDeadline")) or None,
        trained_words=texts_in(value.get("trainedWords")),
        tags=texts_in(model.get("tags")),
        files=tuple(file for item in objects_in(value.get("files")) if (file := _file(item)) is not None),
    )


def licence_in(model: Mapping[str, object]) -> str | None:
    """Return what a model's page allows, in a few words; None where it says nothing."""
    if "allowCommercialUse" not in model:
        return None
    allowed = model["allowCommercialUse"]  # a list by now, and one word in older answers
    uses = texts_in(allowed if isinstance(allowed, list) else [allowed])
    named = ", ".join(use for use in uses if use != "None") or "none"
    limits = [words for key, words in _LICENCES if model.get(key) is False]
    return "; ".join([f"commercial use: {named}", *limits])


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
    number = number_in(item.get("id"))
    if number is None:
        return None
    name, metadata = text_in(item.get("name")) or str(number), object_in(item.get("metadata"))
    named, by_suffix = text_in(metadata.get("format")), _SUFFIXES.get(PurePosixPath(name).suffix.lower(), "")
    sha256 = text_in(object_in(item.get("hashes")).get("SHA256")).lower()
    return CivitaiFile(
        id=number,
        name=name,
        type=text_in(item.get("type")),
        format=by_suffix or named if named in {"", "Other"} else named,
        size=text_in(metadata.get("size")),
        fp=text_in(metadata.get("fp")),
        quant=text_in(metadata.get("quantType")),
        sha256=sha256 if len(sha256) == 64 and not set(sha256) - set("0123456789abcdef") else None,
        primary=item.get("primary") is True,
        scans={"virus": text_in(item.get("virusScanResult")), "pickle": text_in(item.get("pickleScanResult"))},
    )

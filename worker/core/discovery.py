"""Finding models: a wish, what a source lists for it, and which of it this worker can run."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from worker.core.model import Parsed, Task

FindKind = Literal["model", "lora", "embedding", "vae", "controlnet", "ip-adapter", "hypernetwork", "upscaler"]

_Hash = Annotated[str, Field(pattern=r"^[0-9a-fA-F]{8,64}$")]
_Text = Annotated[str, Field(max_length=200)]


class DiscoverRequest(Parsed):
    """What a caller looks for. Every field narrows the search; none of them has to be sent.

    `text` goes to the sources. `prompt` never leaves the worker: it orders what they list. With `reference` that one is
    looked at, and no other. `hashes` are digests of files, as images name them: CivitAI says whose they are. `base` is
    a family as people write it, `model` what the finds are to go with. Without `kind` they are models, or with `model`
    what goes with it.
    """

    text: _Text = ""
    reference: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    kind: FindKind | None = None
    base: Annotated[str, Field(max_length=100)] | None = None
    model: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    prompt: Annotated[str, Field(max_length=8_000)] = ""
    hashes: Annotated[tuple[_Hash, ...], Field(max_length=8, strict=False)] = ()
    limit: Annotated[int, Field(ge=1, le=20)] = 8


@dataclass(frozen=True, slots=True)
class UpdatesRequest:
    """A question for newer versions: of one model of models.yaml, or of all of them."""

    model: str | None


@dataclass(frozen=True, slots=True)
class Listed:
    """One entry of a source's page, before anything of it is read. `licence` is in the source's own words.

    Of a `gated` one the source is asked whether this worker's token may read it: its files may be known already.
    """

    reference: str
    name: str
    page: str
    base: str | None = None
    licence: str | None = None
    trigger_words: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    downloads: int = 0
    likes: int = 0
    updated: str | None = None
    gated: bool = False


@dataclass(frozen=True, slots=True)
class Find:
    """One that this worker can run, as its header and the plan say.

    `size_bytes` are of its weights. `device`, `offload` and `estimated_bytes` are of the plan; of an adapter there are
    none, and `goes_with` names the models of models.yaml that take it. `seconds` and `usd` are of one image at its own
    size and steps, at the pace that was measured on `paced_by`, itself or a model of its architecture. `uses` counts
    jobs of the last 30 days here, `registered` is its id in models.yaml, and `allowed` says if a request may name it.
    """

    listed: Listed
    kind: FindKind
    architecture: str | None
    family: str | None
    variant: str | None
    format: str
    quantization: str | None
    tasks: tuple[Task, ...]
    revision: str | None
    size_bytes: int
    device: str | None = None
    offload: str | None = None
    estimated_bytes: int | None = None
    goes_with: tuple[str, ...] = ()
    paced_by: str | None = None
    seconds: float | None = None
    usd: float | None = None
    uses: int = 0
    registered: str | None = None
    allowed: bool = True
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Added:
    """A find that was written into models.yaml: its id, its reference, and the file; `waits` is true of a review's."""

    name: str
    reference: str
    file: str
    waits: bool


@dataclass(frozen=True, slots=True)
class Withheld:
    """One that the sources list and this worker cannot run or have; `reason` says why and what mends it."""

    reference: str
    name: str
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Discovery:
    """The answer to a wish, the best first. `unseen` were listed and not looked at in time.

    `problems` has a sentence for each source that did not answer. `age_s` is above 0 for an answer from the volume.
    """

    finds: tuple[Find, ...]
    withheld: tuple[Withheld, ...] = ()
    unseen: int = 0
    problems: tuple[str, ...] = ()
    age_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Update:
    """A newer version of a registered model. `old` and `new` are references with their versions.

    `added`, `removed` and `reshaped` count tensors, of which `tensors` names some, and `configs` names JSON files that
    differ; of weights in several files only those. `obstacle` says why the new version does not run here; None where it
    does. `version` is its name where it is a version of the model already.
    """

    model: str
    old: str
    new: str
    old_bytes: int
    new_bytes: int
    added: int = 0
    removed: int = 0
    reshaped: int = 0
    tensors: tuple[str, ...] = ()
    configs: tuple[str, ...] = ()
    old_licence: str | None = None
    new_licence: str | None = None
    obstacle: str | None = None
    version: str | None = None

    @property
    def licence_changed(self) -> bool:
        """True if both versions name a licence, and not the same one."""
        return None not in (self.old_licence, self.new_licence) and self.old_licence != self.new_licence


@dataclass(frozen=True, slots=True)
class Updates:
    """What is newer at the sources. `current` are models without anything newer, `unseen` were not looked at in time.

    `failed` has a sentence for each model that could not be looked at, such as one that is gone.
    """

    updates: tuple[Update, ...]
    current: tuple[str, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()
    unseen: int = 0

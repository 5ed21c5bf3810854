"""What a provider is: what it can do, how a request is put to it, and how its answers are read. No I/O."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from pydantic import JsonValue

from image_client.request import ImageRequest, Operation, OutputFormat


@dataclass(frozen=True, slots=True)
class FormPart:
    """One part of a form; with `filename` it is a file."""

    name: str
    value: str | bytes
    filename: str | None = None
    media_type: str | None = None


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request as it goes on the wire, with its body in one of two forms. Headers may hold a token."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    json: JsonValue = None
    form: tuple[FormPart, ...] = ()


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """An answer, read to its end; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class File:
    """An image in the answer itself: the bytes of a file."""

    data: bytes = field(repr=False)
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Link:
    """An image behind a URL, which is fetched without the provider's token."""

    url: str
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The images of a job, in order; `cost` in US dollars is that of all, where the provider says it."""

    files: tuple[File | Link, ...]
    job_id: str | None = None
    model: str | None = None
    version: str | None = None
    cost: Decimal | None = None
    raw: JsonValue = None


@dataclass(frozen=True, slots=True)
class Running:
    """A job that was taken: ask `poll_url`, at once if its answer is known to be there."""

    job_id: str
    poll_url: str
    at_once: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """One request to one provider: what its translator is given. `model` is the request's, or the provider's default.

    `job` is the job whose answer is read, once it is known.
    """

    request: ImageRequest
    model: str
    base_url: str
    token: str | None = field(repr=False)
    request_id: str
    job: Running | None = None

    @property
    def bearer(self) -> dict[str, str]:
        """The usual header with the token; empty without one."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}


@dataclass(frozen=True, slots=True)
class Sizes:
    """Which sizes a model draws: those of `named` only, or any on a grid of `step` pixels within the bounds.

    `named` maps a provider's own word (`16:9`, `1024x1024`) to width and height in pixels.
    """

    named: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    step: int = 1
    least: int = 1
    most: int = 16384


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a model can do at a provider. `fields` are the fields of ImageRequest that it takes beside the prompt.

    `size` in `fields` stands for width and height; `steps` and `guidance` bound their fields; `most` bounds `n`.
    """

    operations: frozenset[Operation]
    fields: frozenset[str]
    formats: tuple[OutputFormat, ...] = ()
    sizes: Sizes = Sizes()
    steps: tuple[int, int] = (1, 1000)
    guidance: tuple[float, float] = (0, 100)
    most: int = 1
    max_seed: int = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Pace:
    """What a provider allows: `starts` requests in any `window` seconds.

    `lockout` is how many seconds to wait after a 429 that does not say.
    """

    starts: int | None = None
    window: float = 60.0
    lockout: float = 0.0


@dataclass(frozen=True, slots=True)
class Provider:
    """One row of the table.

    `idempotent`: the same request id is drawn once. `search` and `found` ask for a job whose id was never heard:
    the provider's list of jobs, and the job in it that is `call`'s and not among the ids that are known.
    `cancel` takes a job back, where a provider lets jobs be taken back.
    `scheme` is the word before the token; `short_base` stands before a base_url that is a bare name.
    `first_byte` is how many seconds its first byte may take; `poll` the seconds before the first question about a job.
    """

    name: str
    abilities: Callable[[str, str], Abilities]  # of (model, base_url)
    prepare: Callable[[Call], HttpRequest]
    parse: Callable[[HttpAnswer, Call], Finished | Running]
    base_url: str | None = None
    short_base: str | None = None
    default_model: str = ""
    token_variables: tuple[str, ...] = ()
    token_required: bool = True
    scheme: str = "Bearer"
    idempotent: bool = False
    first_byte: float = 10.0
    poll: float = 0.5
    pace: Pace = Pace()
    search: Callable[[Call], HttpRequest] | None = None
    found: Callable[[HttpAnswer, Call, frozenset[str]], Running | None] | None = None
    cancel: Callable[[Call, Running], HttpRequest] | None = None

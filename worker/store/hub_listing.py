"""One commit of a repository as the Hub describes it: files with sizes and digests, and the page's declarations."""

import hashlib
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import quote

from pydantic import JsonValue

from worker.core.errors import SourceUnavailable, UnsupportedModel, WorkerError
from worker.core.json_text import JsonLimits, JsonTooLarge, parse_bounded
from worker.core.model import Declaration, ModelSource
from worker.net.client import Client, Oversize
from worker.store.hub_errors import listing_refused, unavailable
from worker.store.transfer import RemoteFile

LISTING_TIMEOUT_S = 10.0
ATTEMPTS = 3
BACKOFF_S = 0.5
MAX_WAIT_S = 10.0
_MAX_BYTES = 16 * 2**20  # of one listing: a file takes about 300
_LIMITS = JsonLimits(values=500_000, texts=1_000_000, depth=32)
MEMORY_S = 600.0
_MAX_LISTINGS = 256
_MAX_TAGS = 100
# The Hub's tags that name the kind of a repository's weights.
_KINDS = ("lora", "controlnet", "textual_inversion", "t2i-adapter", "ip-adapter")


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository at one commit. `asked_at` is a time of `time.monotonic`."""

    commit: str
    files: Mapping[str, RemoteFile]
    declared: Declaration
    asked_at: float


class HubListings:
    """Asks the Hub for listings, and remembers them for ten minutes. Blocking; safe to use from several threads.

    `client` knows the token of `endpoint`.
    """

    def __init__(self, endpoint: str, client: Client, *, offline: bool = False) -> None:
        self.offline = offline
        self._endpoint, self._client = endpoint.rstrip("/"), client
        self._listings: dict[tuple[str, str | None], Listing] = {}
        self._guard = threading.Lock()

    def remembered(self, source: ModelSource) -> Listing | None:
        """Return the Hub's listing of `source` from a short while ago."""
        listing = self._listings.get((source.locator, source.revision))
        return listing if listing and time.monotonic() - listing.asked_at < MEMORY_S else None

    def ask(self, source: ModelSource, attempts: int = ATTEMPTS) -> Listing:
        """Return the listing of `source` at its revision. Raises ModelNotFound, AccessDenied, SourceUnavailable.

        Raises UnsupportedModel for one that is larger than any model's.
        """
        if remembered := self.remembered(source):
            return remembered
        if self.offline:
            raise SourceUnavailable(
                f"{source.locator} is not in the cache and this worker is offline; "
                "unset OFFLINE, or put the model on the volume.",
                field="model",
            )
        info = self._ask(source, attempts)
        revision = _text(info.get("sha")) or source.revision or "main"
        files = self._files(source.locator, info, revision)
        # Some mirrors name no commit: then the files themselves tell one state of a branch from the next.
        commit = revision if info.get("sha") else f"{revision}+{_fingerprint(files)}"
        listing = Listing(commit, files, _declared(info), time.monotonic())
        with self._guard:
            if len(self._listings) >= _MAX_LISTINGS:
                self._listings.clear()
            self._listings[source.locator, source.revision] = listing
        return listing

    def _ask(self, source: ModelSource, attempts: int) -> Mapping[str, object]:
        """Return the Hub's answer; a broken connection and a busy server are tried again."""
        at = f"/revision/{quote(source.revision, safe='')}" if source.revision else ""
        url = f"{self._endpoint}/api/models/{quote(source.locator)}{at}?blobs=true"
        failure: WorkerError = unavailable(source)
        for attempt in range(1, attempts + 1):
            wait = BACKOFF_S * attempt
            try:
                with self._client.get(url, timeout_s=LISTING_TIMEOUT_S) as response:
                    if response.status == 200:
                        return _object(response.read_all(_MAX_BYTES), source)
                    failure = listing_refused(source, response.status, response.headers)
                    if response.status != 429 and response.status < 500:
                        raise failure
                    retry_after = response.headers.get("retry-after", "")
                    wait = min(float(retry_after), MAX_WAIT_S) if retry_after.isdecimal() else wait
            except Oversize:
                raise _too_large(source, f"is over {_MAX_BYTES >> 20} MB") from None
            except OSError:
                failure = unavailable(source)
            if attempt < attempts:
                time.sleep(wait)
        raise failure

    def _files(self, repo: str, info: Mapping[str, object], revision: str) -> dict[str, RemoteFile]:
        root = f"{self._endpoint}/{repo}/resolve/{quote(revision, safe='')}"
        files = {}
        for item in _list(info.get("siblings")):
            if isinstance(item, dict) and (name := _text(item.get("rfilename"))):
                size, lfs = item.get("size"), item.get("lfs")
                files[name] = RemoteFile(
                    name,
                    f"{root}/{quote(name)}",
                    size if type(size) is int else None,
                    _text(lfs.get("sha256")) if isinstance(lfs, dict) else None,
                    None if lfs else _text(item.get("blobId")),  # with LFS it is the pointer's
                )
        return files


def remembered_declaration(value: JsonValue) -> Declaration | None:
    """Read a declaration back from an entry's details, as `asdict` made it; None for anything else."""
    if not isinstance(value, dict) or not value.keys() <= Declaration.__dataclass_fields__.keys():
        return None
    fields: dict[str, Any] = {name: tuple(item) if isinstance(item, list) else item for name, item in value.items()}
    return Declaration(**fields)


def declaration_details(declared: Declaration) -> dict[str, JsonValue]:
    """Return a declaration as JSON, for an entry's details."""
    return {name: list(item) if isinstance(item, tuple) else item for name, item in asdict(declared).items()}


def _fingerprint(files: Mapping[str, RemoteFile]) -> str:
    facts = [(name, file.size, file.sha256, file.git_sha1) for name, file in sorted(files.items())]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


def _object(body: bytes, source: ModelSource) -> Mapping[str, object]:
    """Read the Hub's answer. Raises SourceUnavailable for something else, UnsupportedModel for more than a model's."""
    try:
        value = parse_bounded(body, _LIMITS)
    except JsonTooLarge as error:
        raise _too_large(source, str(error)) from None
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise SourceUnavailable(
            f"The Hub's answer about {source.locator} is no description of a model; check HF_ENDPOINT, or send the job "
            "again in a minute.",
            field="model",
        )
    return value


def _too_large(source: ModelSource, fault: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"The list of the files of {source.locator} {fault}, more than any model needs; name another repository.",
        field="model",
    )


def _declared(info: Mapping[str, object]) -> Declaration:
    """Read the declarations of a repository's page. The card is free text: every value may have any type."""
    card = info.get("cardData")
    card = card if isinstance(card, dict) else {}
    tags = tuple(_texts([*_list(info.get("tags")), info.get("pipeline_tag")]))[:_MAX_TAGS]
    lowered = {tag.lower() for tag in tags}
    licence = next((tag.partition(":")[2] for tag in tags if tag.startswith("license:")), _text(card.get("license")))
    named = _text(card.get("license_name")) if licence in (None, "other") else None
    name = _text(info.get("id"))
    return Declaration(
        base=next(iter(_texts(card.get("base_model"))), None),
        kind=next((kind for kind in _KINDS if kind in lowered), None),
        pipeline=next((tag.partition(":")[2] for tag in tags if tag.startswith("diffusers:")), None),
        tags=tuple(dict.fromkeys(tags)),
        trigger_words=tuple(_texts(card.get("instance_prompt"))),
        name=name.rpartition("/")[2] if name else None,
        licence=(named or licence or "")[:128] or None,
    )


def _texts(value: object) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [item for item in values if isinstance(item, str) and item]


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []

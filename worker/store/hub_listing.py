"""One commit of a repository as the Hub describes it: files with sizes and digests, and the page's declarations."""

import hashlib
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import quote

from pydantic import JsonValue

from worker.core.errors import SourceUnavailable
from worker.core.model import Declaration, ModelSource
from worker.store.hub_errors import ATTEMPTS, hub_errors, with_retries
from worker.store.transfer import RemoteFile

LISTING_TIMEOUT_S = 10.0
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
    """Asks the Hub for listings, and remembers them for ten minutes. Blocking; safe to use from several threads."""

    def __init__(self, endpoint: str, token: str | None = None, *, offline: bool = False) -> None:
        self.offline = offline
        self._endpoint, self._token = endpoint.rstrip("/"), token
        self._listings: dict[tuple[str, str | None], Listing] = {}
        self._guard = threading.Lock()

    def remembered(self, source: ModelSource) -> Listing | None:
        """Return the Hub's listing of `source` from a short while ago."""
        listing = self._listings.get((source.locator, source.revision))
        return listing if listing and time.monotonic() - listing.asked_at < MEMORY_S else None

    def ask(self, source: ModelSource, attempts: int = ATTEMPTS) -> Listing:
        """Return the listing of `source` at its revision. Raises ModelNotFound, AccessDenied, SourceUnavailable."""
        if remembered := self.remembered(source):
            return remembered
        if self.offline:
            raise SourceUnavailable(
                f"{source.locator} is not in the cache and this worker is offline; "
                "unset OFFLINE, or put the model on the volume.",
                field="model",
            )
        from huggingface_hub import HfApi

        with hub_errors(source):
            api = HfApi(endpoint=self._endpoint, token=self._token or False)
            info = with_retries(
                lambda: api.model_info(
                    source.locator, revision=source.revision, timeout=LISTING_TIMEOUT_S, files_metadata=True
                ),
                attempts,
            )
        revision = str(info.sha or source.revision or "main")
        files = self._files(source.locator, info, revision)
        # Some mirrors name no commit: then the files themselves tell one state of a branch from the next.
        commit = revision if info.sha else f"{revision}+{_fingerprint(files)}"
        listing = Listing(commit, files, _declared(info), time.monotonic())
        with self._guard:
            if len(self._listings) >= _MAX_LISTINGS:
                self._listings.clear()
            self._listings[source.locator, source.revision] = listing
        return listing

    def _files(self, repo: str, info: Any, revision: str) -> dict[str, RemoteFile]:
        root = f"{self._endpoint}/{repo}/resolve/{quote(revision, safe='')}"
        return {
            item.rfilename: RemoteFile(
                item.rfilename,
                f"{root}/{quote(item.rfilename)}",
                item.size,
                item.lfs.sha256 if item.lfs else None,
                None if item.lfs else item.blob_id,  # with LFS it is the pointer's
            )
            for item in info.siblings or []
        }


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


def _declared(info: Any) -> Declaration:
    """Read the declarations of a repository's page. The card is free text: every value may have any type."""
    card = info.card_data.to_dict() if info.card_data else {}
    tags = tuple(str(tag) for tag in [*(info.tags or []), info.pipeline_tag] if tag)[:_MAX_TAGS]
    lowered = {tag.lower() for tag in tags}
    prompt = card.get("instance_prompt")
    return Declaration(
        base=next(iter(_texts(card.get("base_model"))), None),
        kind=next((kind for kind in _KINDS if kind in lowered), None),
        pipeline=next((tag.partition(":")[2] for tag in tags if tag.startswith("diffusers:")), None),
        tags=tuple(dict.fromkeys(tags)),
        trigger_words=tuple(_texts(prompt)),
        name=str(info.id).rpartition("/")[2] if info.id else None,
    )


def _texts(value: object) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [item for item in values if isinstance(item, str) and item]

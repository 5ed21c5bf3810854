"""The Hub's search: `GET /api/models`, as huggingface_hub's `list_models` asks it, and its answer as entries."""

from collections.abc import Mapping, Sequence
from urllib.parse import quote, urlencode

from worker.core.discovery import Listed
from worker.core.errors import AccessDenied, SourceUnavailable, WorkerError
from worker.core.json_text import JsonLimits, parse_bounded
from worker.core.model import ModelSource
from worker.net.client import Client, Oversize
from worker.store.hub_errors import listing_refused, unavailable
from worker.store.loose_json import objects_in, text_in, texts_in

_TIMEOUT_S = 15.0
_MAX_BYTES = 16 * 2**20
_LIMITS = JsonLimits(values=500_000, texts=1_000_000)
_FIELDS = ("downloads", "likes", "tags", "lastModified", "gated", "private", "pipeline_tag")
_BASE = "base_model:"


class HubSearch:
    """Lists repositories of the Hub. Blocking; safe to use from several threads. `client` knows the token."""

    def __init__(self, client: Client, endpoint: str) -> None:
        self._client, self._endpoint = client, endpoint.rstrip("/")

    def search(self, text: str, filters: Sequence[str], limit: int) -> list[Listed]:
        """List the most downloaded repositories with all of these tags whose id has the words of `text`.

        Raises SourceUnavailable, AccessDenied.
        """
        fields = [("limit", str(limit)), ("sort", "downloads")]
        fields += [("search", text)] if text else []
        fields += [("filter", name) for name in filters] + [("expand", name) for name in _FIELDS]
        try:
            with self._client.get(f"{self._endpoint}/api/models?{urlencode(fields)}", timeout_s=_TIMEOUT_S) as response:
                if response.status != 200:
                    raise _refused(response.status)
                answer = parse_bounded(response.read_all(_MAX_BYTES), _LIMITS)
        except (OSError, Oversize, ValueError):
            raise SourceUnavailable("The Hub did not answer the search; ask again in a minute.") from None
        return [self._entry(item) for item in objects_in(answer) if text_in(item.get("id"))][:limit]

    def check_access(self, source: ModelSource) -> None:
        """Raise AccessDenied, ModelNotFound or SourceUnavailable unless this worker's token may read a repository."""
        url = f"{self._endpoint}/api/models/{quote(source.locator)}/auth-check"
        try:
            with self._client.get(url, timeout_s=_TIMEOUT_S) as response:
                status, headers = response.status, response.headers
        except OSError:
            raise unavailable(source) from None
        if status != 200:
            raise listing_refused(source, status, headers)

    def _entry(self, item: Mapping[str, object]) -> Listed:
        name, raw = text_in(item.get("id")), item.get("tags")
        tags = texts_in(raw)
        numbers = (item.get("downloads"), item.get("likes"))
        downloads, likes = (value if type(value) is int and value >= 0 else 0 for value in numbers)
        bases = [tag.rpartition(":")[2] for tag in tags if tag.startswith(_BASE)]
        return Listed(
            reference=name,
            name=name.rpartition("/")[2],
            page=f"{self._endpoint}/{name}",
            base=bases[0] if bases else None,
            licence=licence_in(tags),
            tags=tuple(tag for tag in tags if ":" not in tag),
            downloads=downloads,
            likes=likes,
            updated=text_in(item.get("lastModified"))[:10] or None,
            gated=bool(item.get("gated")),
        )


def licence_in(tags: Sequence[str]) -> str | None:
    """Return the licence that a repository's tags name."""
    return next((tag.partition(":")[2] for tag in tags if tag.startswith("license:")), None)


def _refused(status: int) -> WorkerError:
    if status in {401, 403}:
        return AccessDenied("The Hub refuses this worker's token; set HF_TOKEN to a valid one, or unset it.")
    return SourceUnavailable("The Hub did not answer the search; ask again in a minute.")

"""CivitAI's search: `GET /api/v1/models`, and a page of it read as entries that can be looked at.

`query` is a full-text search whose hits the site filters afterwards, so that a page of it is asked for whole. Without
`nsfw` it answers with what everybody may see. https://developer.civitai.com/site/reference/models
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from urllib.parse import urlencode

from worker.core.discovery import Listed
from worker.core.errors import ModelNotFound, SourceUnavailable
from worker.core.json_text import JsonLimits
from worker.store.civitai_api import CivitaiApi
from worker.store.civitai_listing import licence_in, newest_versions
from worker.store.loose_json import number_in, object_in, objects_in, text_in, texts_in

_WHOLE_PAGE = 100  # the most that the site gives at once
_LIMITS = JsonLimits(values=1_000_000, texts=2_000_000)  # a page has every version of a hundred models, with images
_ATTEMPTS = 2


class CivitaiSearch:
    """Lists models of the site. Blocking; safe to use from several threads."""

    def __init__(self, api: CivitaiApi, endpoint: str) -> None:
        self._api, self._endpoint = api, endpoint.rstrip("/")

    def search(self, text: str, types: Sequence[str], bases: Sequence[str], limit: int) -> list[Listed]:
        """List the most downloaded models of these types and base models whose page has the words of `text`.

        A model has one entry for its newest version, and another for a newer one in early access. Raises as
        `CivitaiApi.version` does.
        """
        fields = [("limit", str(_WHOLE_PAGE if text else limit)), ("sort", "Most Downloaded"), ("period", "AllTime")]
        fields += [("query", text)] if text else []
        fields += [("types", kind) for kind in types] + [("baseModels", base) for base in bases]
        try:
            page = self._api.ask(f"models?{urlencode(fields)}", "the answer to a search", _ATTEMPTS, _LIMITS)
        except ModelNotFound:
            raise SourceUnavailable("CivitAI did not take the search; use fewer or other words.") from None
        now = datetime.now(UTC)
        return [entry for item in objects_in(page.get("items")) for entry in self._entries(item, bases, now)][:limit]

    def by_hash(self, digest: str) -> Listed | None:
        """Return the version that has a file of this digest, of any kind that the site knows; None for none."""
        try:
            version = self._api.ask(f"model-versions/by-hash/{digest}", f"the file {digest[:12]}", _ATTEMPTS)
        except ModelNotFound:
            return None
        number, owner = number_in(version.get("modelId")), object_in(version.get("model"))
        if number is None or number_in(version.get("id")) is None:
            return None
        model = {**owner, "id": number, "stats": version.get("stats")}
        return self._entry(model, version, f"civitai:{number}@{number_in(version.get('id'))}")

    def _entries(self, model: Mapping[str, object], bases: Collection[str], now: datetime) -> list[Listed]:
        versions = {number_in(item.get("id")): item for item in objects_in(model.get("modelVersions"))}
        number = number_in(model.get("id"))
        chosen = newest_versions(model, now, bases) if number else ()
        return [self._entry(model, versions[version], f"civitai:{number}@{version}") for version in chosen]

    def _entry(self, model: Mapping[str, object], version: Mapping[str, object], reference: str) -> Listed:
        stats = object_in(model.get("stats"))
        number = number_in(model.get("id"))
        return Listed(
            reference=reference,
            name=" ".join(filter(None, (text_in(model.get("name")), text_in(version.get("name")))))[:200],
            page=f"{self._endpoint}/models/{number}?modelVersionId={number_in(version.get('id'))}",
            base=text_in(version.get("baseModel")) or None,
            licence=licence_in(model),
            trigger_words=texts_in(version.get("trainedWords")),
            tags=texts_in(model.get("tags")),
            downloads=number_in(stats.get("downloadCount")) or 0,
            likes=number_in(stats.get("thumbsUpCount")) or 0,
            updated=text_in(version.get("publishedAt"))[:10] or None,
        )

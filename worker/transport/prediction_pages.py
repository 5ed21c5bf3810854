"""Pages of predictions as Replicate's API gives them out, the newest first. A cursor names the one that a page follows.

A page of several processes is made of the pages of each, so a cursor says no more than every process can tell.
"""

import base64
import binascii
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar
from urllib.parse import parse_qsl, urlencode

from worker.core.errors import ParameterOutOfRange

T = TypeVar("T")
Key = tuple[str, str]  # when it was made, as its JSON says, and its id
PATH = "/v1/predictions"
PAGE = 100  # entries of a page, as there


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page, and the cursors of those beside it."""

    entries: tuple[T, ...]
    next: str | None
    previous: str | None

    def links(self, address: str, query: str) -> dict[str, str | None]:
        """Return the addresses of the pages beside this one, whose own had `query`."""
        return {"next": _link(address, query, self.next), "previous": _link(address, query, self.previous)}


def page_of(
    entries: Iterable[T], key_of: Callable[[T], Key], cursor: str | None, *, before: bool = False, after: bool = False
) -> Page[T]:
    """Return the page that `cursor` names, the first without one.

    `before` and `after` say that there are newer and older entries elsewhere. Raises ParameterOutOfRange.
    """
    ordered = sorted(entries, key=key_of, reverse=True)
    is_newer, mark = _read(cursor) if cursor else (False, None)
    fits = [mark is None or (key_of(entry) > mark if is_newer else key_of(entry) < mark) for entry in ordered]
    start = fits.index(True) if True in fits else 0
    end = start + sum(fits)
    start, end = (max(start, end - PAGE), end) if is_newer else (start, min(end, start + PAGE))
    chosen, before, after = ordered[start:end], before or start > 0, after or end < len(ordered)
    if not chosen:
        return Page((), None, None)
    first, last = key_of(chosen[0]), key_of(chosen[-1])
    return Page(
        tuple(chosen), _written(last, newer=False) if after else None, _written(first, newer=True) if before else None
    )


def merged(bodies: Iterable[Mapping[str, object]], query: str) -> dict[str, object]:
    """Return one page of those that several processes answered the same query with."""
    pages = [*bodies]
    entries = [entry for body in pages for entry in _listed(body.get("results"))]
    cursor = dict(parse_qsl(query)).get("cursor")
    page = page_of(
        entries,
        lambda entry: (str(entry["created_at"]), str(entry["id"])),
        cursor,
        before=any(body.get("previous") for body in pages),
        after=any(body.get("next") for body in pages),
    )
    address = _address(page.entries[0]) if page.entries else ""
    return {**page.links(address, query), "results": [*page.entries]}


def _address(entry: Mapping[str, object]) -> str:
    urls = entry.get("urls")
    return str(urls.get("get", "")).partition(PATH)[0] if isinstance(urls, dict) else ""


def _listed(value: object) -> list[dict[str, object]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _link(address: str, query: str, cursor: str | None) -> str | None:
    if cursor is None:
        return None
    kept = [(name, value) for name, value in parse_qsl(query) if name != "cursor"]
    return f"{address}{PATH}?{urlencode([*kept, ('cursor', cursor)])}"


def _written(key: Key, *, newer: bool) -> str:
    return base64.urlsafe_b64encode(json.dumps([newer, *key]).encode()).decode().rstrip("=")


def _read(cursor: str) -> tuple[bool, Key]:
    try:
        newer, when, id = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (ValueError, TypeError, binascii.Error):
        raise ParameterOutOfRange(
            "cursor must be that of the next or previous page that was answered.", field="cursor"
        ) from None
    return bool(newer), (str(when), str(id))

"""CivitAI in miniature: its API, its downloads, and the storage host behind them.

A download is answered with a redirect to another origin, as the real one's is, and that origin answers 400 to a
request that still carries a token. Shapes of JSON and statuses are those of the site's public API in 2026.
"""

import hashlib
import json
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from tests.fakes import FakeServer, Handler

LOGIN_PAGE = "<!DOCTYPE html><html><head><title>Civitai | Sign in</title></head><body>Sign in</body></html>"
SIGNATURE = "X-Amz-Signature=5ec4e7"


class Hollow:
    """A file of `size` bytes that begins with `head`; the zeros behind it are nowhere until they are asked for."""

    def __init__(self, head: bytes, size: int) -> None:
        self._head, self._size = head, size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, span: slice) -> bytes:
        start, stop, _ = span.indices(self._size)
        part = self._head[start:stop]
        return part + bytes(stop - start - len(part))


Content = bytes | Hollow


def _seal(content: Content) -> bytes:
    """What digests of a file are made of."""
    return content if isinstance(content, bytes) else content[:4096]


def _sha256(content: Content) -> str:
    return hashlib.sha256(_seal(content)).hexdigest().upper()


class FakeStorage(FakeServer):
    """The object store: knows signed links, never tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[int, Content] = {}
        self.ranges = True
        """Whether ranges are answered with ranges."""

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Register the signed links."""
        router.add_get("/signed/{file:\\d+}", self._send)

    async def _send(self, request: web.Request) -> web.StreamResponse:
        if "Authorization" in request.headers:
            return web.Response(status=400, text="<Error><Code>InvalidArgument</Code></Error>")
        if SIGNATURE not in request.query_string:
            return web.Response(status=403, text="<Error><Code>AccessDenied</Code></Error>")
        content = self.files[int(request.match_info["file"])]
        headers = {"ETag": f'"{hashlib.md5(_seal(content)).hexdigest()}"', "Content-Type": "application/octet-stream"}
        span = request.http_range if self.ranges else slice(None, None)
        first, stop = span.start or 0, min(span.stop or len(content), len(content))
        if span.start is None and span.stop is None:
            return web.Response(body=content[:], headers=headers)
        if first >= len(content):
            return web.Response(status=416, headers={"Content-Range": f"bytes */{len(content)}"})
        headers["Content-Range"] = f"bytes {first}-{stop - 1}/{len(content)}"
        return web.Response(status=206, body=content[first:stop], headers=headers)


class FakeCivitai(FakeServer):
    """The site. ``down`` answers 503 to everything; ``refusals`` answers a version's downloads with a status."""

    def __init__(self, *, token: str = "civitai_member") -> None:
        super().__init__()
        self.token = token
        self.storage = FakeStorage()
        self.down = False
        self.api_refusals: list[tuple[int, dict[str, str]]] = []
        """Answers to the next questions: status and headers."""
        self.refusals: dict[int, tuple[int, dict[str, Any], dict[str, str]]] = {}
        """Version -> status, JSON and headers of the answer to its download."""
        self.members_only: set[int] = set()
        """Versions whose download wants a login."""
        self.login_pages: set[int] = set()
        """Versions whose download leads everybody to the login page."""
        self.models: dict[int, dict[str, Any]] = {}
        self.versions: dict[int, dict[str, Any]] = {}
        self.deleted: set[int] = set()
        """Models that the search still lists and nothing else has."""
        self._owned: set[tuple[int, int]] = set()

    def __enter__(self) -> Self:
        self.storage.__enter__()
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self.storage.__exit__(kind, error, trace)

    # --- for tests ---------------------------------------------------------------------------------------------

    def add_model(
        self,
        number: int,
        name: str,
        kind: str,
        *,
        mode: str | None = None,
        tags: list[str] | None = None,
        downloads: int = 0,
        likes: int = 0,
        **page: Any,
    ) -> None:
        """Publish a model without a version yet; `page` goes into its JSON as it is."""
        self.models[number] = page | {
            "id": number,
            "name": name,
            "type": kind,
            "nsfw": False,
            "tags": tags or [],
            "mode": mode,
            "stats": {"downloadCount": downloads, "thumbsUpCount": likes, "thumbsDownCount": 0, "commentCount": 0},
        }

    def add_version(
        self, model: int, number: int, base: str = "SDXL 1.0", *, name: str = "v1.0", **fields: Any
    ) -> None:
        """Publish a version as the newest of its model; `fields` go into its JSON as they are."""
        self.versions[number] = {
            "id": number,
            "modelId": model,
            "name": name,
            "baseModel": base,
            "baseModelType": "Standard",
            "status": "Published",
            "availability": "Public",
            "publishedAt": f"2025-01-01T00:00:00.{number % 1000:03d}Z",
            "trainedWords": [],
            "usageControl": "Download",
            "files": [],
            "images": [],
            **fields,
        }

    def add_file(self, version: int, number: int, content: Content, name: str, **fields: Any) -> None:
        """Add a file to a version. `fields` replace those of its JSON; `format`, `size` and `fp` go into metadata."""
        metadata = {key: fields.pop(key) for key in ("format", "size", "fp") if key in fields}
        files = self.versions[version]["files"]
        files.append({
            "id": number,
            "name": name,
            "sizeKB": round(len(content) / 1024, 3),
            "type": "Model",
            "metadata": {"format": "SafeTensor", "size": "full", "fp": "fp16", **metadata},
            "pickleScanResult": "Success",
            "virusScanResult": "Success",
            "hashes": {"AutoV2": _sha256(content)[:10], "SHA256": _sha256(content)},
            "primary": not files,
            # Describes the file by its properties, which the site itself may answer with 404.
            "downloadUrl": f"{self.origin}/api/download/models/{version}?type=Model&format=SafeTensor",
            **fields,
        })  # fmt: skip
        self._owned.add((version, number))
        self.storage.files[number] = content

    def count(self, part: str) -> int:
        """Return how many requests had this in their path."""
        return sum(part in seen.path for seen in list(self.requests))

    @property
    def told(self) -> str:
        """All that the storage host was sent, as text."""
        return "\n".join(f"{seen.path} {seen.query} {seen.headers}" for seen in self.storage.requests)

    # --- routes ------------------------------------------------------------------------------------------------

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Register the API, the downloads and the login page."""
        router.add_get("/api/v1/models", self._guarded(self._search))
        router.add_get("/api/v1/models/{number:\\d+}", self._guarded(self._model))
        router.add_get("/api/v1/model-versions/by-hash/{digest}", self._guarded(self._by_hash))
        router.add_get("/api/v1/model-versions/{number:\\d+}", self._guarded(self._version))
        router.add_get("/api/download/models/{number:\\d+}", self._download)
        router.add_get("/login", self._login)

    def _guarded(self, handler: Handler) -> Handler:
        async def answer(request: web.Request) -> web.StreamResponse:
            if self.down:
                return web.Response(status=503, text="Service Unavailable")
            if self.api_refusals:
                status, headers = self.api_refusals.pop(0)
                return _refusal({"error": "refused"}, status, headers)
            if self._bearer(request) not in (None, self.token):
                return web.json_response({"error": "Unauthorized"}, status=401)
            return await handler(request)

        return answer

    async def _search(self, request: web.Request) -> web.StreamResponse:
        """Answer as the site does: the words choose the newest hundred, and only then the filters apply."""
        query, kinds = request.query, request.query.getall("types", [])
        bases, words = query.getall("baseModels", []), query.get("query", "").lower().split()
        if words and "page" in query:
            return web.json_response({"error": "Cannot use page param with query search."}, status=400)
        limit = int(query.get("limit", "100"))
        listed = []
        for number, model in sorted(self.models.items(), reverse=True):
            text = f"{model['name']} {' '.join(model['tags'])}".lower()
            if all(word in text for word in words):
                listed.append((number, model))
        items = []
        for number, model in listed[:limit] if words else listed:
            versions = [item for item in reversed(self.versions.values()) if item["modelId"] == number]
            if (kinds and model["type"] not in kinds) or (
                bases and not any(item["baseModel"] in bases for item in versions)
            ):
                continue
            items.append({**model, "modelVersions": versions})
        items.sort(key=lambda item: -item["stats"]["downloadCount"])
        return web.json_response({"items": items[:limit], "metadata": {"nextCursor": None}})

    async def _model(self, request: web.Request) -> web.StreamResponse:
        number = int(request.match_info["number"])
        if number not in self.models or number in self.deleted:
            return web.json_response({"error": f"No model with id {number}"}, status=404)
        newest_first = [item for item in reversed(self.versions.values()) if item["modelId"] == number]
        return web.json_response({**self.models[number], "modelVersions": newest_first})

    async def _by_hash(self, request: web.Request) -> web.StreamResponse:
        wanted = request.match_info["digest"].upper()
        for number, version in self.versions.items():
            if any(wanted in (file["hashes"]["SHA256"], file["hashes"]["AutoV2"]) for file in version["files"]):
                return await self._version_of(number)
        return web.json_response({"error": "Model not found"}, status=404)

    async def _version(self, request: web.Request) -> web.StreamResponse:
        return await self._version_of(int(request.match_info["number"]))

    async def _version_of(self, number: int) -> web.StreamResponse:
        version = self.versions.get(number)
        if version is None or version["modelId"] in self.deleted:
            return web.json_response({"error": "No model with that version"}, status=404)
        model = self.models[version["modelId"]]
        owner = {"name": model["name"], "type": model["type"], "nsfw": False, "poi": False, "mode": model["mode"]}
        return web.json_response({**version, "model": owner})

    async def _download(self, request: web.Request) -> web.StreamResponse:
        number = int(request.match_info["number"])
        if self.down:
            return web.Response(status=503, text="Service Unavailable")
        if number in self.login_pages or "mozilla" in request.headers.get("User-Agent", "").lower():
            return web.Response(status=302, headers={"Location": "/login?reason=download-auth"})
        if number in self.refusals:
            status, value, headers = self.refusals[number]
            return _refusal(value, status, headers)
        bearer = self._bearer(request)
        if bearer not in (None, self.token) or (bearer is None and number in self.members_only):
            return web.json_response({"error": "Unauthorized", "message": "requires a logged-in user"}, status=401)
        wanted = int(request.query.get("fileId", "0"))
        if (number, wanted) not in self._owned:
            return web.json_response({"error": "File not found"}, status=404)
        there = f"{self.storage.origin}/signed/{wanted}?{SIGNATURE}&response-content-disposition=attachment"
        return web.Response(status=307, headers={"Location": there})

    async def _login(self, request: web.Request) -> web.StreamResponse:
        return web.Response(text=LOGIN_PAGE, content_type="text/html")

    def _bearer(self, request: web.Request) -> str | None:
        return request.headers.get("Authorization", "").removeprefix("Bearer ") or None


def _refusal(value: Any, status: int, headers: Mapping[str, str]) -> web.Response:
    """JSON, or what `headers` says it is."""
    kind = {} if "Content-Type" in headers else {"content_type": "application/json"}
    return web.Response(text=json.dumps(value), status=status, headers=headers, **kind)

"""A Hugging Face Hub in miniature: serves local folders as model repositories to the real ``huggingface_hub`` client.

The client reads ``HF_ENDPOINT`` when it is imported, so a process started later takes :meth:`FakeHub.env`, and a call
in this process takes ``endpoint=hub.endpoint``.
"""

import asyncio
import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web
from yarl import URL

from tests.fakes import FakeServer, Handler
from tests.fakes.hub_files import HubFile, HubRepo, describe, files_of, folder_leaf, folders, hub_file


class FakeHub(FakeServer):
    """The Hub.

    ``down`` answers 503 to everything and ``hang`` answers nothing until it is set back; both may be set at any time.
    ``cdn`` answers LFS files with a redirect to another host name, as the real Hub does. ``pace`` sends files at so
    many bytes a second, ``cut`` ends every answer after so many bytes, ``ranges`` off ignores Range, ``etags`` off
    sends no ETag.
    """

    def __init__(self, *, token: str = "hf_member", stranger: str = "hf_stranger", cdn: bool = False) -> None:
        super().__init__()
        self.token = token
        """May read private and gated repositories."""
        self.stranger = stranger
        """A valid token that was not let into any gated repository."""
        self.cdn = cdn
        self.down = False
        self.hang = False
        self.pace: float | None = None
        self.cut: int | None = None
        self.ranges = True
        self.etags = True
        self.script: list[web.Response] = []
        """Answers to the next questions for files, instead of the files."""
        self.sent: dict[str, int] = {}
        """Bytes of each file that went out, by its path."""
        self.repos: dict[str, HubRepo] = {}
        self._truncated: dict[str, int] = {}
        self._corrupted: set[str] = set()

    # --- for tests ---------------------------------------------------------------------------------------------

    @property
    def endpoint(self) -> str:
        """What to pass as ``endpoint=``."""
        return self.origin

    def env(self) -> dict[str, str]:
        """Return the variables that point a new process here, with an empty cache that goes with this server."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(Path(self.folder) / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }

    def add_repo(
        self,
        repo_id: str,
        folder: str | Path,
        *,
        gated: bool = False,
        private: bool = False,
        branch: str = "main",
        **info: Any,
    ) -> str:
        """Serve a folder as the newest commit of a branch and return the commit's id.

        Files are read when asked for, but listed and hashed now. Earlier commits stay. ``info`` goes into the model's
        info as it is (``pipeline_tag=``, ``cardData=`` …).
        """
        files = {file.path: file for file in (hub_file(Path(folder), path) for path in files_of(Path(folder)))}
        content = json.dumps([repo_id, sorted((path, file.blob) for path, file in files.items())])
        commit = hashlib.sha1(content.encode()).hexdigest()

        def add() -> None:
            repo = self.repos.setdefault(repo_id, HubRepo(repo_id, gated, private, info))
            repo.gated, repo.private, repo.info = gated, private, repo.info | info
            repo.commits[commit], repo.infos[commit] = files, info
            repo.branches[branch] = commit

        self.call(add)
        return commit

    def truncate(self, path: str, length: int) -> None:
        """End every download of a file after so many bytes, though all were promised."""
        self.call(lambda: self._truncated.update({path: length}))

    def corrupt(self, path: str) -> None:
        """Flip one bit in the middle of a file on its way; size and ETag stay true to the original."""
        self.call(lambda: self._corrupted.add(path))

    def heal(self) -> None:
        """Take back every fault."""
        self.down = self.hang = False
        self.pace = self.cut = None
        self.call(lambda: (self._truncated.clear(), self._corrupted.clear()))

    def count(self, part: str = "", method: str | None = None) -> int:
        """Return how many requests had this in their path (and this method)."""
        return sum(part in seen.path and method in (None, seen.method) for seen in list(self.requests))

    # --- routes ------------------------------------------------------------------------------------------------

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Register the API and the files."""
        model, dataset = "/api/models/{org}/{name}", "/api/datasets/{org}/{name}"
        router.add_get("/api/whoami-v2", self._faulty(self._whoami))
        router.add_get("/api/models", self._faulty(self._search))
        router.add_post("/api/repos/create", self._faulty(self._create))
        router.add_post("/api/validate-yaml", self._faulty(self._validate))
        router.add_post(model + "/preupload/{revision}", self._faulty(self._preupload))
        router.add_post(model + "/commit/{revision}", self._faulty(self._take_commit))
        router.add_get(model, self._faulty(self._info))
        router.add_get(model + "/auth-check", self._faulty(self._check_access))
        router.add_get(model + "/revision/{revision}", self._faulty(self._info))
        router.add_get(model + "/tree/{revision}", self._faulty(self._tree))
        router.add_get(model + "/tree/{revision}/{path:.+}", self._faulty(self._tree))
        router.add_post(model + "/paths-info/{revision}", self._faulty(self._paths))
        router.add_get("/{org}/{name}/resolve/{revision}/{path:.+}", self._faulty(self._resolve))
        router.add_get(dataset + "/revision/{revision}", self._faulty(self._info))
        router.add_get("/datasets/{org}/{name}/resolve/{revision}/{path:.+}", self._faulty(self._resolve))
        router.add_get("/cdn/{org}/{name}/{revision}/{path:.+}", self._faulty(self._download))

    def _faulty(self, handler: Handler) -> Handler:
        async def answer(request: web.Request) -> web.StreamResponse:
            while self.hang and not self._stop.is_set():
                await asyncio.sleep(0.05)
            if self.down:
                return web.Response(status=503, text="Service Unavailable")
            if self._bearer(request) not in (None, self.token, self.stranger):
                return _refusal(401, "", "Invalid credentials in Authorization header")
            return await handler(request)

        return answer

    async def _whoami(self, request: web.Request) -> web.StreamResponse:
        if self._bearer(request) is None:
            return _refusal(401, "", "Invalid username or password.")
        return web.json_response({"type": "user", "name": "member", "orgs": [], "auth": {"accessToken": {}}})

    async def _search(self, request: web.Request) -> web.StreamResponse:
        words, tags = request.query.get("search", "").lower().split(), request.query.getall("filter", [])
        described = [
            describe(repo, repo.branches["main"], blobs=False)
            for repo in self.repos.values()
            if not repo.private and all(word in repo.id.lower() for word in words)
        ]
        matching = [item for item in described if set(tags) <= {*item["tags"], item.get("library_name")}]
        if "sort" in request.query:
            matching.sort(key=lambda item: item[request.query["sort"]], reverse=True)
        if "expand" in request.query:
            kept = {*request.query.getall("expand"), "_id", "id"}
            matching = [{name: value for name, value in item.items() if name in kept} for item in matching]
        return web.json_response(matching[: int(request.query.get("limit", "1000"))])

    async def _create(self, request: web.Request) -> web.StreamResponse:
        if self._bearer(request) != self.token:
            return _refusal(403, "", "You don't have the rights to create a model under this namespace")
        asked = await request.json()
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.repos:
            return _refusal(409, "", "You already created this model repo")
        first, private = "0" * 40, asked.get("visibility") == "private"
        self.repos[name] = HubRepo(name, False, private, {}, {first: {}}, {first: {}}, {"main": first})
        return web.json_response({"url": f"{self.endpoint}/{name}", "name": name})

    async def _validate(self, request: web.Request) -> web.StreamResponse:
        head = (await request.json())["content"].split("---")[1]
        wrong = not isinstance(yaml.safe_load(head), dict)
        return web.json_response({"errors": [{"message": "no mapping"}] if wrong else [], "warnings": []})

    async def _preupload(self, request: web.Request) -> web.StreamResponse:
        paths = [file["path"] for file in (await request.json())["files"]]
        modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
        return web.json_response({"files": modes})

    async def _take_commit(self, request: web.Request) -> web.StreamResponse:
        if self._bearer(request) != self.token:
            return _refusal(403, "", "Forbidden: pass a token with write access")
        repo, before = self._commit(request)
        lines = [json.loads(line) for line in (await request.text()).splitlines() if line.strip()]
        files = {line["value"]["path"]: line["value"]["content"] for line in lines if line["key"] == "file"}
        number = hashlib.sha1(json.dumps([before, files]).encode()).hexdigest()
        folder = Path(self.folder) / "committed" / number
        for path, content in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(base64.b64decode(content))
        taken = {file.path: file for file in (hub_file(folder, path) for path in files_of(folder))}
        repo.commits[number], repo.infos[number] = repo.commits[before] | taken, {}
        repo.branches["main"] = number
        url = f"{self.endpoint}/{repo.id}/commit/{number}"
        return web.json_response({"success": True, "commitOid": number, "commitUrl": url, "hookOutput": ""})

    async def _info(self, request: web.Request) -> web.StreamResponse:
        repo, commit = self._commit(request)
        return web.json_response(describe(repo, commit, blobs=request.query.get("blobs", "").lower() == "true"))

    async def _tree(self, request: web.Request) -> web.StreamResponse:
        repo, commit = self._commit(request)
        files, below = repo.commits[commit], request.match_info.get("path", "").strip("/")
        prefix = f"{below}/" if below else ""
        leaves = [file for path, file in sorted(files.items()) if path.startswith(prefix)]
        if below and not leaves:
            raise _error(404, "EntryNotFound", f"{below} does not exist on this revision")
        recursive = request.query.get("recursive", "").lower() in {"true", "1"}
        direct = [file.leaf() for file in leaves if recursive or "/" not in file.path.removeprefix(prefix)]
        return web.json_response([folder_leaf(name) for name in folders(leaves, prefix, recursive)] + direct)

    async def _paths(self, request: web.Request) -> web.StreamResponse:
        repo, commit = self._commit(request)
        if request.content_type == "application/json":
            wanted = (await request.json())["paths"]
        else:
            wanted = (await request.post()).getall("paths", [])
        files = repo.commits[commit]
        return web.json_response([files[path].leaf() for path in wanted if path in files])

    async def _check_access(self, request: web.Request) -> web.StreamResponse:
        self._check_gate(self._commit(request)[0], request)
        return web.json_response({})

    def _check_gate(self, repo: HubRepo, request: web.Request) -> None:
        if repo.gated and (who := self._bearer(request)) != self.token:
            raise _error(401 if who is None else 403, "GatedRepo", f"Access to model {repo.id} is restricted.")

    async def _resolve(self, request: web.Request) -> web.StreamResponse:
        repo, commit = self._commit(request)
        self._check_gate(repo, request)
        path = request.match_info["path"]
        file = repo.commits[commit].get(path)
        headers = {"X-Repo-Commit": commit}
        if file is None:
            raise _error(404, "EntryNotFound", "Entry not found", headers)
        if self.cdn and file.sha256:
            headers |= {"X-Linked-Size": str(file.size), "X-Linked-Etag": f'"{file.sha256}"'}
            elsewhere = f"http://localhost:{self.port}/cdn/{repo.id}/{commit}/{path}"
            return web.Response(status=302, headers=headers | {"Location": str(URL(elsewhere))})
        return await self._send(request, file, headers)

    async def _download(self, request: web.Request) -> web.StreamResponse:
        # no check of rights: the real CDN is guarded by a signed address, never by the token
        repo = self.repos["{org}/{name}".format_map(request.match_info)]
        return await self._send(request, repo.commits[request.match_info["revision"]][request.match_info["path"]], {})

    async def _send(self, request: web.Request, file: HubFile, headers: dict[str, str]) -> web.StreamResponse:
        if self.script:
            return self.script.pop(0)
        headers |= {"Accept-Ranges": "bytes"} | ({"ETag": f'"{file.etag}"'} if self.etags else {})
        if file.sha256:
            headers |= {"X-Linked-Size": str(file.size), "X-Linked-Etag": f'"{file.sha256}"'}
        body = file.source.read_bytes()
        if file.path in self._corrupted:
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        status, first = 200, 0
        condition = request.headers.get("If-Range")
        if self.ranges and "Range" in request.headers and condition in (None, headers.get("ETag")):
            span = _span(request, len(body))
            if span is None:
                return web.Response(status=416, headers=headers | {"Content-Range": f"bytes */{len(body)}"})
            status, first = 206, span.start
            headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{len(body)}"
            body = body[span.start : span.stop]
        if request.method == "HEAD":
            return web.Response(status=status, headers=headers, body=body, content_type="application/octet-stream")
        kept = max(self._truncated.get(file.path, len(body) + first) - first, 0)
        if self.cut is not None:
            kept = min(kept, self.cut)
        response = web.StreamResponse(status=status, headers=headers | {"Content-Length": str(len(body))})
        response.content_type = "application/octet-stream"
        await response.prepare(request)
        await self._stream(response, file.path, body[:kept])
        if kept < len(body) and request.transport is not None:
            request.transport.close()
        return response

    async def _stream(self, response: web.StreamResponse, path: str, body: bytes) -> None:
        """Send a body at the present pace, and count what went out."""
        position = 0
        while position < len(body):
            block = body[position : position + (max(int(self.pace / 50), 1) if self.pace else len(body))]
            await response.write(block)
            position += len(block)
            self.sent[path] = self.sent.get(path, 0) + len(block)
            self.changed()
            if self.pace:
                await asyncio.sleep(len(block) / self.pace)

    # --- looking up --------------------------------------------------------------------------------------------

    def _bearer(self, request: web.Request) -> str | None:
        return request.headers.get("Authorization", "").removeprefix("Bearer ") or None

    def _commit(self, request: web.Request) -> tuple[HubRepo, str]:
        repo = self.repos.get("{org}/{name}".format_map(request.match_info))
        if repo is None or (repo.private and self._bearer(request) != self.token):
            # a private repository must look like none at all
            raise _error(404, "RepoNotFound", "Repository not found")
        revision = request.match_info.get("revision", "main")
        commit = repo.branches.get(revision) or next(
            (known for known in repo.commits if len(revision) >= 7 and known.startswith(revision)), None
        )
        if commit is None:
            raise _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repo, commit


def _span(request: web.Request, size: int) -> range | None:
    """Return the bytes asked for, or None when there are none such."""
    try:
        asked = request.http_range
    except ValueError:
        return None
    start, stop, _ = asked.indices(size)
    return range(start, stop) if start < stop else None


def _refusal(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> web.Response:
    told = (headers or {}) | {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return web.json_response({"error": message}, status=status, headers=told)


def _error(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> web.HTTPException:
    kinds = {401: web.HTTPUnauthorized, 403: web.HTTPForbidden, 404: web.HTTPNotFound}
    told = (headers or {}) | {"X-Error-Message": message, "X-Error-Code": code}
    return kinds[status](text=json.dumps({"error": message}), headers=told, content_type="application/json")

"""Local servers that speak the providers' APIs. The providers' own clients are tried on them too, in tests/clients.

Each draws with the mock's pencil, records what it was asked, and fails once for each entry of `failures`: a status, or
"lost" for a job that is taken and whose answer never comes.
"""

import base64
import itertools
import json
import re
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from image_client.drawing import drawn
from tests.fakes import FakeServer

TOKEN = "r8_secret"
Fields = Mapping[str, Any]


async def form_of(request: web.Request) -> dict[str, str | bytes]:
    """The parts of a form: files are bytes."""
    boundary = request.headers["Content-Type"].partition("boundary=")[2].strip('"').encode()
    form: dict[str, str | bytes] = {}
    for part in (await request.read()).split(b"--" + boundary)[1:-1]:
        head, _, value = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        words = head.decode()
        name = re.search(r'[; ]name="?([^";\r]+)', words)
        assert name is not None
        data = value.removesuffix(b"\r\n")
        form[name[1]] = data if "filename=" in words else data.decode()
    return form


class Failing(FakeServer):
    """What all of them share: a token, failures, and images behind links of their own."""

    scheme = "Bearer"

    def __init__(self, failures: list[int | str] | None = None, headers: Fields | None = None) -> None:
        super().__init__()
        self.failures = failures or []
        self.headers = headers or {}  # of a failure
        self.jobs: dict[str, dict[str, Any]] = {}
        self.link: str | None = None  # in place of a link of its own
        self.files: dict[str, bytes] = {}
        self.numbers = itertools.count(1)

    def refused(self, request: web.Request) -> web.Response | None:
        """The failure that this request meets."""
        if request.headers.get("Authorization") != f"{self.scheme} {TOKEN}":
            return self.problem(401, "Unauthenticated")
        if self.failures and self.failures[0] != "lost":
            return self.problem(int(self.failures.pop(0)), "as the test wants")
        return None

    def lost(self, request: web.Request) -> None:
        """Close the connection where the answer of this job is to be lost."""
        if self.failures and self.failures[0] == "lost":
            self.failures.pop(0)
            request.transport.close()

    def problem(self, status: int, words: str) -> web.Response:
        """An error in the provider's own form."""
        return web.json_response(
            {"title": words, "detail": words, "status": status}, status=status, headers=self.headers
        )

    def keep(self, data: bytes) -> str:
        """The link to an image."""
        name = f"{next(self.numbers)}.png"
        self.files[name] = data
        return self.link or f"{self.origin}/files/{name}"

    async def file(self, request: web.Request) -> web.Response:
        """Serve a kept image."""
        return web.Response(body=self.files[request.match_info["name"]], content_type="image/png")

    def asked(self, method: str, part: str) -> list[Any]:
        """The JSON bodies of the requests whose path has `part` in it."""
        return [json.loads(seen.body) for seen in self.requests if seen.method == method and part in seen.path]


class Replicate(Failing):
    """Predictions: two looks later they are done, or at once with `Prefer: wait`."""

    def add_routes(self, router: web.UrlDispatcher) -> None:
        router.add_post("/v1/models/{owner}/{name}/predictions", self.create)
        router.add_post("/v1/predictions", self.create)
        router.add_get("/v1/predictions", self.listed)
        router.add_get("/v1/predictions/{id}", self.get)
        router.add_post("/v1/predictions/{id}/cancel", self.cancel)
        router.add_get("/files/{name}", self.file)

    async def create(self, request: web.Request) -> web.Response:
        body = await request.json()
        if answer := self.refused(request):
            return answer
        if "prompt" not in body.get("input", {}):
            return self.problem(422, "- input: prompt is required")
        job_id = f"p{next(self.numbers)}"
        place = request.match_info
        self.jobs[job_id] = {
            "id": job_id,
            "model": f"{place['owner']}/{place['name']}" if "owner" in place else "someone/something",
            "version": body.get("version", "f2ab8a5bfe79"),
            "input": body["input"],
            "output": None,
            "error": None,
            "logs": "",
            "metrics": {},
            "status": "starting",
            "created_at": "2026-11-30T12:00:00Z",
            "started_at": None,
            "completed_at": None,
            "urls": {
                "get": f"{self.origin}/v1/predictions/{job_id}",
                "cancel": f"{self.origin}/v1/predictions/{job_id}/cancel",
            },
        }
        self.lost(request)
        if "wait" in request.headers.get("Prefer", ""):
            self.advance(job_id, "succeeded")
        return web.json_response(self.jobs[job_id], status=201)

    async def listed(self, request: web.Request) -> web.Response:
        results = list(reversed(self.jobs.values()))
        return self.refused(request) or web.json_response({"previous": None, "next": None, "results": results})

    async def get(self, request: web.Request) -> web.Response:
        if answer := self.refused(request):
            return answer
        if request.match_info["id"] not in self.jobs:
            return self.problem(404, "The requested resource could not be found.")
        job = self.jobs[request.match_info["id"]]
        self.advance(job["id"], {"starting": "processing"}.get(job["status"], "succeeded"))
        return web.json_response(job)

    async def cancel(self, request: web.Request) -> web.Response:
        if answer := self.refused(request):
            return answer
        self.advance(request.match_info["id"], "canceled")
        return web.json_response(self.jobs[request.match_info["id"]])

    def advance(self, job_id: str, status: str) -> None:
        """Bring a prediction to a status; one whose prompt is "nsfw" fails."""
        job = self.jobs[job_id]
        if job["status"] in ("succeeded", "failed", "canceled"):
            return
        if status == "succeeded" and job["input"]["prompt"] == "nsfw":
            job |= {"status": "failed", "error": "NSFW content detected. Try running it again."}
            return
        job["status"] = status
        if status == "succeeded":
            count, seed = job["input"].get("num_outputs", 1), job["input"].get("seed", 0)
            images = [drawn(job["input"]["prompt"], 64, 64, seed + index) for index in range(count)]
            job |= {"output": [self.keep(image) for image in images], "metrics": {"predict_time": 0.5}}


class Stability(Failing):
    """v2beta: forms only; the image, or JSON with it, as Accept says."""

    known = ("prompt", "negative_prompt", "model", "mode", "aspect_ratio", "image", "mask", "strength", "seed")

    def add_routes(self, router: web.UrlDispatcher) -> None:
        router.add_post("/v2beta/stable-image/{kind}/{service}", self.create)

    def problem(self, status: int, words: str) -> web.Response:
        body = {"id": "e1", "name": words.replace(" ", "_").lower(), "errors": [words]}
        return web.json_response(body, status=status, headers=self.headers)

    async def create(self, request: web.Request) -> web.Response:
        if answer := self.refused(request):
            return answer
        if not request.content_type.startswith("multipart/form-data"):
            return self.problem(400, "content-type: must be multipart/form-data")
        form = await form_of(request)
        self.jobs[str(next(self.numbers))] = {**form, "service": "/".join(request.match_info.values())}
        unknown = set(form) - {*self.known, "output_format", "cfg_scale", "style_preset", "none"}
        if unknown or ("prompt" not in form and request.match_info["kind"] != "upscale"):
            return self.problem(400, f"{min(unknown, default='prompt')}: not known, or missing")
        if form.get("prompt") == "moderated":
            return self.problem(403, "content_moderation")
        self.lost(request)
        data = drawn(str(form.get("prompt", "upscaled")), 64, 64, int(str(form.get("seed", 1))))
        filtered = form.get("prompt") == "filtered"
        headers = {"finish-reason": "CONTENT_FILTERED" if filtered else "SUCCESS", "seed": str(form.get("seed", "1"))}
        if "application/json" in request.headers.get("Accept", ""):
            told = {"image": base64.b64encode(data).decode(), "finish_reason": headers["finish-reason"], "seed": 1}
            return web.json_response(told)
        return web.Response(body=data, content_type="image/png", headers={**headers, "x-request-id": "s1"})


class OpenAI(Failing):
    """The images API: JSON to draw, a form to edit; `url` where response_format says so."""

    def add_routes(self, router: web.UrlDispatcher) -> None:
        router.add_post("/v1/images/generations", self.generate)
        router.add_post("/v1/images/edits", self.edit)
        router.add_get("/files/{name}", self.file)

    def problem(self, status: int, words: str) -> web.Response:
        body = {"error": {"message": words, "type": "invalid_request_error", "code": None, "param": None}}
        return web.json_response(body, status=status, headers=self.headers)

    async def generate(self, request: web.Request) -> web.Response:
        return self.refused(request) or self.answered(request, await request.json())

    async def edit(self, request: web.Request) -> web.Response:
        form = await form_of(request)
        if not isinstance(form.get("image"), bytes):
            return self.problem(400, "image is required")
        return self.refused(request) or self.answered(request, form)

    def answered(self, request: web.Request, fields: Fields) -> web.Response:
        if not fields.get("prompt"):
            return self.problem(400, "prompt is required")
        self.jobs[str(next(self.numbers))] = dict(fields)
        self.lost(request)
        count, seed = int(fields.get("n", 1)), int(fields.get("seed", 0))
        images = [drawn(fields["prompt"], 64, 64, seed + index) for index in range(count)]
        by_link = fields.get("response_format") == "url" or fields.get("model") == "links"
        data = [{"url": self.keep(i)} if by_link else {"b64_json": base64.b64encode(i).decode()} for i in images]
        return web.json_response({"created": 1, "data": data, "size": "64x64"}, headers={"x-request-id": "o1"})


class HuggingFace(Failing):
    """hf-inference: the image itself, from text or from an image."""

    def add_routes(self, router: web.UrlDispatcher) -> None:
        router.add_post("/models/{model:.+}", self.create)

    def problem(self, status: int, words: str) -> web.Response:
        return web.json_response({"error": words, "estimated_time": 20.0}, status=status, headers=self.headers)

    async def create(self, request: web.Request) -> web.Response:
        if answer := self.refused(request):
            return answer
        body = await request.json()
        parameters = body.get("parameters", {})
        self.jobs[str(next(self.numbers))] = body
        self.lost(request)
        words = parameters.get("prompt") or body["inputs"]
        size = parameters.get("target_size") or parameters
        data = drawn(words, size.get("width", 64), size.get("height", 64), parameters.get("seed", 0))
        return web.Response(body=data, content_type="image/png")


class Fal(Failing):
    """The queue: handed in, two looks later completed, and its result fetched."""

    scheme = "Key"

    def add_routes(self, router: web.UrlDispatcher) -> None:
        router.add_get("/files/{name}", self.file)
        router.add_get("/{owner}/{app}/requests/{id}/status", self.status)
        router.add_get("/{owner}/{app}/requests/{id}", self.result)
        router.add_put("/{owner}/{app}/requests/{id}/cancel", self.cancel)
        router.add_post("/{owner}/{app:[^/]+}{rest:.*}", self.submit)

    async def submit(self, request: web.Request) -> web.Response:
        body = await request.json()
        if answer := self.refused(request):
            return answer
        job_id, place = f"f{next(self.numbers)}", request.match_info
        self.jobs[job_id] = {"input": body, "looks": 0}
        self.lost(request)
        return web.json_response(
            {"status": "IN_QUEUE", "queue_position": 0} | self.places(f"{place['owner']}/{place['app']}", job_id)
        )

    def places(self, app: str, job_id: str) -> dict[str, str]:
        """Where a request can be asked for."""
        url = f"{self.origin}/{app}/requests/{job_id}"
        return {"request_id": job_id, "response_url": url, "status_url": f"{url}/status", "cancel_url": f"{url}/cancel"}

    async def status(self, request: web.Request) -> web.Response:
        if answer := self.refused(request):
            return answer
        place = request.match_info
        job = self.jobs[place["id"]]
        job["looks"] += 1
        status = "COMPLETED" if job["looks"] > 1 else "IN_PROGRESS"
        told = {"status": status, "logs": None} | self.places(f"{place['owner']}/{place['app']}", place["id"])
        if status == "COMPLETED":
            told["metrics"] = {"inference_time": 0.2}
        return web.json_response(told)

    async def cancel(self, request: web.Request) -> web.Response:
        if answer := self.refused(request):
            return answer
        self.jobs[request.match_info["id"]]["status"] = "canceled"
        return web.json_response({"status": "CANCELLATION_REQUESTED"}, status=202)

    async def result(self, request: web.Request) -> web.Response:
        if answer := self.refused(request):
            return answer
        asked = self.jobs[request.match_info["id"]]["input"]
        if asked["prompt"] == "fails":
            return web.json_response({"detail": [{"msg": "the model failed", "loc": ["body"]}]}, status=422)
        size, seed = asked.get("image_size", {"width": 64, "height": 64}), asked.get("seed", 0)
        images = [
            {"url": self.keep(drawn(asked["prompt"], size["width"], size["height"], seed)), "content_type": "image/png"}
            for _ in range(asked.get("num_images", 1))
        ]
        return web.json_response(
            {"images": images, "seed": seed, "has_nsfw_concepts": [False], "prompt": asked["prompt"]}
        )

"""RunPod's management API in miniature, by its OpenAPI document: volumes, templates and serverless endpoints.

Names need not be unique, an endpoint takes its container from the template once, PATCH changes what it is sent, and
unknown fields are 422. FlashBoot shows in an endpoint's name.
"""

from typing import Any

from aiohttp import web

from tests.fakes import FakeServer

CONTAINER = {"args", "disk", "env", "image", "ports", "registry"}
ENDPOINT = CONTAINER | {"name", "type", "scaling", "gpu", "cpu", "dataCenterIds", "flashboot", "networkVolumes"}
ENDPOINT |= {"templateId", "timeout", "workers"}
TEMPLATE = CONTAINER | {"name", "allowedCudaVersions", "category", "mounts", "public", "serverless"}
TEMPLATE |= {"startJupyter", "startSsh"}
FIELDS = {
    "network-volumes": ({"name", "size", "dataCenter", "type"}, {"name", "size"}, {"name", "size", "dataCenter"}),
    "templates": (TEMPLATE, TEMPLATE, {"name", "image"}),
    "serverless": (ENDPOINT, ENDPOINT - {"type"}, {"name", "type", "scaling"}),
}
LISTS = {"network-volumes": "networkVolumes", "templates": "templates", "serverless": "endpoints"}


class FakeRunPodManagement(FakeServer):
    """One account. `calls` are the changes that it was asked for, as (method, collection, body)."""

    def __init__(self, *, key: str = "rpa_operator") -> None:
        super().__init__()
        self.key = key
        self.items: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in FIELDS}
        self.calls: list[tuple[str, str, dict[str, Any]]] = []
        self.answers: list[tuple[int, dict[str, Any], dict[str, str]]] = []
        """Answers to the next requests, whatever they ask: status, body and headers."""

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Register the collections."""
        router.add_get("/v2/{collection}", self._list)
        router.add_post("/v2/{collection}", self._create)
        router.add_patch("/v2/{collection}/{id}", self._update)

    @property
    def api_url(self) -> str:
        """Where the API is."""
        return f"{self.origin}/v2"

    def named(self, collection: str, name: str) -> dict[str, Any]:
        """The one of this name."""
        (item,) = [item for item in self.items[collection].values() if item["name"] == name]
        return item

    def _refusal(self, request: web.Request) -> web.Response | None:
        if self.answers:
            status, body, headers = self.answers.pop(0)
            return web.json_response(body, status=status, headers=headers)
        if request.headers.get("Authorization") != f"Bearer {self.key}":
            return _error(401, "invalid API key")
        return None if request.match_info["collection"] in FIELDS else _error(404, "no such collection")

    async def _list(self, request: web.Request) -> web.Response:
        collection = request.match_info["collection"]
        return self._refusal(request) or web.json_response({LISTS[collection]: [*self.items[collection].values()]})

    async def _create(self, request: web.Request) -> web.Response:
        collection, body = request.match_info["collection"], await request.json()
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        self.calls.append(("POST", collection, body))
        known, _, required = FIELDS[collection]
        if body.keys() - known or required - body.keys():
            return _error(422, "invalid body", [f"{body.keys() - known or required - body.keys()}"])
        item = dict(body)
        if collection == "serverless":
            error = self._complete(item)
            if error is not None:
                return error
        item["id"] = f"{collection[:3]}_{len(self.items[collection]) + 1}"
        self.items[collection][item["id"]] = item
        return web.json_response(item, status=201)

    def _complete(self, item: dict[str, Any]) -> web.Response | None:
        """Make an endpoint of its body and its template, as RunPod does."""
        template = self.items["templates"].get(item.pop("templateId", ""))
        if template is None or not template.get("serverless"):
            return _error(404, "template not found")
        if not set(item.get("networkVolumes", [])) <= self.items["network-volumes"].keys():
            return _error(404, "network volume not found")
        for field in CONTAINER & template.keys():
            item.setdefault(field, template[field])
        item["gpu"] = {"minCudaVersion": None, "allowedCudaVersions": [], **item["gpu"]}
        item.setdefault("dataCenterIds", [])
        item.setdefault("networkVolumes", [])
        if item.get("flashboot") == "FLASHBOOT":
            item["name"] += " -fb"
        return None

    async def _update(self, request: web.Request) -> web.Response:
        collection, body = request.match_info["collection"], await request.json()
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        self.calls.append(("PATCH", collection, body))
        item = self.items[collection].get(request.match_info["id"])
        if item is None:
            return _error(404, "not found")
        if not body or body.keys() - FIELDS[collection][1]:
            return _error(422, "invalid body", [f"{body.keys() - FIELDS[collection][1]}"])
        for field, value in body.items():
            if field in ("gpu", "workers"):
                # A new selection of pools forgets what was excluded from the old one.
                kept = (
                    {} if field == "gpu" and "pools" in value else {"excludedTypes": item[field].get("excludedTypes")}
                )
                others = {name: part for name, part in item[field].items() if name != "excludedTypes"}
                item[field] = {**others, **{n: v for n, v in kept.items() if v is not None}, **value}
            else:
                item[field] = value
        return web.json_response(item)


def _error(status: int, detail: str, errors: list[str] | None = None) -> web.Response:
    return web.json_response(
        {"title": "Refused", "status": status, "detail": detail, "errors": errors or []}, status=status
    )

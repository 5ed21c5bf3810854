"""RunPod's management API, version 2: network volumes, templates and endpoints by name.

Facts are those of its published OpenAPI document of August 2026: collections answer `{"<name>": [...]}`, POST creates,
PATCH changes the fields that it is sent, and an error is `{"title", "status", "detail", "errors"?}`. Names are not
unique there. A request that creates is sent once: if its answer is lost, the next run finds what it made.
"""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

from worker.net.client import Client

ResourceKind = Literal["network volume", "template", "endpoint"]
Json = dict[str, Any]

_PATHS: Mapping[ResourceKind, tuple[str, str]] = {
    "network volume": ("network-volumes", "networkVolumes"),
    "template": ("templates", "templates"),
    "endpoint": ("serverless", "endpoints"),
}
_MAX_ANSWER = 16 * 2**20
_TRIES = 4
_LONGEST_WAIT_S = 30.0


class DeploymentError(Exception):
    """The fleet cannot be deployed as it is ordered; the message is one sentence for the operator."""


class RunPodApi:
    """Asks the API in one operator's name. The key is in no message."""

    def __init__(
        self, key: str, url: str = "https://api.runpod.io/v2", *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._client = Client({url: None})
        self._key = key
        self._url = url.rstrip("/")
        self._sleep = sleep

    def every(self, kind: ResourceKind) -> list[Json]:
        """Return all resources of a kind that the account has."""
        path, field = _PATHS[kind]
        answer = self._ask("GET", path)
        items = answer.get(field)
        if not isinstance(items, list):
            raise DeploymentError(f"RunPod's answer to GET /{path} has no list {field!r}; is RUNPOD_API_URL right?")
        return items

    def create(self, kind: ResourceKind, body: Json) -> Json:
        """Create one, and return it."""
        return self._ask("POST", _PATHS[kind][0], body)

    def update(self, kind: ResourceKind, id: str, changes: Json) -> Json:
        """Change these fields of one, and return it."""
        return self._ask("PATCH", f"{_PATHS[kind][0]}/{id}", changes)

    def _ask(self, method: str, path: str, body: Json | None = None) -> Json:
        headers = {"Authorization": f"Bearer {self._key}", "Accept": "application/json"}
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = json.dumps(body).encode()
        for attempt in range(_TRIES):
            try:
                with self._client.send(method, f"{self._url}/{path}", headers=headers, body=data) as response:
                    status, retry_after = response.status, response.headers.get("retry-after", "")
                    text = response.read_all(_MAX_ANSWER)
            except OSError as error:
                raise DeploymentError(
                    f"RunPod did not answer {method} /{path}: {self._hidden(str(error))}; run this again."
                ) from None
            # A 429 was not worked on, whatever was asked; of a 503 that is only certain where nothing is changed.
            if attempt + 1 < _TRIES and (status == 429 or (status >= 500 and method == "GET")):
                self._sleep(_wait_s(retry_after, attempt))
                continue
            break
        if not 200 <= status < 300:
            raise DeploymentError(self._refusal(method, path, status, text))
        return _object(text) or {}

    def _refusal(self, method: str, path: str, status: int, text: bytes) -> str:
        if status in (401, 403):
            return f"RunPod refused RUNPOD_API_KEY ({status}); set a key that may write Serverless resources."
        answer = _object(text) or {}
        detail = str(answer.get("detail") or answer.get("title") or "no reason was given")
        errors = answer.get("errors")
        if isinstance(errors, list) and errors:
            detail += f" ({errors[0]})"
        return f"RunPod refused {method} /{path} ({status}): {self._hidden(detail)[:300]}"

    def _hidden(self, text: str) -> str:
        return text.replace(self._key, "…")


def _wait_s(retry_after: str, attempt: int) -> float:
    asked = float(retry_after) if retry_after.isdecimal() else 2.0**attempt
    return min(asked, _LONGEST_WAIT_S)


def _object(text: bytes) -> Json | None:
    try:
        answer = json.loads(text)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None

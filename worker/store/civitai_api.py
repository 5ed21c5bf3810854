"""CivitAI's API: versions asked for and remembered, and each refusal as a sentence with its own fix."""

import contextlib
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime

from worker.core.errors import AccessDenied, ModelNotFound, SourceUnavailable, WorkerError
from worker.core.json_text import USUAL, JsonLimits, parse_bounded
from worker.core.model import ModelSource
from worker.net.client import Client
from worker.net.guard import RefusedUrl
from worker.store.civitai_listing import (
    CivitaiFile,
    CivitaiVersion,
    licence_in,
    newest_version,
    newest_versions,
    read_version,
)
from worker.store.transfer import Refused, RemoteFile

ENDPOINT = "https://civitai.com"
# One service under three names: a token made at one is good at all of them, and at no other host.
_SITES = ("https://civitai.com", "https://civitai.green", "https://civitai.red")
MEMORY_S = 600.0
ATTEMPTS = 3
BACKOFF_S = 0.5
_TIMEOUT_S = 15.0
_MAX_WAIT_S = 5.0
_MAX_LISTINGS = 256
_MAX_JSON_BYTES = 16 * 2**20  # a model with hundreds of versions, each with its images
_MAX_REFUSAL_BYTES = 65_536
_BUSY = frozenset({408, 429, 500, 502, 503, 504})


def civitai_hosts(endpoint: str, token: str | None) -> dict[str, str | None]:
    """Return the hosts that CIVITAI_TOKEN is for, as Client takes them: CivitAI's own, or the operator's mirror."""
    return dict.fromkeys(_SITES if endpoint.rstrip("/") in _SITES else (endpoint,), token)


class CivitaiApi:
    """Asks for versions of models. Blocking; safe to use from several threads. `client` knows the token."""

    def __init__(self, client: Client, endpoint: str = ENDPOINT, *, has_token: bool) -> None:
        self._client, self._endpoint, self._has_token = client, endpoint.rstrip("/"), has_token
        self._versions: dict[tuple[str, str | None], tuple[float, CivitaiVersion]] = {}
        self._guard = threading.Lock()

    def remembered(self, source: ModelSource) -> CivitaiVersion | None:
        """Return the version that the API named for `source` a short while ago."""
        at, version = self._versions.get((source.locator, source.revision), (0.0, None))
        return version if time.monotonic() - at < MEMORY_S else None

    def version(self, source: ModelSource, attempts: int = ATTEMPTS) -> CivitaiVersion:
        """Return the version that `source` names, or the newest of its model.

        Raises ModelNotFound, AccessDenied, SourceUnavailable.
        """
        if remembered := self.remembered(source):
            return remembered
        model: Mapping[str, object] = {}
        number = source.revision
        if number is None:
            model = self.ask(f"models/{source.locator}", f"civitai:{source.locator}", attempts)
            number = str(newest_version(model, datetime.now(UTC)))
        version = read_version(self.ask(f"model-versions/{number}", f"civitai:@{number}", attempts), model)
        with self._guard:
            if len(self._versions) >= _MAX_LISTINGS:
                self._versions.clear()
            self._versions[source.locator, source.revision] = time.monotonic(), version
        return version

    def newest(self, source: ModelSource) -> tuple[int, int]:
        """Return the numbers of a model and of its newest version that is open to everybody, for the same base model.

        Raises as `version` does; ModelNotFound where the model has none any more.
        """
        version = self.version(source)
        model = self.ask(f"models/{version.model_id}", f"civitai:{version.model_id}")
        numbers = newest_versions(model, datetime.now(UTC), (version.base,) if version.base else ())
        if not numbers:
            raise ModelNotFound(f"civitai:{version.model_id} has no published version any more.", field="model")
        return version.model_id, numbers[0]

    def licence(self, source: ModelSource) -> str | None:
        """Return what the page of a model allows, in a few words. It is asked once: nothing depends on it."""
        number = source.locator or str(self.version(source, 1).model_id)
        return licence_in(self.ask(f"models/{number}", f"civitai:{number}", 1))

    def download(self, version: CivitaiVersion, file: CivitaiFile, name: str) -> RemoteFile:
        """Return `file` with its URL, by its number: links that describe a file by its properties may answer 404."""
        return RemoteFile(
            name, f"{self._endpoint}/api/download/models/{version.id}?fileId={file.id}", sha256=file.sha256
        )

    def refused(self, version: CivitaiVersion) -> Refused:
        """Return the function that turns a refused download into an error."""

        def refused(file: RemoteFile, status: int, headers: Mapping[str, str]) -> WorkerError:
            asks = status == 403 and not _is_challenge(status, headers)
            deadline = self._early_access_deadline(file.url) if asks else None
            if deadline is not None:
                end = deadline or version.early_access_until
                return AccessDenied(
                    f"{version.label} is in early access{f' until {end}' if end else ''}: buy access with the "
                    "account of CIVITAI_TOKEN, or use an older version.",
                    field="model",
                )
            return self._refusal(version, file, status, headers)

        return refused

    def ask(self, path: str, title: str, attempts: int = ATTEMPTS, limits: JsonLimits = USUAL) -> Mapping[str, object]:
        """Return the API's answer to `path`; in refusals it is called `title`. Raises as `version` does."""
        failure: WorkerError = _unavailable(title)
        for attempt in range(1, attempts + 1):
            wait = BACKOFF_S * attempt
            try:
                with self._client.get(f"{self._endpoint}/api/v1/{path}", timeout_s=_TIMEOUT_S) as response:
                    if response.status == 200:
                        value = parse_bounded(response.read_all(_MAX_JSON_BYTES), limits)
                        if isinstance(value, dict):
                            return value
                        raise ValueError("no JSON object")
                    failure = self._api_refusal(title, response.status, response.headers)
                    if response.status not in _BUSY:
                        raise failure
                    wait = _seconds(response.headers) or wait
            except RefusedUrl as error:
                raise SourceUnavailable(
                    f"CivitAI's answer is not taken: {error}; check CIVITAI_ENDPOINT.", field="model"
                ) from None
            except (OSError, ValueError):
                failure = _unavailable(title)
            if attempt < attempts:
                if wait > _MAX_WAIT_S:
                    break  # the caller learns how long it takes, instead of waiting for it
                time.sleep(wait)
        raise failure

    def _api_refusal(self, name: str, status: int, headers: Mapping[str, str]) -> WorkerError:
        if obstacle := _obstacle(name, status, headers):
            return obstacle
        if status in {401, 403}:
            if self._has_token:
                return AccessDenied(
                    f"CivitAI refuses this worker's token when asked for {name}; set CIVITAI_TOKEN to a valid API key.",
                    field="model",
                )
            return AccessDenied(f"CivitAI shows {name} to members only; set CIVITAI_TOKEN.", field="model")
        if status in {400, 404, 410}:
            return ModelNotFound(
                f"CivitAI has no {name}, or it was removed; check the number on the model's page.", field="model"
            )
        if status == 429:
            return SourceUnavailable(
                f"CivitAI takes no more requests from this worker for now; send the job again {_later(headers)}.",
                field="model",
            )
        return _unavailable(name)

    def _refusal(
        self, version: CivitaiVersion, file: RemoteFile, status: int, headers: Mapping[str, str]
    ) -> WorkerError:
        label = f"{file.name} of {version.label}"
        if obstacle := _obstacle(label, status, headers):
            return obstacle
        if status in {200, 401} and not self._has_token:  # 200 is the login page
            return AccessDenied(f"CivitAI gives {label} to members only; set CIVITAI_TOKEN.", field="model")
        if status in {200, 401}:
            return AccessDenied(
                f"CivitAI refuses {label} to this worker's token, or its creator disabled downloads; set CIVITAI_TOKEN "
                "to a valid API key of a member who may download it.",
                field="model",
            )
        if status == 403:
            return AccessDenied(
                f"CivitAI blocks the download of {label} for this account; use another model.",
                field="model",
            )
        if status == 404:
            return ModelNotFound(f"{label} is no longer on CivitAI; use another file or version.", field="model")
        if status == 410:
            return ModelNotFound(
                f"{version.label} was archived by its creator and cannot be downloaded; use another model.",
                field="model",
            )
        if status == 429:
            return SourceUnavailable(
                "CivitAI's download limit of this account or address is used up; send the job again "
                f"{_later(headers)}.",
                field="model",
            )
        if status == 400:
            return ModelNotFound(f"CivitAI cannot deliver {label}; name another file or version.", field="model")
        return _unavailable(label)

    def _early_access_deadline(self, url: str) -> str | None:
        """Return the end of early access that a refusal names: "" without a time, None for another refusal."""
        with contextlib.suppress(OSError, ValueError), self._client.get(url, end=1) as response:
            value = parse_bounded(response.read_all(_MAX_REFUSAL_BYTES))
            if isinstance(value, dict) and str(value.get("error", "")).lower().startswith("early access"):
                deadline = value.get("deadline")
                return deadline[:40] if isinstance(deadline, str) and deadline.isprintable() else ""
        return None


def _obstacle(name: str, status: int, headers: Mapping[str, str]) -> WorkerError | None:
    """Return the error for what stands between this worker and the site, whichever file it asks for; None otherwise."""
    if status == 451:
        return AccessDenied(
            f"CivitAI does not serve {name} in this worker's region, for legal reasons; run the worker in another "
            "region, or put the file on the volume and use file:/path.",
            field="model",
        )
    if _is_challenge(status, headers):
        return SourceUnavailable(
            f"CivitAI's protection against robots answers in place of {name}: it does not trust this worker's address; "
            "send the job again later, or put the file on the volume and use file:/path.",
            field="model",
        )
    return None


def _is_challenge(status: int, headers: Mapping[str, str]) -> bool:
    """True for a page that wants a browser to prove itself. CivitAI itself refuses in JSON."""
    is_page = headers.get("content-type", "").startswith("text/html")
    return headers.get("cf-mitigated") == "challenge" or (status == 403 and is_page)


def _seconds(headers: Mapping[str, str]) -> float | None:
    seconds = headers.get("retry-after", "")
    return float(seconds) if seconds.isdecimal() and len(seconds) < 8 else None


def _later(headers: Mapping[str, str]) -> str:
    seconds = _seconds(headers)
    return f"in {seconds:.0f} s" if seconds else "later"


def _unavailable(title: str) -> SourceUnavailable:
    return SourceUnavailable(f"CivitAI did not deliver {title}; send the job again in a minute.", field="model")

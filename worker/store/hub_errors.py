"""The Hub client's exceptions as ours, in one place, with retries for failures that pass by themselves."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from worker.core.errors import (
    AccessDenied,
    CorruptFile,
    InvalidRequest,
    ModelNotFound,
    SourceUnavailable,
    WorkerError,
)
from worker.core.model import ModelSource
from worker.store.transfer import Refused, RemoteFile

ATTEMPTS = 3
BACKOFF_S = 0.5
MAX_WAIT_S = 10.0
T = TypeVar("T")


def with_retries(call: Callable[[], T], attempts: int = ATTEMPTS) -> T:
    """Run `call`, and again after a broken connection or a busy server: huggingface_hub itself retries neither."""
    import httpx2
    from huggingface_hub import errors as hub

    for attempt in range(1, attempts + 1):
        wait = BACKOFF_S * attempt
        try:
            return call()
        except hub.HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if attempt == attempts or not (status == 429 or status >= 500):
                raise
            retry_after = error.response.headers.get("Retry-After", "")
            wait = min(float(retry_after), MAX_WAIT_S) if retry_after.isdecimal() else wait
        except RecursionError:
            raise
        except (httpx2.TransportError, RuntimeError):
            # RuntimeError: all questions share one client, and a thread that cannot connect closes it for the others.
            if attempt == attempts:
                raise
        time.sleep(wait)
    raise AssertionError("unreachable")


@contextmanager
def hub_errors(source: ModelSource) -> Iterator[None]:
    """Turn the Hub client's exceptions into one sentence about `source`; no URL, path or token gets through."""
    import httpx2
    from huggingface_hub import errors as hub

    repo = source.locator
    try:
        yield
    except (WorkerError, RecursionError):  # the latter is a RuntimeError, and the fault of the file that was read
        raise
    except hub.GatedRepoError:
        raise _gated(repo) from None
    except hub.RevisionNotFoundError:
        raise ModelNotFound(f"{repo} has no revision {source.revision!r}.", field="model") from None
    except hub.DisabledRepoError:
        raise ModelNotFound(f"{repo} was disabled by the Hub; use another model.", field="model") from None
    except hub.RepositoryNotFoundError:
        raise ModelNotFound(
            f"{repo} does not exist on the Hub, or is private; check the spelling, or set HF_TOKEN.", field="model"
        ) from None
    except hub.HFValidationError:
        raise InvalidRequest(f"{repo[:80]!r} is no repository id; write org/repo.", field="model") from None
    except hub.LocalEntryNotFoundError:  # the client's word for a Hub that does not answer
        raise _unavailable(repo) from None
    except hub.EntryNotFoundError:
        raise ModelNotFound(f"{repo} lacks a file at this revision.", field="model") from None
    except hub.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in {401, 403}:
            raise _token_refused(repo) from None
        raise _unavailable(repo) from None
    except (httpx2.TransportError, hub.RevisionResolutionError, RuntimeError):
        raise _unavailable(repo) from None
    except OSError:
        raise _unavailable(repo) from None


def refused_by_hub(source: ModelSource) -> Refused:
    """Return the function that turns a refused file of `source` into an error; a header of the Hub names the reason."""
    repo = source.locator

    def refused(file: RemoteFile, status: int, headers: Mapping[str, str]) -> WorkerError:
        reason = headers.get("x-error-code", "")
        if status == 200:
            return CorruptFile(
                f"{file.name} of {repo} is a web page and not the file; check HF_ENDPOINT, or send the job again.",
                field="model",
            )
        if reason == "GatedRepo":
            return _gated(repo)
        if status in {401, 403}:
            return _token_refused(repo)
        if status in {404, 410}:
            return ModelNotFound(f"{repo} lacks {file.name} at this revision.", field="model")
        return _unavailable(repo)

    return refused


def _gated(repo: str) -> AccessDenied:
    return AccessDenied(
        f"{repo} is gated: accept its licence on its Hugging Face page and set HF_TOKEN to that account's token.",
        field="model",
    )


def _token_refused(repo: str) -> AccessDenied:
    return AccessDenied(f"{repo} refuses this worker's token; set HF_TOKEN to one that may read it.", field="model")


def _unavailable(repo: str) -> SourceUnavailable:
    return SourceUnavailable(f"The Hub did not deliver {repo}; send the job again in a minute.", field="model")

"""The Hub client's exceptions as ours, in one place, with retries for what passes by itself."""

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from worker.core.errors import (
    AccessDenied,
    CorruptFile,
    DiskFull,
    InvalidRequest,
    ModelNotFound,
    SourceUnavailable,
    WorkerError,
)
from worker.core.model import ModelSource

ATTEMPTS = 3
BACKOFF_S = 0.5
MAX_WAIT_S = 10.0
T = TypeVar("T")


def with_retries(call: Callable[[], T], attempts: int = ATTEMPTS) -> T:
    """Run `call`, again after a broken connection or a busy server: huggingface_hub itself retries neither."""
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
            asked = error.response.headers.get("Retry-After", "")
            wait = min(float(asked), MAX_WAIT_S) if asked.isdecimal() else wait
        except RecursionError:
            raise
        except (httpx2.TransportError, hub.XetDownloadError, RuntimeError):
            # RuntimeError: all downloads share one client, and a thread that cannot connect closes it for the others.
            if attempt == attempts:
                raise
        time.sleep(wait)
    raise AssertionError("unreachable")


@contextmanager
def hub_errors(source: ModelSource) -> Iterator[None]:
    """Turn what the Hub client raises into one sentence about `source`; no URL, path or token gets through."""
    import httpx2
    from huggingface_hub import errors as hub

    repo = source.locator
    try:
        yield
    except (WorkerError, RecursionError):  # the latter is a RuntimeError, and the fault of what was read
        raise
    except hub.GatedRepoError:
        raise AccessDenied(
            f"{repo} is gated: accept its licence on its Hugging Face page and set HF_TOKEN to that account's token.",
            field="model",
        ) from None
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
    except (hub.SafetensorsParsingError, hub.NotASafetensorsRepoError):
        raise CorruptFile(f"{repo}: the file's safetensors header cannot be read.", field="model") from None
    except hub.LocalEntryNotFoundError:  # the client's word for a Hub that does not answer
        raise _unavailable(repo) from None
    except hub.EntryNotFoundError:
        raise ModelNotFound(f"{repo} lacks a file at this revision.", field="model") from None
    except hub.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in {401, 403}:
            raise AccessDenied(
                f"{repo} refuses this worker's token; set HF_TOKEN to one that may read it.", field="model"
            ) from None
        raise _unavailable(repo) from None
    except (httpx2.TransportError, hub.RevisionResolutionError, hub.XetDownloadError, RuntimeError):
        raise _unavailable(repo) from None
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DiskFull(f"The volume ran full while {repo} was fetched; use a larger one.", field="model") from None
        raise _unavailable(repo) from None


def _unavailable(repo: str) -> SourceUnavailable:
    return SourceUnavailable(f"The Hub did not deliver {repo}; send the job again in a minute.", field="model")

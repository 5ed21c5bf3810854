"""The Hub's refusals as our errors, in one place: a header of its answer names the reason."""

from collections.abc import Mapping

from worker.core.errors import AccessDenied, CorruptFile, ModelNotFound, SourceUnavailable, WorkerError
from worker.core.model import ModelSource
from worker.store.transfer import Refused, RemoteFile

_DISABLED = "Access to this resource is disabled."
_BAD_TOKEN = "Invalid credentials in Authorization header"  # noqa: S105  # the Hub's sentence


def listing_refused(source: ModelSource, status: int, headers: Mapping[str, str]) -> WorkerError:
    """Return the error for a repository that the Hub does not describe."""
    repo, reason, sentence = source.locator, headers.get("x-error-code", ""), headers.get("x-error-message", "")
    if reason == "GatedRepo":
        return _gated(repo)
    if reason == "RevisionNotFound":
        return ModelNotFound(f"{repo} has no revision {source.revision!r}.", field="model")
    if sentence == _DISABLED:
        return ModelNotFound(f"{repo} was disabled by the Hub; use another model.", field="model")
    # To a stranger a private repository does not exist, and one that does not exist is called private.
    if reason == "RepoNotFound" or status in {404, 410} or (status == 401 and sentence != _BAD_TOKEN):
        return ModelNotFound(
            f"{repo} does not exist on the Hub, or is private; check the spelling, or set HF_TOKEN.", field="model"
        )
    if status in {401, 403}:
        return _token_refused(repo)
    return unavailable(source)


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
        return unavailable(source)

    return refused


def _gated(repo: str) -> AccessDenied:
    return AccessDenied(
        f"{repo} is gated: accept its licence on its Hugging Face page and set HF_TOKEN to that account's token.",
        field="model",
    )


def _token_refused(repo: str) -> AccessDenied:
    return AccessDenied(f"{repo} refuses this worker's token; set HF_TOKEN to one that may read it.", field="model")


def unavailable(source: ModelSource) -> SourceUnavailable:
    """Return the error for a Hub that does not answer, or answers that it cannot."""
    return SourceUnavailable(
        f"The Hub did not deliver {source.locator}; send the job again in a minute.", field="model"
    )

"""A repository on the Hub that a command writes to: files of ours as one commit, in a new one or in its own."""

import re
from collections.abc import Mapping
from pathlib import Path

from worker.app.cli.terminal import Failure
from worker.app.settings import Settings

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_OF_THE_HUB = frozenset({".gitattributes"})


def check_repository(settings: Settings, repository: str) -> None:
    """Raise Failure if nothing can be written to a repository of this name. Nobody is asked."""
    if settings.hf_token is None:
        raise Failure("HF_TOKEN is not set, and the Hub asks who publishes; make a token that may write.")
    if settings.offline:
        raise Failure("OFFLINE is on: nothing can be published.")
    if not _REPOSITORY.fullmatch(repository):
        raise Failure(f"{repository[:128]!r} is no repository; name one as org/name.")


def commit(
    settings: Settings, repository: str, files: Mapping[str, bytes | Path], mark: str, message: str, *, private: bool
) -> str:
    """Make one commit of these files, by their paths there, in a new repository or in one that has the file `mark`.

    Returns the commit's address. Raises Failure.
    """
    from huggingface_hub import CommitOperationAdd, HfApi  # late: only these commands need it
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    token = settings.hf_token.get_secret_value() if settings.hf_token else None
    api = HfApi(endpoint=settings.hf_endpoint, token=token)
    try:
        try:
            there = set(api.list_repo_files(repository))
        except RepositoryNotFoundError:
            api.create_repo(repository, private=private)
            there = set()
        if there - _OF_THE_HUB and mark not in there:
            raise Failure(f"{repository} holds something else; name a new repository, or the one that has {mark}.")
        operations = [CommitOperationAdd(path, content) for path, content in files.items()]
        return str(api.create_commit(repository, operations, commit_message=message).commit_url)
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no answer"
        raise Failure(
            f"The Hub does not take it ({status}); check that HF_TOKEN may write to {repository.partition('/')[0]}."
        ) from None
    except OSError as error:
        raise Failure(f"The Hub cannot be reached ({type(error).__name__}); try again later.") from None

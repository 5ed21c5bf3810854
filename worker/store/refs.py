"""A caller's text to a ModelSource: `org/repo@rev#file`, `hf:…`, a Hugging Face URL, `file:/path`."""

import re
from urllib.parse import unquote, urlsplit

from worker.core.errors import InvalidRequest, UnsupportedModel
from worker.core.model import ModelSource

MAX_REFERENCE_CHARS = 512
MAX_REPO_CHARS = 96
# As the Hub has it: no name begins or ends with a dot or a dash.
_NAME = r"[A-Za-z0-9]([\w.-]*\w)?"
_REPO = re.compile(rf"{_NAME}/\w([\w.-]*\w)?", re.ASCII)
_REVISION = re.compile(r"\w[\w./+-]{0,127}", re.ASCII)
_NOT_MODELS = {"datasets", "spaces", "docs", "papers", "collections", "buckets"}
_FORMS = "org/repo, org/repo@revision, org/repo@revision#file.safetensors, a huggingface.co URL, or file:/path"


def parse_reference(text: str) -> ModelSource:
    """Read a reference. Raises InvalidRequest for what is none, UnsupportedModel for a source not served here."""
    text = text.strip()
    if not text or len(text) > MAX_REFERENCE_CHARS or not text.isprintable():
        raise _not_a_reference(text)
    lowered = text.lower()
    if lowered.startswith("file:"):
        return _file(text[5:].removeprefix("//"))
    if text.startswith("/"):
        return _file(text)
    if lowered.startswith(("http://", "https://")):
        return _url(text)
    if lowered.startswith(("civitai:", "urn:air:", "air:")):
        raise UnsupportedModel(
            f"model {text[:80]!r} is a CivitAI reference; this version loads from Hugging Face and local folders only: "
            "download the file to the volume and use file:/path.",
            field="model",
        )
    return _hub(text[3:].removeprefix("//") if lowered.startswith("hf:") else text)


def _hub(text: str) -> ModelSource:
    repo_and_revision, _, filename = text.partition("#")
    repo, _, revision = repo_and_revision.partition("@")
    hostile = ".." in repo or "--" in repo or repo.endswith(".git") or len(repo) > MAX_REPO_CHARS
    if hostile or not _REPO.fullmatch(repo):
        raise _not_a_reference(text)
    if revision and (not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision):
        raise _not_a_reference(text)
    return ModelSource(scheme="hf", locator=repo, revision=revision or None, filename=_filename(filename, text))


def _file(text: str) -> ModelSource:
    path, _, filename = text.partition("#")
    if not path:
        raise _not_a_reference(f"file:{text}")
    return ModelSource(scheme="file", locator=path, filename=_filename(filename, text))


def _url(text: str) -> ModelSource:
    try:
        parts = urlsplit(text)
    except ValueError:
        raise _not_a_reference(text) from None
    if parts.hostname not in {"huggingface.co", "www.huggingface.co", "hf.co"}:
        raise UnsupportedModel(
            f"model URLs are taken from huggingface.co only in this version, not from {parts.hostname or 'nowhere'!r}; "
            "download the file to the volume and use file:/path.",
            field="model",
        )
    segments = [unquote(part) for part in parts.path.split("/") if part]
    repo = "/".join(segments[:2])
    if segments and segments[0] in _NOT_MODELS:
        raise _not_a_reference(text)
    if len(segments) == 2:
        return _hub(repo)
    if len(segments) >= 4 and segments[2] in {"tree", "blob", "resolve"}:
        # A pull request's revision is the one that has slashes of its own.
        end = 6 if segments[3:5] == ["refs", "pr"] else 4
        revision, filename = "/".join(segments[3:end]), "/".join(segments[end:])
        return _hub(f"{repo}@{revision}" + (f"#{filename}" if filename else ""))
    raise _not_a_reference(text)


def _filename(filename: str, text: str) -> str | None:
    if not filename:
        return None
    if filename.startswith("/") or "\\" in filename or ".." in filename.split("/"):
        raise _not_a_reference(text)
    return filename


def _not_a_reference(text: str) -> InvalidRequest:
    return InvalidRequest(f"{text[:80]!r} is no model id and no reference; write {_FORMS}.", field="model")

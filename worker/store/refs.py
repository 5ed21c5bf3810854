"""A caller's text to a ModelSource, and nothing else: no request is made, no file looked at.

`org/repo@rev#file` · Hugging Face URLs · `civitai:MODEL@VERSION#file` · CivitAI URLs · AIR URNs · `https://host/file` ·
`file:/path`; each with an optional `sha256=` pin. For every source that comes out, `source.reference` reads back as the
same source.
"""

import re
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit, urlunsplit

from worker.core.errors import InvalidRequest, UnsupportedModel
from worker.core.model import ModelSource

MAX_REFERENCE_CHARS = 2_048  # signed links of object stores are long
MAX_REPO_CHARS = 96
MAX_CIVITAI_ID = 2**31 - 1
# As the Hub has it: no name begins or ends with a dot or a dash.
_NAME = r"[A-Za-z0-9]([\w.-]*\w)?"
_REPO = re.compile(rf"{_NAME}/\w([\w.-]*\w)?", re.ASCII)
_REVISION = re.compile(r"\w[\w./+-]{0,127}", re.ASCII)
_PIN = re.compile(r"[?&#]sha256=([^?&#]*)", re.IGNORECASE)
_SHA256 = re.compile(r"[0-9a-f]{64}")
# The extensions that tell a file from a folder: folders are called v1.5 and FLUX.1-dev, too.
_FILE = re.compile(
    r"\.(safetensors|sft|gguf|ckpt|pth?|bin|pkl|onnx|msgpack|h5|json|ya?ml|txt|md|py|zip)$", re.IGNORECASE
)
# A weight file below the name of a host: the Hub's owners have no dot in their names.
_BARE_LINK = re.compile(
    r"([a-z0-9-]+\.)+[a-z]{2,}(:\d+)?/[^?#]*\.(safetensors|sft|gguf|ckpt|pth?|bin)(\?|$)", re.IGNORECASE | re.ASCII
)
_SECRETS = frozenset({"token", "access_token", "api_key", "apikey", "api-key", "auth", "authorization", "password"})

_HUGGING_FACE = frozenset({"huggingface.co", "www.huggingface.co", "hf.co"})
_NOT_MODELS = frozenset({"datasets", "spaces", "docs", "papers", "collections", "buckets"})
_CIVITAI = re.compile(r"(www\.)?civitai\.(com|green|red)")
_ID = re.compile(r"[1-9][0-9]{0,9}")
_CIVITAI_IDS = re.compile(rf"(?P<model>{_ID.pattern})?(@(?P<version>{_ID.pattern}))?")
_CIVITAI_NAME = re.compile(r"[^/\\?\x00-\x1f]{1,255}")
_CHOICES = ("type", "format", "size", "fp", "quantType")  # the words of CivitAI's own download links
_CHOICE = re.compile(r"[\w .-]{1,32}", re.ASCII)
# urn:air:{ecosystem}:{type}:{source}:{id}[@{version}][+{fileId}][.{format}]
_AIR = re.compile(r"(urn:)?(air:)?[\w-]+:[\w-]+:(?P<source>[\w-]+):(?P<rest>[^:]+)", re.ASCII | re.IGNORECASE)
_AIR_CIVITAI = re.compile(rf"({_ID.pattern})(?:@({_ID.pattern}))?(?:\+({_ID.pattern}))?(?:\.(\w+))?", re.ASCII)
_AIR_FORMATS = {
    "safetensor": "SafeTensor",
    "safetensors": "SafeTensor",
    "gguf": "GGUF",
    "ckpt": "PickleTensor",
    "pt": "PickleTensor",
    "diffuser": "Diffusers",
    "diffusers": "Diffusers",
}
_FORMS = (
    "org/repo, org/repo@revision#file.safetensors, civitai:MODEL@VERSION, an air: URN, a huggingface.co or civitai.com "
    "page, https://host/file.safetensors, or file:/path"
)


def parse_reference(text: str) -> ModelSource:
    """Read a reference. Raises InvalidRequest if it is none, UnsupportedModel for a source not served here."""
    text = text.strip()
    if not text or len(text) > MAX_REFERENCE_CHARS or not text.isprintable():
        raise _not_a_reference(text)
    text, sha256 = _without_pin(text)
    source = _parse(text)
    return source.model_copy(update={"sha256": sha256}) if sha256 else source


def _parse(text: str) -> ModelSource:
    lowered = text.lower()
    host = lowered.partition("/")[0]
    if "/" in text and (host in _HUGGING_FACE or _CIVITAI.fullmatch(host)):
        return _url(f"https://{text}")
    if lowered.startswith("file:"):
        return _file(text[5:].removeprefix("//"))
    if text.startswith("/"):
        return _file(text)
    if lowered.startswith(("http://", "https://")):
        return _url(text)
    if lowered.startswith("civitai:"):
        return _civitai(text[8:].removeprefix("//"), text)
    if lowered.startswith("hf:"):
        return _hub(text[3:].removeprefix("//"))
    if _BARE_LINK.match(text):
        return _url(f"https://{text}")
    return _air(text) if _AIR.match(text) else _hub(text)


def _without_pin(text: str) -> tuple[str, str | None]:
    pins = list(_PIN.finditer(text))
    if not pins:
        return text, None
    sha256 = pins[0][1].lower()
    if len(pins) > 1 or not _SHA256.fullmatch(sha256):
        raise InvalidRequest("The model's sha256 must be one digest of 64 hexadecimal digits.", field="model")
    before, after = text[: pins[0].start()], text[pins[0].end() :]
    if after.startswith("&") and pins[0][0][0] != "&":
        after = pins[0][0][0] + after[1:]
    return (before + after).strip(), sha256


# Hugging Face and folders


def _hub(text: str) -> ModelSource:
    repo_and_revision, _, below = text.partition("#")
    repo, _, revision = repo_and_revision.partition("@")
    inside = repo.split("/", 2)
    if len(inside) == 3 and not below and _FILE.search(inside[2]):  # org/repo/file.safetensors
        repo, below = "/".join(inside[:2]), inside[2]
    hostile = ".." in repo or "--" in repo or repo.endswith(".git") or len(repo) > MAX_REPO_CHARS
    if hostile or not _REPO.fullmatch(repo):
        raise _not_a_reference(text)
    if revision and (not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision):
        raise _not_a_reference(text)
    return _with_below(ModelSource(scheme="hf", locator=repo, revision=revision or None), below, text)


def _file(text: str) -> ModelSource:
    path, _, below = text.partition("#")
    if not path:
        raise _not_a_reference(f"file:{text}")
    path = f"/{path.lstrip('/')}" if path.startswith("/") else path
    return _with_below(ModelSource(scheme="file", locator=path), below, text)


def _with_below(source: ModelSource, below: str, text: str) -> ModelSource:
    """Return `source` with the file or the folder that stands behind the `#`."""
    if not below:
        return source
    if _FILE.search(below):
        path, key = below, "filename"
    else:
        path, key = below.rstrip("/"), "subfolder"
    segments = path.split("/")
    hostile = not path.isprintable() or "\\" in path or "?" in path or _PIN.search(f"#{path}")
    if hostile or any(segment != segment.strip() or segment in {"", ".", ".."} for segment in segments):
        raise _not_a_reference(text)
    return source.model_copy(update={key: path})


def _hub_page(path: str, text: str) -> ModelSource:
    segments = [unquote(segment) for segment in path.split("/") if segment]
    repo, action, tail = "/".join(segments[:2]), segments[2:3], segments[3:]
    if segments[:1] and segments[0] in _NOT_MODELS:
        raise _not_a_reference(text)
    if len(segments) == 2:
        return _hub(repo)
    if tail and action[0] in {"tree", "blob", "resolve", "raw"}:
        # Only a pull request's revision has slashes of its own.
        end = 3 if tail[:2] == ["refs", "pr"] else 1
        revision, below = "/".join(tail[:end]), "/".join(tail[end:])
        if action[0] != "tree" and not _FILE.search(below):
            raise _not_a_reference(text)
        return _hub(f"{repo}@{revision}" + (f"#{below}" if below else ""))
    raise _not_a_reference(text)


# URLs


def _url(text: str) -> ModelSource:
    try:
        parts = urlsplit(text)
        port = parts.port
        # One spelling per host, so that a list of hosts holds: letters of other scripts have many.
        host = (parts.hostname or "").encode("idna").decode().rstrip(".")
    except ValueError:
        raise _not_a_reference(text) from None
    if not host or "\\" in text or " " in text:
        raise _not_a_reference(text)
    is_hub, is_civitai = host in _HUGGING_FACE, _CIVITAI.fullmatch(host) is not None
    _check_secrets(parts, "HF_TOKEN" if is_hub else "CIVITAI_TOKEN" if is_civitai else None)
    if is_hub:
        return _hub_page(parts.path, text)
    if is_civitai:
        return _civitai_page(parts.path, dict(parse_qsl(parts.query)), text)
    if not parts.path.strip("/"):
        raise _not_a_reference(text)
    netloc = (f"[{host}]" if ":" in host else host) + (f":{port}" if port is not None else "")
    return ModelSource(scheme="url", locator=urlunsplit((parts.scheme, netloc, parts.path, parts.query, "")))


def _check_secrets(parts: SplitResult, setting: str | None) -> None:
    """Refuse a link with a token; `setting` is the operator's variable for the token of its host."""
    names = {name.lower() for name, _ in parse_qsl(parts.query, keep_blank_values=True)}
    if parts.username is not None or names & _SECRETS:
        instead = f"the operator sets {setting} instead" if setting else "use a link that needs none"
        raise InvalidRequest(
            f"The model's link carries a token or a password, which would end up in logs: leave it out; {instead}.",
            field="model",
        )


# CivitAI


def _civitai(below_scheme: str, text: str) -> ModelSource:
    path, _, query = below_scheme.rpartition("?") if "?" in below_scheme else (below_scheme, "", "")
    ids, _, name = path.partition("#")
    match = _CIVITAI_IDS.fullmatch(ids)
    if match is None:
        raise _not_a_reference(text)
    return _civitai_source(match["model"], match["version"], name, dict(parse_qsl(query)), text)


def _civitai_page(path: str, query: dict[str, str], text: str) -> ModelSource:
    model = re.fullmatch(r"(?:/[a-z]{2})?(?:/api/v1)?/models/(\d+)(?:/.*)?", path)
    version = re.fullmatch(r"(?:/api/download/models|(?:/api/v1)?/model-versions)/(\d+)/?", path)
    if model:
        return _civitai_source(model[1], query.get("modelVersionId"), "", {}, text)
    if version:
        choice = {key: value for key, value in query.items() if key in _CHOICES}
        return _civitai_source(None, version[1], query.get("fileId", ""), choice, text)
    raise InvalidRequest(
        "The CivitAI link is not the page of a model or of a download; use civitai:MODEL@VERSION, with the numbers of "
        "the model's page.",
        field="model",
    )


def _civitai_source(
    model: str | None, version: str | None, name: str, choice: dict[str, str], text: str
) -> ModelSource:
    ids = [number for number in (model, version) if number]
    valid = ids and all(_ID.fullmatch(number) and int(number) <= MAX_CIVITAI_ID for number in ids)
    if not valid or (name and not _CIVITAI_NAME.fullmatch(name)):
        raise _not_a_reference(text)
    _check_choice(choice)
    return ModelSource(
        scheme="civitai",
        locator=model or "",
        revision=version,
        filename=name or None,
        choice="&".join(f"{key}={choice[key]}" for key in _CHOICES if key in choice) or None,
    )


def _check_choice(choice: dict[str, str]) -> None:
    """Refuse words that choose no file."""
    unknown = next((key for key, value in choice.items() if key not in _CHOICES or not _CHOICE.fullmatch(value)), None)
    if unknown is None:
        return
    if unknown.lower() in _SECRETS:
        raise InvalidRequest(
            "The model's reference carries a token, which would end up in logs: leave it out; the operator sets "
            "CIVITAI_TOKEN instead.",
            field="model",
        )
    raise InvalidRequest(
        f"{unknown[:40]!r} does not choose a file of CivitAI; use {', '.join(_CHOICES)}, each with one word.",
        field="model",
    )


def _air(text: str) -> ModelSource:
    match = _AIR.fullmatch(text)
    if match is None:
        raise _not_a_reference(text)
    source, address = match["source"].lower(), match["rest"]
    if source == "civitai" and (ids := _AIR_CIVITAI.fullmatch(address)):
        model, version, file, kind = ids.groups()
        # A file's number says more than its format.
        choice = {"format": _AIR_FORMATS.get(kind.lower(), kind)} if kind and not file else {}
        return _civitai_source(model, version, file or "", choice, text)
    if source == "huggingface":
        return _hub(address.replace("+", "#", 1))
    if source == "civitai":
        raise _not_a_reference(text)
    raise UnsupportedModel(
        f"The AIR names {source[:40]!r} as its source; models are taken from civitai and huggingface.", field="model"
    )


def _not_a_reference(text: str) -> InvalidRequest:
    public = re.sub(r"//[^/@]*@", "//", text.partition("?")[0])  # neither passwords nor tokens are repeated
    return InvalidRequest(f"{public[:80]!r} is no model id and no reference; write {_FORMS}.", field="model")

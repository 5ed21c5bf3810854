"""The parameters of an image as text inside its file: A1111's infotext, which most tools read, and JSON.

Never a token, an image or a query of a URL: files are passed on, and both could be secrets of the caller.
"""

import json
import re
from collections.abc import Mapping

from pydantic import JsonValue

from worker.core.result import Artifact, JobResult
from worker.media.images import Comment

# Fields of a request that hold images, at any depth, unless they are numbers; then fields that do not change the image.
_IMAGES = re.compile(r".*(image|images|video|mask|frames)")
_SAYS_NOTHING = frozenset({"output", "fallback", "timeout_s", "progress", "num_images"})
# A link with a user, a query or a fragment: only the rest of it is written.
_LINK = re.compile(r"(?P<scheme>https?://)(?:[^\s/?#@]*@)?(?P<place>[^\s?#\"']*)(?:[?#][^\s\"']*)?", re.IGNORECASE)
_REFERENCE_QUERY = re.compile(r"\?(?!sha256=[0-9a-fA-F]{64}$).*$")
_MAX_CHARS = 2_000  # of one value that is no prompt: longer texts are base64 or as good as
_PROMPTS = frozenset({"prompt", "negative_prompt"})
# A1111's names, for the parameters that it has too.
_NAMES: Mapping[str, str] = {
    "num_inference_steps": "Steps",
    "scheduler": "Sampler",
    "guidance_scale": "CFG scale",
    "true_cfg_scale": "CFG scale",
    "strength": "Denoising strength",
    "clip_skip": "Clip skip",
    "eta": "Eta",
}


def comment_on(result: JobResult, artifact: Artifact) -> Comment:
    """Return the comment for the file of `artifact`."""
    request = _public({**result.reproduce.input, "seed": artifact.seed})
    fields = request if isinstance(request, dict) else {}
    facts: dict[str, JsonValue] = {
        "input": fields,
        "model": _plain_reference(result.reproduce.model),
        "versions": dict(result.reproduce.versions),
    }
    return Comment(_infotext(result, artifact, fields), json.dumps(facts, ensure_ascii=True))


def _infotext(result: JobResult, artifact: Artifact, request: Mapping[str, JsonValue]) -> str:
    """Return the prompt, the negative prompt, and one line of `Key: value` pairs."""
    lines = [str(request.get("prompt", ""))]
    negative = request.get("negative_prompt")
    if negative:
        lines.append(f"Negative prompt: {negative}")
    pairs = {_NAMES[name]: result.parameters[name] for name in _NAMES if result.parameters.get(name) is not None}
    pairs["Seed"] = artifact.seed
    pairs["Size"] = f"{artifact.width}x{artifact.height}"
    pairs["Model"] = _plain_reference(result.model)
    if result.loras:
        hashes = ", ".join(
            f"{_plain_reference(lora.model)}: {lora.sha256[:12]}" for lora in result.loras if lora.sha256
        )
        pairs["Lora hashes"] = hashes
    pairs["Version"] = f"diffusers {result.reproduce.versions.get('diffusers', '')}".strip()
    lines.append(", ".join(f"{name}: {_quoted(str(value))}" for name, value in pairs.items()))
    return "\n".join(lines)


def _quoted(value: str) -> str:
    """Quote a value as A1111 does: in JSON's quotation marks if it has a comma, a colon or a line break."""
    return json.dumps(value, ensure_ascii=False) if re.search(r"[,:\n]", value) else value


def _public(value: JsonValue, name: str = "") -> JsonValue:
    if isinstance(value, dict):
        return {key: _public(item, key) for key, item in value.items() if not _is_left_out(key, item)}
    if isinstance(value, list):
        return [_public(item, name) for item in value]
    if not isinstance(value, str):
        return value
    if name in _PROMPTS:
        return _without_queries(value)
    return _plain_reference(value) if len(value) <= _MAX_CHARS else ""


def _is_left_out(name: str, value: JsonValue) -> bool:
    holds_images = _IMAGES.fullmatch(name) is not None and not isinstance(value, int | float)
    return holds_images or name in _SAYS_NOTHING


def _plain_reference(text: str) -> str:
    """Return a reference without its query, which may hold a token. A pinned digest stays."""
    return _REFERENCE_QUERY.sub("", _without_queries(text))


def _without_queries(text: str) -> str:
    return _LINK.sub(lambda match: match["scheme"] + match["place"], text)

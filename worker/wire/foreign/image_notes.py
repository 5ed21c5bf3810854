"""What an image's own texts say of its making: the prompt, and digests of the model and the LoRAs.

Read are A1111's infotext, which ComfyUI's savers, Forge and this worker write too, and this worker's JSON.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

_NEGATIVE = re.compile(r"^Negative prompt:", re.MULTILINE)
_PAIRS = re.compile(r"^Steps: \d", re.MULTILINE)
# `Model hash: 6ce0161689`, `Lora hashes: "lines: 1a2b3c4d5e6f, more: …"`, `Hashes: {"model": "…", "lora:lines": "…"}`
_HASHES = re.compile(r'\b(?:Model hash|VAE hash|TI hashes|Lora hashes|Hashes)"?:\s*("[^"\n]*"|\{[^}\n]*\}|[^,\n]*)')
_HASH = re.compile(r"\b[0-9a-fA-F]{10,64}\b")
MOST_HASHES = 8
_MOST_CHARS = 8_000


@dataclass(frozen=True, slots=True)
class Origin:
    """The prompt of an image, "" for none, and the digests that it names, each of 10 to 64 hexadecimal digits."""

    prompt: str
    hashes: tuple[str, ...]


def origin_of(texts: Mapping[str, str]) -> Origin:
    """Read the texts of an image's file by their names; what is not there is empty."""
    infotext = texts.get("parameters", "")
    hashes = [found for part in _HASHES.findall(infotext) for found in _HASH.findall(part)]
    end = min((match.start() for pattern in (_NEGATIVE, _PAIRS) if (match := pattern.search(infotext))), default=None)
    prompt = infotext[:end].strip() or _own_prompt(texts.get("generation", ""))
    return Origin(prompt[:_MOST_CHARS], tuple(dict.fromkeys(found.lower() for found in hashes))[:MOST_HASHES])


def _own_prompt(text: str) -> str:
    try:
        value = json.loads(text)["input"]["prompt"]
    except (ValueError, KeyError, TypeError):
        return ""
    return value if isinstance(value, str) else ""

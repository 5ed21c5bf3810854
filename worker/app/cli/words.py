"""The sentences of a refusal in a terminal's words: options in place of fields, commands in place of JSON."""

import re
from collections.abc import Mapping

from worker.wire.request import ALIASES

# The request's field -> what is typed for it.
OPTIONS: Mapping[str, str] = {
    "prompt": "PROMPT",
    "model": "--model",
    "negative_prompt": "--negative",
    "width": "--size",
    "height": "--size",
    "num_images": "--num-images",
    "seed": "--seed",
    "num_inference_steps": "--steps",
    "guidance_scale": "--guidance",
    "scheduler": "--scheduler",
    "output.format": "--format",
    "image": "--image",
    "images": "--image",
    "strength": "--strength",
    "mask_image": "--mask",
    "video": "--video",
    "control_image": "--control",
    "loras": "--lora",
    "controlnets": "--controlnet",
    "ip_adapters": "--ip-adapter",
}
_PHRASES = (
    (r'\{"action": "models"\} lists', "`{prog} models` lists"),
    (r'\{"action": "(schema|inspect|plan)"[^}]*\}', r"`{prog} \1`"),
    (r"send it as base64, data: URI or https URL", "name a file or an https URL"),
    (r"neither base64, a data: URI nor an https URL; send one of these", "no file and no https URL; name one"),
    (r"send the image as base64", "name a file"),
    (r"as base64, data: URI or https URL", "as a file or an https URL"),
    (r"[Ss]end (?:the job|it) again", "try again"),
    (r"\blet the operator ", ""),
    (r"\bthe operator has to ", ""),
    (r"\bthe operator (set|add)s\b", r"\1"),
    (r"\b(was|were) sent\b", r"\1 given"),
    (r"\bbe sent\b", "be given"),
    (r"\bis sent\b", "is given"),
    (r"\bsend\b", "give"),
    (r"\ba request may hold\b", "there may be"),
    (r"\bfield of this action\b", "field of this command"),
    (r"(?<!`)\bpython -m worker\b", "{prog}"),
)


def spoken(text: str, typed: Mapping[str, str], prog: str) -> str:
    """Return a refusal as one says it at a terminal. `typed` are the options that were used, by their fields."""
    for pattern, words in _PHRASES:
        text = re.sub(pattern, words.replace("{prog}", prog), text)
    names = {name: typed.get(name, option) for name, option in OPTIONS.items()}
    names |= {name: typed[name] for name in typed}
    first = re.match(r"[\w.]+", text)
    if first and first[0].partition("[")[0] in names:
        text = _begun(text, first[0], names[first[0]])
    # Elsewhere in a sentence, only words that are no English.
    for name in (*names, *ALIASES):
        if "_" in name or "." in name:
            option = names.get(ALIASES.get(name, name))
            text = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w=])", option, text) if option else text
    return text


def _begun(text: str, name: str, option: str) -> str:
    """Return a sentence about the field that it begins with, as one about the option."""
    rest = text[len(name) :]
    if name in ("width", "height") and option == "--size":  # which of the two, the option does not say
        return f"--size: {text}"
    entry = re.match(r"\[(\d+)\]", rest)
    if entry is None:
        return f"{option}{rest}"
    rest = rest[entry.end() :]
    return f"{option}{rest}" if entry[1] == "0" else f"{option} (number {int(entry[1]) + 1}){rest}"

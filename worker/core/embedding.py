"""The content of a textual inversion's file: the tensor for each text encoder, and the word that calls it up.

| layout | tensors |
|---|---|
| AUTOMATIC1111 | `string_to_param.*` (a pickle, converted), `emb_params` |
| diffusers | `<word>` |
| several encoders | `clip_l`, `clip_g`, `t5xxl` or `t5` |
"""

import re
from collections.abc import Mapping

# The encoder that a set of vectors is for; `*` is the only one of a model, or the one of the same width.
_PARTS = {"clip_l": "clip_l", "clip_g": "clip_g", "t5xxl": "t5", "t5": "t5", "emb_params": "*"}
_A1111 = "string_to_param."
_BESIDE = "string_to_token."  # the number of the trained token, which nobody needs
_FEW = 10
_NAMES = ("name", "ss_output_name")
_MAX_CHARS = 64


def embedding_parts(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Return the tensor with the vectors of each part: "*", "clip_l", "clip_g" or "t5"; {} for any other file."""
    if len(shapes) >= _FEW:
        return {}
    sets = {name: shape for name, shape in shapes.items() if not name.startswith(_BESIDE)}
    if any(len(shape) not in (1, 2) for shape in sets.values()):
        return {}
    parts = {_PARTS.get(name, "*"): name for name in sets}
    recognised = len(sets) == 1 or all(map(is_embedding_name, sets))
    return parts if recognised and len(parts) == len(sets) else {}


def is_embedding_name(name: str) -> bool:
    """True if only textual inversions have a tensor of this name."""
    return name in _PARTS or name.startswith(_A1111) or re.fullmatch(r"<.{1,62}>", name) is not None


def own_token(parts: Mapping[str, str], metadata: Mapping[str, str], file_name: str) -> str:
    """Return the word that calls the embedding up by default: the file's own, else the file's name."""
    name = parts.get("*", "")
    if re.fullmatch(r"<.{1,62}>", name):
        return name
    parameter = name.removeprefix(_A1111) if name.startswith(_A1111) else "*"
    title = next((metadata[key].strip() for key in _NAMES if metadata.get(key, "").strip()), "")
    return ((parameter if parameter != "*" else "") or title or file_name.rpartition(".")[0] or file_name)[:_MAX_CHARS]

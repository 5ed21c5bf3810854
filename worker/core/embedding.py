"""What a textual inversion's file holds: which tensor is for which text encoder, and the word that it is called.

| layout | tensors |
|---|---|
| AUTOMATIC1111 | `string_to_param.*` (a pickle, converted), `emb_params` |
| diffusers | `<word>` |
| several encoders | `clip_l`, `clip_g`, `t5xxl` or `t5` |
"""

import re
from collections.abc import Mapping

# Which encoder a set of vectors is for; `*` is that of a model with one, or whichever is as wide.
_PARTS = {"clip_l": "clip_l", "clip_g": "clip_g", "t5xxl": "t5", "t5": "t5", "emb_params": "*"}
_A1111 = "string_to_param."
_BESIDE = "string_to_token."  # the number of the token that was trained, which nothing needs
_FEW = 10
_NAMES = ("name", "ss_output_name")
_MAX_CHARS = 64


def embedding_parts(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Part ("*", "clip_l", "clip_g", "t5") -> the tensor with its vectors; {} for what is no textual inversion."""
    if len(shapes) >= _FEW:
        return {}
    sets = {name: shape for name, shape in shapes.items() if not name.startswith(_BESIDE)}
    if any(len(shape) not in (1, 2) for shape in sets.values()):
        return {}
    found = {_PARTS.get(name, "*"): name for name in sets}
    known = len(sets) == 1 or all(map(is_embedding_name, sets))
    return found if known and len(found) == len(sets) else {}


def is_embedding_name(name: str) -> bool:
    """Whether only textual inversions have a tensor of this name."""
    return name in _PARTS or name.startswith(_A1111) or re.fullmatch(r"<.{1,62}>", name) is not None


def own_token(parts: Mapping[str, str], metadata: Mapping[str, str], file_name: str) -> str:
    """The word that calls the embedding up when nobody names one: the file's own, else the file's name."""
    name = parts.get("*", "")
    if re.fullmatch(r"<.{1,62}>", name):
        return name
    inside = name.removeprefix(_A1111) if name.startswith(_A1111) else "*"
    said = next((metadata[key].strip() for key in _NAMES if metadata.get(key, "").strip()), "")
    return ((inside if inside != "*" else "") or said or file_name.rpartition(".")[0] or file_name)[:_MAX_CHARS]

"""The content of a textual inversion's file: the tensor for each text encoder, and the word that calls it up.

| layout | tensors |
|---|---|
| AUTOMATIC1111 | `string_to_param.*` (a pickle, converted), `emb_params` |
| diffusers | `<word>` |
| several encoders | `clip_l`, `clip_g`, `t5xxl` or `t5` |
| several words | `<word>` each; or `text_encoders_0`, `text_encoders_1`, whose rows are `<s0>`, `<s1>` … |
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

# The encoder that a set of vectors is for; `*` is the only one of a model, or the one of the same width.
_PARTS = {"clip_l": "clip_l", "clip_g": "clip_g", "t5xxl": "t5", "t5": "t5", "emb_params": "*"}
# Of a pivotal tuning, as diffusers' advanced scripts save it: each row is a word.
_PIVOTAL = {"text_encoders_0": "clip_l", "text_encoders_1": "clip_g"}
_PARTS |= _PIVOTAL
_WORD = re.compile(r"<.{1,62}>")
_MOST_WORDS = 100
_A1111 = "string_to_param."
_BESIDE = "string_to_token."  # the number of the trained token, which nobody needs
_FEW = 10
_NAMES = ("name", "ss_output_name")
_MAX_CHARS = 64


@dataclass(frozen=True, slots=True)
class Rows:
    """The vectors of a word for one encoder: a tensor, or one row of it."""

    tensor: str
    row: int | None = None


def own_words(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, dict[str, Rows]]:
    """Return the words of a file that names several, with the vectors of each by part; {} for any other file."""
    if any(len(shape) not in (1, 2) for shape in shapes.values()):
        return {}
    if 1 < len(shapes) <= _MOST_WORDS and all(map(_WORD.fullmatch, shapes)):
        return {name: {"*": Rows(name)} for name in shapes}
    counts = {shape[0] if len(shape) == 2 else 0 for shape in shapes.values()}
    if not shapes or not shapes.keys() <= _PIVOTAL.keys() or len(counts) > 1 or not 0 < max(counts) <= _MOST_WORDS:
        return {}
    return {f"<s{row}>": {_PIVOTAL[name]: Rows(name, row) for name in shapes} for row in range(max(counts))}


def embedding_tensors(shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[str, str]]:
    """Return each tensor with vectors, after its part: "*", "clip_l", "clip_g" or "t5"; [] for any other file."""
    words = own_words(shapes).values()
    several = dict.fromkeys((part, rows.tensor) for word in words for part, rows in word.items())
    return list(several) or [*embedding_parts(shapes).items()]


def embedding_parts(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Return the tensor with the vectors of each part of a file's one word; {} for any other file."""
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
    return name in _PARTS or name.startswith(_A1111) or _WORD.fullmatch(name) is not None


def own_token(parts: Mapping[str, str], metadata: Mapping[str, str], file_name: str) -> str:
    """Return the word that calls the embedding up by default: the file's own, else the file's name."""
    name = parts.get("*", "")
    if name and name not in _PARTS and not name.startswith(_A1111):
        return name[:_MAX_CHARS]  # as diffusers saves and reads it: the tensor is called as the word
    parameter = name.removeprefix(_A1111) if name.startswith(_A1111) else "*"
    title = next((metadata[key].strip() for key in _NAMES if metadata.get(key, "").strip()), "")
    return ((parameter if parameter != "*" else "") or title or file_name.rpartition(".")[0] or file_name)[:_MAX_CHARS]

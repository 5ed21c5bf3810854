"""The places of a pipeline's parts in one weight file: one table for what a header holds and for what is loaded."""

import re
from collections.abc import Iterable, Mapping
from typing import Literal, TypeVar

from worker.core.wrappers import AROUND_ANY, AVERAGED, PARALLEL, PLACES, WEIGHTS

EncoderKind = Literal["clip", "t5", "llm"]
T = TypeVar("T")

# What training code leaves before every name: a model's wrappers, and the place in what was saved.
_WRAPPERS = tuple(f"{wrapper}." for wrapper in (PARALLEL, *AROUND_ANY, *PLACES))
_AVERAGED, _WEIGHTS = f"{AVERAGED}.", f"{WEIGHTS}."
# Tensors by which a ControlNet's file says how the others are meant.
DIFFERENCE, LORA_CONTROLNET = "difference", "lora_controlnet"
MARKERS = frozenset({DIFFERENCE, LORA_CONTROLNET})
VAE_PREFIXES = ("first_stage_model.", "vae.")
# The start of a text encoder's names: LDM's, Stability's, ComfyUI's (one name for each encoder), diffusers', trainers'.
_ENCODER = re.compile(
    r"cond_stage_model\.|conditioner\.embedders\.\d+\.|text_encoders\.[^.]+\.|text_encoder(?:_\d)?\.|te\d?\."
)
# The names within a text encoder that show its kind, whatever they stand under.
_KINDS: tuple[tuple[EncoderKind, re.Pattern[str]], ...] = (
    ("t5", re.compile(r"(?:^|\.)block\.\d+\.layer\.0\.SelfAttention\.q\.weight$|(?:^|\.)shared\.weight$")),
    ("clip", re.compile(r"(?:^|\.)resblocks\.\d+\.|(?:^|\.)encoder\.layers\.\d+\.self_attn\.")),
    ("llm", re.compile(r"(?:^|\.)layers\.\d+\.self_attn\.q_proj\.weight$")),
)
# In a file's own order of one kind; CLIP L comes before CLIP G in every pipeline.
_FIRST = ("text_encoders.clip_l.",)


def text_encoders(names: Iterable[str]) -> Mapping[str, EncoderKind]:
    """Return the starts of the names of each text encoder in a file, in the order of a pipeline, with its kind.

    Encoders of a kind that nothing reads are left out, and so is what is no encoder: a scale, a tokenizer's bytes.
    """
    kinds: dict[str, EncoderKind] = {}
    for name in names:
        match = _ENCODER.match(name)
        if match is None or match[0] in kinds:
            continue
        rest = name[match.end() :]
        kind = next((kind for kind, pattern in _KINDS if pattern.search(rest)), None)
        if kind is not None:
            kinds[match[0]] = kind
    return {start: kinds[start] for start in sorted(kinds, key=lambda start: (start not in _FIRST, start))}


def encoder_kind(class_name: str) -> EncoderKind:
    """Return the kind of text encoder that a class of transformers reads."""
    if class_name.startswith("CLIPText"):
        return "clip"
    return "t5" if "T5Encoder" in class_name else "llm"


def unwrapped(tensors: Mapping[str, T]) -> dict[str, T]:
    """Return `tensors` without what training code left before every name; a marker has nothing there.

    Of weights saved beside their moving average, as BasicSR does, the average is kept: it is what is published.
    """
    kept = dict(tensors)
    both = _AVERAGED, _WEIGHTS
    if all(name.startswith(both) for name in _paths(kept)) and any(name.startswith(_AVERAGED) for name in kept):
        kept = {name: tensor for name, tensor in kept.items() if not name.startswith(_WEIGHTS)}
    while paths := _paths(kept):
        prefix = next((prefix for prefix in _WRAPPERS if all(name.startswith(prefix) for name in paths)), None)
        if prefix is None:
            break
        kept = {name.removeprefix(prefix): tensor for name, tensor in kept.items()}
    return kept


def _paths(names: Iterable[str]) -> list[str]:
    """Return the names that a module gave its tensors; a marker is added to the file beside them."""
    return [name for name in names if name not in MARKERS]

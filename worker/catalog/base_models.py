"""Names that pages and trainers give a base model, read as an architecture and a variant of it.

There are three vocabularies: CivitAI's `baseModel` (a closed list of 99 names, 2026-08), the Hub's `base_model` ids,
and the words that trainers write into a file (`ss_base_model_version`, `modelspec.architecture`). A family's names
stand in its row. An unknown name is None, never an error: CivitAI's list grows every month. `declarations.py` tells
how far each vocabulary is trusted.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from worker.catalog.architectures import ARCHITECTURES
from worker.core.model import Kind


@dataclass(frozen=True, slots=True)
class Base:
    """The meaning of a declared base. `refused` is the reason why nothing here can run it, as the end of a sentence."""

    architecture: str | None = None
    variant: str | None = None
    prediction_type: str | None = None
    refused: str | None = None


_HOSTED = "is run by its owner only: its weights are not published"
_MODULAR = "is read from its modular repository only, not from single files"
_AUDIO = "makes audio, which this worker does not do"
_SOLID = "makes 3D objects, which this worker does not do"
ABSENT = "is in no released version of diffusers"

# CivitAI's names for models of no family here: the reason for the refusal; None where nothing is known of one.
_OTHERS: Mapping[str, str | None] = {
    **dict.fromkeys(("Anima", "Flux 3 Video", "MiniMax H3"), _MODULAR),
    **dict.fromkeys((
        "Grok", "Imagen4", "MAI", "Nano Banana", "OpenAI", "Reve", "Seedream", "Sora 2", "Veo 3", "Wan Video 2.5 T2V",
        "Wan Video 2.5 I2V", "Wan Image 2.7", "Wan Video 2.7", "Vidu Q1", "Kling", "Seedance",
    ), _HOSTED),
    **dict.fromkeys((
        "HappyHorse", "ODOR", "Upscaler", "Other", "Qwen 3", "SD 2.1 Unclip",
    ), None),
    **dict.fromkeys(("Boogu", "HiDream-O1", "Lens", "MageFlow"), ABSENT),
    "ACE Audio": _AUDIO,
    **dict.fromkeys(("PolyGen", "Tripo", "Hunyuan3D"), _SOLID),
}  # fmt: skip
CIVITAI_BASES: Mapping[str, Base] = {
    name.text: Base(row.id, name.variant, name.prediction_type) for row in ARCHITECTURES for name in row.civitai
} | {name: Base(refused=reason) for name, reason in _OTHERS.items()}

HOSTED_ONLY = frozenset(name for name, base in CIVITAI_BASES.items() if base.refused == _HOSTED)

# CivitAI's model types that are a kind of file; the others (Workflows, Poses, Wildcards …) hold no weights.
CIVITAI_KINDS: Mapping[str, Kind] = {
    "Checkpoint": Kind.CHECKPOINT, "TextualInversion": Kind.TEXTUAL_INVERSION, "Hypernetwork": Kind.HYPERNETWORK,
    "LORA": Kind.LORA, "LoCon": Kind.LORA, "DoRA": Kind.LORA, "Controlnet": Kind.CONTROLNET,
    "Upscaler": Kind.UPSCALER, "MotionModule": Kind.MOTION_MODULE, "VAE": Kind.VAE, "TextEncoder": Kind.TEXT_ENCODER,
    "UNet": Kind.DENOISER, "CLIPVision": Kind.IMAGE_ENCODER, "CLIP": Kind.TEXT_ENCODER, "LLM": Kind.TEXT_ENCODER,
    "VisionLanguage": Kind.TEXT_ENCODER,
}  # fmt: skip

# Names of refused models, as the Hub's ids and trainers write them: patterns, like those of the families.
_REFUSED_NAMES = (
    ("flux.?3", _MODULAR),
    ("hidream.?o1", ABSENT),
    ("omnigen.?2", ABSENT),
    ("boogu(?![a-z])", ABSENT),
    ("mage.?flow(?![a-z])", ABSENT),
    ("(?:(?<=/)lens|lens.?(?:turbo|base))$", ABSENT),  # a whole name only: photographers write of lenses too
    ("anima(?![a-z])", _MODULAR),
)


def _names() -> Iterator[tuple[str, Base]]:
    """Yield the patterns in the order in which they are tried: the most special first."""
    for pattern, reason in _REFUSED_NAMES:
        yield pattern, Base(refused=reason)
    names = [(name, row) for row in ARCHITECTURES for name in row.names]
    for name, row in sorted(names, key=lambda named: named[0].general):
        yield name.text, Base(row.id, name.variant, name.prediction_type)


_NAMES = tuple((re.compile(rf"(?<![a-z0-9]){pattern}"), base) for pattern, base in _names())
# Words for variants of the same shapes, each standing alone in a title or a tag.
_VARIANTS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(rf"(?<![a-z]){word}(?![a-z])"), variant)
    for word, variant in (
        ("lightning", "lightning"), ("turbo", "turbo"), ("hyper(?:.?sd(?:xl)?)?", "hyper"), ("lcm", "lcm"),
        ("dmd.?2?", "lcm"), ("pony", "pony"), ("illustrious", "illustrious"), ("noob(?:ai)?(?:xl)?", "noobai"),
        ("krea", "krea"),
    )
)  # fmt: skip
_V_WORDS = re.compile(r"(?<![a-z])v.?pred(?:iction)?(?![a-z])")
_CIVITAI_LOW = {name.lower(): base for name, base in CIVITAI_BASES.items()}


def known_base(text: str) -> Base | None:
    """Return the meaning of a declared base: CivitAI's exact name first, then the words of ids and trainers."""
    lowered = text.strip().lower()[:200]
    exact = _CIVITAI_LOW.get(lowered)
    if exact is not None:
        return exact
    return next((base for pattern, base in _NAMES if pattern.search(lowered)), None)


def declared_base(text: str) -> str | None:
    """Return the architecture id of a declared base (`sdxl_base_v1-0`, `stable-diffusion-v1/lora`), or None."""
    base = known_base(text)
    return base.architecture if base else None


def variant_in(text: str) -> str | None:
    """Return the variant that a title or tag names, or None."""
    lowered = text.lower()[:200]
    return next((variant for pattern, variant in _VARIANTS if pattern.search(lowered)), None)


def says_v_prediction(text: str) -> bool:
    """True if a title or tag names v-prediction, as NoobAI's and its merges' do."""
    return _V_WORDS.search(text.lower()[:200]) is not None

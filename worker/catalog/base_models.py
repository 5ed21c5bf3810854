"""What pages and trainers call a base model, as an architecture and a variant of it.

Three vocabularies: CivitAI's `baseModel` (a closed list of 99 names, 2026-08), the Hub's `base_model` ids, and what
trainers write into a file (`ss_base_model_version`, `modelspec.architecture`). A name that nobody here knows is None,
never an error; the first grows every month. How far each is trusted is said in `trust.py`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from worker.core.model import Kind


@dataclass(frozen=True, slots=True)
class Base:
    """What a declared base means. `refused` says why nothing here can run it, as the end of a sentence."""

    architecture: str | None = None
    variant: str | None = None
    prediction_type: str | None = None
    refused: str | None = None


_V = "v_prediction"
_HOSTED = "is run by its owner only: its weights are not published"
_MODULAR = "exists in diffusers only as a modular pipeline, which this version cannot load"
_AUDIO = "makes audio, which this worker does not do"
_SOLID = "makes 3D objects, which this worker does not do"
_ABSENT = "is in no released version of diffusers"

CIVITAI_BASES: Mapping[str, Base] = {
    "Anima": Base(refused=_MODULAR), "AuraFlow": Base("auraflow"), "Chroma": Base("chroma"),
    "CogVideoX": Base("cogvideox"), "Ernie": Base("ernie-image"), "Flux.1 S": Base("flux1-schnell"),
    "Flux.1 D": Base("flux1"), "Flux.1 Krea": Base("flux1", "krea"), "Flux.1 Kontext": Base("flux1-kontext"),
    "Flux.2 D": Base("flux2"), "Flux.2 Klein 9B": Base("flux2-klein"), "Flux.2 Klein 4B": Base("flux2-klein"),
    "Flux.2 Klein 9B-base": Base("flux2-klein", "base"), "Flux.2 Klein 4B-base": Base("flux2-klein", "base"),
    "Flux 3 Video": Base(refused=_MODULAR), "Grok": Base(refused=_HOSTED), "HappyHorse": Base(),
    "HiDream": Base("hidream"), "HiDream-O1": Base(refused=_ABSENT), "Hunyuan 1": Base("hunyuan-dit"),
    "Hunyuan Video": Base("hunyuan-video"), "Ideogram 4.0": Base("ideogram4"), "Boogu": Base(),
    "Illustrious": Base("sdxl", "illustrious"), "Imagen4": Base(refused=_HOSTED), "Kolors": Base("kolors"),
    "Krea 2": Base("krea2"), "LTXV": Base("ltx"), "LTXV2": Base("ltx2"), "LTXV 2.3": Base("ltx2"), "Lens": Base(),
    "Lumina": Base("lumina2"), "MageFlow": Base(), "MAI": Base(refused=_HOSTED), "Mochi": Base("mochi"),
    "Nano Banana": Base(refused=_HOSTED), "NoobAI": Base("sdxl", "noobai"), "ODOR": Base(),
    "OpenAI": Base(refused=_HOSTED), "Upscaler": Base(), "Other": Base(), "PixArt a": Base("pixart-alpha"),
    "PixArt E": Base("pixart-sigma"), "Playground v2": Base("sdxl", "playground"), "Pony": Base("sdxl", "pony"),
    "Pony V7": Base("auraflow", "pony"), "Qwen": Base("qwen-image"), "Qwen 2": Base("qwen-image-2.1"),
    "Qwen 3": Base(), "Stable Cascade": Base("stable-cascade"), "SD 1.4": Base("sd1"), "SD 1.5": Base("sd1"),
    "SD 1.5 LCM": Base("sd1", "lcm"), "SD 1.5 Hyper": Base("sd1", "hyper"), "SD 2.0": Base("sd2", None, "epsilon"),
    "SD 2.0 768": Base("sd2", None, _V), "SD 2.1": Base("sd2"), "SD 2.1 768": Base("sd2", None, _V),
    "SD 2.1 Unclip": Base(), "SD 3": Base("sd3"), "SD 3.5": Base("sd3"), "SD 3.5 Large": Base("sd3"),
    "SD 3.5 Large Turbo": Base("sd3", "turbo"), "SD 3.5 Medium": Base("sd3"), "SDXL 0.9": Base("sdxl"),
    "SDXL 1.0": Base("sdxl"), "SDXL 1.0 LCM": Base("sdxl", "lcm"), "SDXL Lightning": Base("sdxl", "lightning"),
    "SDXL Hyper": Base("sdxl", "hyper"), "SDXL Turbo": Base("sdxl", "turbo"), "SDXL Distilled": Base("sdxl"),
    "Reve": Base(refused=_HOSTED), "Seedream": Base(refused=_HOSTED), "SVD": Base("svd"), "SVD XT": Base("svd"),
    "Sora 2": Base(refused=_HOSTED), "Veo 3": Base(refused=_HOSTED), "Wan Video": Base("wan"),
    "Wan Video 1.3B t2v": Base("wan"), "Wan Video 14B t2v": Base("wan"), "Wan Video 14B i2v 480p": Base("wan-i2v"),
    "Wan Video 14B i2v 720p": Base("wan-i2v"), "Wan Video 2.2 TI2V-5B": Base("wan"),
    "Wan Video 2.2 I2V-A14B": Base("wan-i2v", "2.2"), "Wan Video 2.2 T2V-A14B": Base("wan", "2.2"),
    "Wan Video 2.5 T2V": Base(refused=_HOSTED), "Wan Video 2.5 I2V": Base(refused=_HOSTED),
    "Wan Image 2.7": Base(refused=_HOSTED), "Wan Video 2.7": Base(refused=_HOSTED),
    "ZImageTurbo": Base("z-image", "turbo"), "ZImageBase": Base("z-image", "base"), "Vidu Q1": Base(refused=_HOSTED),
    "MiniMax H3": Base(refused=_MODULAR), "Kling": Base(refused=_HOSTED), "Seedance": Base(refused=_HOSTED),
    "ACE Audio": Base(refused=_AUDIO), "PolyGen": Base(refused=_SOLID), "Tripo": Base(refused=_SOLID),
    "Hunyuan3D": Base(refused=_SOLID),
}  # fmt: skip

HOSTED_ONLY = frozenset(name for name, base in CIVITAI_BASES.items() if base.refused == _HOSTED)

# CivitAI's model types that are a kind of file; the others (Workflows, Poses, Wildcards …) hold no weights.
CIVITAI_KINDS: Mapping[str, Kind] = {
    "Checkpoint": Kind.CHECKPOINT, "TextualInversion": Kind.TEXTUAL_INVERSION, "Hypernetwork": Kind.HYPERNETWORK,
    "LORA": Kind.LORA, "LoCon": Kind.LORA, "DoRA": Kind.LORA, "Controlnet": Kind.CONTROLNET,
    "Upscaler": Kind.UPSCALER, "MotionModule": Kind.MOTION_MODULE, "VAE": Kind.VAE, "TextEncoder": Kind.TEXT_ENCODER,
    "UNet": Kind.DENOISER, "CLIPVision": Kind.IMAGE_ENCODER, "CLIP": Kind.TEXT_ENCODER, "LLM": Kind.TEXT_ENCODER,
    "VisionLanguage": Kind.TEXT_ENCODER,
}  # fmt: skip

# Words of ids and trainers, the most special first. `.?` stands for the separators that people use: nothing . - _ space
_WORDS: tuple[tuple[re.Pattern[str], Base], ...] = tuple(
    (re.compile(rf"(?<![a-z0-9]){pattern}"), base)
    for pattern, base in (
        (r"flux.?[13]?.?(?:\w+.)?kontext|kontext", Base("flux1-kontext")),
        (r"flux.?3", Base(refused=_MODULAR)),
        (r"flux.?2.*klein.*base", Base("flux2-klein", "base")),
        (r"flux.?2.*klein", Base("flux2-klein")),
        (r"flux.?2", Base("flux2")),
        (r"flux.*fill", Base("flux1-fill")),
        (r"flux.*(?:depth|canny)", Base("flux1-control")),
        (r"flux.*schnell", Base("flux1-schnell")),
        (r"flux.*krea", Base("flux1", "krea")),
        (r"krea.?2.*turbo", Base("krea2", "turbo")),
        (r"krea.?2", Base("krea2")),
        (r"flux", Base("flux1")),
        (r"chroma", Base("chroma")),
        (r"qwen.?image.?layered", Base("qwen-image-layered")),
        (r"qwen.?image.?edit.?(?:25|plus)", Base("qwen-image-edit-plus")),
        (r"qwen.?image.?edit", Base("qwen-image-edit")),
        (r"qwen.?image.?2", Base("qwen-image-2.1")),
        (r"qwen.?image", Base("qwen-image")),
        (r"z.?image.*turbo", Base("z-image", "turbo")),
        (r"z.?image", Base("z-image")),
        (r"pony.?(?:diffusion.?)?v7", Base("auraflow", "pony")),
        (r"pony", Base("sdxl", "pony")),
        (r"illustrious", Base("sdxl", "illustrious")),
        (r"noob", Base("sdxl", "noobai")),
        (r"playground.?v?2", Base("sdxl", "playground")),
        (r"(?:stable.?diffusion.?xl|sd.?xl).*refiner", Base("sdxl-refiner")),
        (r"ssd.?1b", Base("ssd-1b")),
        (r"segmind.?vega", Base("segmind-vega")),
        (r"(?:stable.?diffusion.?|sd.?)xl.*lightning", Base("sdxl", "lightning")),
        (r"(?:stable.?diffusion.?|sd.?)xl.*turbo", Base("sdxl", "turbo")),
        (r"stable.?diffusion.?xl|sd.?xl", Base("sdxl")),
        (r"(?:stable.?diffusion.?v?|sd.?v?)3.*turbo", Base("sd3", "turbo")),
        (r"stable.?diffusion.?v?3|sd.?v?3", Base("sd3")),
        (r"(?:stable.?diffusion.?v?|sd.?v?)2\D?\d?.?(?:base|512)", Base("sd2", None, "epsilon")),
        (r"(?:stable.?diffusion.?v?|sd.?v?)2.*768.?v", Base("sd2", None, _V)),
        (r"stable.?diffusion.?v?2|sd.?v?2", Base("sd2")),
        (r"stable.?diffusion.?v?1|sd.?v?1", Base("sd1")),
        (r"stable.?cascade", Base("stable-cascade")),
        (r"stable.?video.?diffusion", Base("svd")),
        (r"wan.?(?:\d|video).*i2v", Base("wan-i2v")),
        (r"wan.?(?:\d|video|$)", Base("wan")),
        (r"hunyuan.?video", Base("hunyuan-video")),
        (r"hunyuan.?image", Base("hunyuan-image")),
        (r"hunyuan.?dit", Base("hunyuan-dit")),
        (r"ltx.?(?:video.?)?2", Base("ltx2")),
        (r"ltx", Base("ltx")),
        (r"cogvideox.*i2v", Base("cogvideox-i2v")),
        (r"cogvideox", Base("cogvideox")),
        (r"cogview.?4", Base("cogview4")),
        (r"cogview.?3", Base("cogview3")),
        (r"glm.?image", Base("glm-image")),
        (r"lumina.?(?:image.?)?2|lumina", Base("lumina2")),
        (r"aura.?flow", Base("auraflow")),
        (r"pixart.*(?:sigma|σ)", Base("pixart-sigma")),
        (r"pixart", Base("pixart-alpha")),
        (r"sana.?sprint", Base("sana-sprint")),
        (r"sana(?![a-z])", Base("sana")),
        (r"hidream.?o1", Base(refused=_ABSENT)),
        (r"hidream", Base("hidream")),
        (r"kolors", Base("kolors")),
        (r"mochi", Base("mochi")),
        (r"ernie.?image", Base("ernie-image")),
        (r"longcat.?image.?edit", Base("longcat-image-edit")),
        (r"longcat.?image", Base("longcat-image")),
        (r"omnigen.?2", Base(refused=_ABSENT)),
        (r"omnigen", Base("omnigen")),
        (r"ideogram.?4", Base("ideogram4")),
        (r"anima(?![a-z])", Base(refused=_MODULAR)),
    )
)
# What the same shapes are trained to, in words that stand alone in a title or a tag.
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
    """Return what a declared base means: CivitAI's exact name first, then the words of ids and trainers."""
    low = text.strip().lower()[:200]
    exact = _CIVITAI_LOW.get(low)
    if exact is not None:
        return exact
    return next((base for pattern, base in _WORDS if pattern.search(low)), None)


def declared_base(text: str) -> str | None:
    """Return the architecture id of a declared base (`sdxl_base_v1-0`, `stable-diffusion-v1/lora`), or None."""
    base = known_base(text)
    return base.architecture if base else None


def variant_in(text: str) -> str | None:
    """Return the variant that a title or tag names, or None."""
    low = text.lower()[:200]
    return next((variant for pattern, variant in _VARIANTS if pattern.search(low)), None)


def says_v_prediction(text: str) -> bool:
    """Say whether a title or tag names v-prediction, as NoobAI's and its merges' do."""
    return _V_WORDS.search(text.lower()[:200]) is not None

"""THE TABLE of what can be found: its files, the request's field that takes it, and the sources' words for it."""

from collections.abc import Mapping
from dataclasses import dataclass

from worker.core.discovery import FindKind
from worker.core.model import Detection, Kind


@dataclass(frozen=True, slots=True)
class KindRow:
    """One kind. `civitai` are the site's model types, `hub` the tags of a repository; an empty `civitai` is none."""

    kinds: tuple[Kind, ...]  # of its files, as they are detected
    words: tuple[str, ...]  # that people write in a search
    civitai: tuple[str, ...]
    hub: tuple[str, ...]
    field: str | None = None  # of a request; None for what generates by itself
    hub_word: str = ""  # looked for in a repository's name, where no tag tells


KINDS: Mapping[FindKind, KindRow] = {
    "model": KindRow(
        (Kind.PIPELINE, Kind.CHECKPOINT, Kind.DENOISER), ("model", "models", "checkpoint", "checkpoints"),
        ("Checkpoint", "UNet"), ("diffusers",),
    ),
    "lora": KindRow(
        (Kind.LORA,), ("lora", "loras", "lycoris", "locon", "dora"),
        ("LORA", "LoCon", "DoRA"), ("diffusers", "lora"), "loras",
    ),
    "embedding": KindRow(
        (Kind.TEXTUAL_INVERSION,), ("embedding", "embeddings"),
        ("TextualInversion",), ("diffusers", "textual_inversion"), "embeddings",
    ),
    "vae": KindRow((Kind.VAE,), ("vae", "vaes"), ("VAE",), ("diffusers",), "vae", "vae"),
    "controlnet": KindRow(
        (Kind.CONTROLNET, Kind.T2I_ADAPTER), ("controlnet", "controlnets"),
        ("Controlnet",), ("diffusers", "controlnet"), "controlnets",
    ),
    "ip-adapter": KindRow(
        (Kind.IP_ADAPTER,), ("ip-adapter", "ip-adapters", "ipadapter"), (), (), "ip_adapters", "ip-adapter"
    ),
    "hypernetwork": KindRow(
        (Kind.HYPERNETWORK,), ("hypernetwork", "hypernetworks"), ("Hypernetwork",), (), "hypernetworks", "hypernetwork"
    ),
    "upscaler": KindRow((Kind.UPSCALER,), ("upscaler", "upscalers"), ("Upscaler",), (), None, "upscaler"),
}  # fmt: skip
# What is recommended for a model, unless one kind is asked for.
GO_WITH_MODELS: tuple[FindKind, ...] = ("lora", "embedding", "vae", "controlnet")


def kind_of(detection: Detection) -> FindKind | None:
    """Return the kind of a detected file; None for one that no request can name."""
    return next((name for name, row in KINDS.items() if detection.kind in row.kinds), None)


def kind_meant(word: str) -> FindKind | None:
    """Return the kind that a word of a search means, or None."""
    return next((name for name, row in KINDS.items() if word.lower() in row.words), None)

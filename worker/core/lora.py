"""The content of a LoRA file: the module that each tensor changes, its role there, and its scale."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue

DENOISER = "denoiser"


@dataclass(frozen=True, slots=True)
class ModuleKeys:
    """One module that a file changes: its name in the file, and the key of each tensor by its role.

    Roles: `down`, `up`, `mid`, `up_bias`, `alpha`, `dora_scale`, `diff`, `diff_b`, `weight` and `on_input` (IA3),
    `a1` … `bm` (GLoRA), and LyCORIS' own names for the rest.
    """

    component: str  # DENOISER, "text_encoder", "text_encoder_2" …
    name: str
    keys: Mapping[str, str]
    algorithm: str | None  # "lora", "dora", "loha+dora", "full" …; None when the tensors are no complete change
    spelling: str = ""  # the name letter by letter, as the file has it behind its prefix
    inputs: int | None = None  # channels that the module takes and gives, as far as the tensors' shapes show them
    outputs: int | None = None


@dataclass(frozen=True, slots=True)
class LoraKeys:
    """All keys of one file."""

    modules: tuple[ModuleKeys, ...] = ()
    embeddings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # word -> part ("*", "clip_g") -> key
    unknown: tuple[str, ...] = ()
    refused: str | None = None  # an algorithm that nothing here can apply, in words
    dialect: str = "bare"  # how modules are spelled: "kohya", "diffusers", "peft", "comfy", "xlabs" …

    @property
    def algorithm(self) -> str:
        """The algorithms of all modules, the most frequent first, joined by `+`."""
        counts: dict[str, int] = {}
        for module in self.modules:
            if module.algorithm:
                counts[module.algorithm] = counts.get(module.algorithm, 0) + 1
        return "+".join(sorted(counts, key=lambda name: -counts[name])) or "unknown"


@dataclass(frozen=True, slots=True)
class Scaling:
    """The scale of a file's changes: a module's own `.alpha` first, then peft's settings, else 1."""

    settings: Mapping[str, Mapping[str, JsonValue]] = field(default_factory=dict)  # component, or "" -> LoraConfig

    def factor(self, component: str, path: str, rank: int, alpha: float | None) -> float:
        """Return the factor on the change of the module at `path`; 1 where the change has no `rank` (0)."""
        if not rank:
            return 1.0
        if alpha is not None:
            return alpha / rank if alpha else 1.0  # trainers write 0 for "as the rank"
        settings = self.settings.get(component) or self.settings.get("")
        if not settings:
            return 1.0
        value = _pattern(settings.get("alpha_pattern"), path) or settings.get("lora_alpha")
        if not isinstance(value, int | float) or isinstance(value, bool):
            return 1.0
        return float(value) / (rank**0.5 if settings.get("use_rslora") is True else rank)


def _pattern(patterns: JsonValue, path: str) -> JsonValue:
    """Return the value of the first pattern that is a module's path, or whole words at its end."""
    if not isinstance(patterns, dict):
        return None
    return next((value for text, value in patterns.items() if path == text or path.endswith(f".{text}")), None)

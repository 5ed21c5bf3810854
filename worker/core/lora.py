"""The content of a LoRA file: the module that each tensor changes, its role there, and its scale."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache

from pydantic import JsonValue

from worker.core.errors import UnsupportedModel

DENOISER = "denoiser"

_PLAIN = re.compile(r"[\w.]*")  # a name: its dots are taken for dots
_ESCAPED, _CLASS = re.compile(r"\\."), re.compile(r"\[[^\]]*\]")
_REPEATS, _REPEATED_GROUP = re.compile(r"[*+{]"), re.compile(r"\)[*+{]")
_LONGEST, _MOST_REPEATS = 2_000, 3


@dataclass(frozen=True, slots=True)
class ModuleKeys:
    """One module that a file changes: its name in the file, and the key of each tensor by its role.

    Roles: `down`, `up`, `mid`, `up_bias`, `alpha`, `dora_scale`, `diff`, `diff_b`, `whole` and `whole_bias` (a layer's
    own new weights), `weight` and `on_input` (IA3), `a1` … `bm` (GLoRA), and LyCORIS' own names for the rest.
    """

    component: str  # DENOISER, "text_encoder", "text_encoder_2" …
    name: str
    keys: Mapping[str, str]
    algorithm: (
        str | None
    )  # "lora", "dora", "loha+dora", "full", "whole" …; None when the tensors are no complete change
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
    def mixes(self) -> bool:
        """True if it can be for some images of a call only: a word that it brings would be one in every prompt."""
        return not self.embeddings

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

    def factor(self, component: str, names: Sequence[str], rank: int, alpha: float | None) -> float:
        """Return the factor on a module's change, by the module's `names`; 1 where the change has no `rank` (0)."""
        if not rank:
            return 1.0
        if alpha is not None:
            return alpha / rank if alpha else 1.0  # trainers write 0 for "as the rank"
        settings = self.settings.get(component) or self.settings.get("")
        if not settings:
            return 1.0
        value = _pattern(settings.get("alpha_pattern"), names) or settings.get("lora_alpha")
        if not isinstance(value, int | float) or isinstance(value, bool):
            return 1.0
        return float(value) / (rank**0.5 if settings.get("use_rslora") is True else rank)


def _pattern(patterns: JsonValue, names: Sequence[str]) -> JsonValue:
    """Return the value of the first pattern that is one of a module's names, or whole words at the end of one.

    Patterns are regular expressions, as in peft. Raises UnsupportedModel for one that is none, or could take for ever.
    """
    if not isinstance(patterns, dict):
        return None
    for text, value in patterns.items():
        if any(name == text or name.endswith(f".{text}") for name in names):
            return value
        if not _PLAIN.fullmatch(text) and any(map(_compiled(text).fullmatch, names)):
            return value
    return None


@lru_cache(maxsize=1_024)
def _compiled(text: str) -> re.Pattern[str]:
    # A file comes from anywhere: what repeats a repetition, or repeats more than a few times, is never run.
    outside = _CLASS.sub("x", _ESCAPED.sub("x", text))
    if (
        len(text) <= _LONGEST
        and len(_REPEATS.findall(outside)) <= _MOST_REPEATS
        and not _REPEATED_GROUP.search(outside)
    ):
        with suppress(re.error, OverflowError):
            return re.compile(rf"(?:.*\.)?(?:{text})", re.DOTALL)
    raise UnsupportedModel(
        f"loras: the file's alpha_pattern {text[:60]!r} cannot be read: a regular expression may have at most "
        f"{_LONGEST} characters and {_MOST_REPEATS} repetitions, none of a group; save the file with names instead.",
        field="loras",
    )

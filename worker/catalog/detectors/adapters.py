"""Detection of LoRA files: algorithm, dialect and base.

`Detection.format` of an adapter is `<algorithm>/<dialect>`: `lora/kohya`, `dora/diffusers`, `loha/kohya` …
`full` is differences of whole weights; `lora+…` holds more than low-rank pairs. worker.catalog.lora_keys reads the keys
and tells the dialect, as it does for the engine.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from worker.catalog.architectures import ARCHITECTURES
from worker.catalog.base_models import declared_base
from worker.catalog.families.row import LoraRule
from worker.catalog.lora_keys import read_keys
from worker.core.lora import DENOISER, LoraKeys, ModuleKeys
from worker.core.model import TensorIndex

ALGORITHMS = (
    "lora", "dora", "loha", "lokr", "boft", "oft", "glora", "ia3", "full", "lora+diff", "lora+embedding", "lora+control"
)  # fmt: skip
_CONTROL = ("img_in.lora_A.weight", "x_embedder.lora_A.weight")  # a FLUX.1 LoRA that also reads a control image
# Few tensors of a model have names like these: most files are told apart without being read as a LoRA.
_LOOKS_LIKE = re.compile(r"lora|hada_|lokr_|oft_|on_input|\.ia3_|\.diff|\.[ab]1\.weight$|w_norm")
# Algorithms whose tensors have names of their own: by the reader's name for a refused one, or by the start of a role.
_REFUSED = {"BOFT": "boft", "peft's OFT": "oft", "the old OFT layout": "oft"}
_ROLES = (("loha", "hada_"), ("lokr", "lokr_"), ("oft", "oft_"), ("ia3", "on_input"))
_UNET_BLOCK = re.compile(r"^(?:down_blocks|up_blocks|mid_block|input_blocks|output_blocks|middle_block)_")
_SD2_TEXT = 1024  # channels of a text encoder that no other family has


@dataclass(frozen=True, slots=True)
class Lora:
    """The facts that the keys of a LoRA show."""

    algorithm: str
    dialect: str
    base: str | None
    modules: int
    evidence: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Rule:
    """A base that shows in a module's name, and in its input or output width when several share the name."""

    base: str
    pattern: re.Pattern[str]
    sizes: LoraRule
    note: str = ""

    def find(self, modules: Iterable[ModuleKeys]) -> ModuleKeys | None:
        inputs, outputs = self.sizes.inputs, self.sizes.outputs
        named = (module for module in modules if self.pattern.search(_flat(module)))
        sized = (module for module in named if not inputs or module.inputs in inputs)
        return next((module for module in sized if not outputs or module.outputs in outputs), None)


def _rules() -> Iterator[_Rule]:
    """Yield the rules in the order in which they are tried: the names of one family alone before those with a size."""
    for base, rule in _FOREIGN:
        yield _Rule(base, re.compile(rule.pattern), rule)
    rules = [(rule, row) for row in ARCHITECTURES for rule in row.loras]
    rules.sort(key=lambda pair: (bool(pair[0].inputs or pair[0].outputs), pair[0].general))
    for rule, row in rules:
        yield _Rule(row.id, re.compile(rule.pattern), rule, row.lora_note)


# Families that no row has, since diffusers cannot run them.
_FOREIGN = (("anima", LoraRule(r"llm_adapter|^blocks_\d+_(?:cross|self)_attn_[kqv]_proj$")),)
_RULES = tuple(_rules())


def lora_bases() -> frozenset[str]:
    """Return the architectures that a LoRA's keys can show."""
    return frozenset(rule.base for rule in _RULES)


def detect_lora(index: TensorIndex) -> Lora | None:
    """Read algorithm, dialect and base from the keys, then from the metadata. None when it is no LoRA."""
    if not any(map(_LOOKS_LIKE.search, index.tensors)):
        return None
    keys = read_keys({name: shape for name, (_, shape) in index.tensors.items()})
    algorithm = _algorithm(keys, index)
    if algorithm is None:
        return None
    # differences of norms and biases, and whole layers, go along with anything, and count where nothing else is changed
    modules = [module for module in keys.modules if module.algorithm not in ("full", "whole")] or keys.modules
    evidence = [f"{algorithm} keys for {len(modules)} modules, {keys.dialect} spelling"]
    base = _base(modules, evidence)
    if base is None:
        for key in ("modelspec.architecture", "ss_base_model_version"):
            base = declared_base(index.metadata.get(key, ""))
            if base:
                evidence.append(f"metadata {key} is {index.metadata[key][:60]}")
                break
        else:
            evidence.append("the keys and the metadata do not tell the base model")
    return Lora(algorithm, keys.dialect, base, len(modules), tuple(evidence))


def _algorithm(keys: LoraKeys, index: TensorIndex) -> str | None:
    """Return the algorithm of the file's tensors, complete or not.

    Plain pairs come last, since they go with anything."""
    roles = {role for module in keys.modules for role in module.keys}
    named = _distinct_algorithm(keys, roles)
    if named is not None:
        return named
    differences = roles & {"diff", "diff_b"}
    if not roles & {"down", "up"}:
        return "full" if differences else None
    if "dora_scale" in roles:
        return "dora"
    if any(name.endswith(_CONTROL) and shape[-1:] == (128,) for name, (_, shape) in index.tensors.items()):
        return "lora+control"
    if differences:
        return "lora+diff"
    return "lora+embedding" if keys.embeddings else "lora"


def _distinct_algorithm(keys: LoraKeys, roles: set[str]) -> str | None:
    """Return the algorithm whose tensors have names of their own, or None."""
    if keys.refused in _REFUSED:
        return _REFUSED[keys.refused]
    for algorithm, start in _ROLES:
        if any(role.startswith(start) for role in roles):
            return algorithm
    if any(".ia3_l" in key for key in keys.unknown):  # peft's
        return "ia3"
    # a weight called a1 or b2 is common; GLoRA has all four, always
    return "glora" if {"a1", "a2", "b1", "b2"} <= roles else None


def _flat(module: ModuleKeys) -> str:
    """Return the module's name in a form in which all dialects can be compared."""
    return module.name.replace(".", "_")


def _base(modules: Sequence[ModuleKeys], evidence: list[str]) -> str | None:
    """Return the base architecture that the modules show, and add the module that shows it to the evidence."""
    denoiser = [module for module in modules if module.component == DENOISER]
    for rule in _RULES:
        module = rule.find(denoiser)
        if module is not None:
            size = f" takes {module.inputs} channels" if module.inputs else ""
            evidence.append(f"{module.spelling}{size}: {rule.base}")
            if rule.note:
                evidence.append(rule.note)
            return rule.base
    encoders = {module.component: module for module in modules if module.component != DENOISER}
    return _encoders_base(encoders, denoiser, evidence)


def _encoders_base(
    encoders: Mapping[str, ModuleKeys], denoiser: Sequence[ModuleKeys], evidence: list[str]
) -> str | None:
    """Return the base that the text encoders show where the denoiser's modules show none."""
    second = encoders.get("text_encoder_2")
    if second is not None and (not denoiser or any(_UNET_BLOCK.match(_flat(module)) for module in denoiser)):
        base = next(row.id for row in ARCHITECTURES if row.prompts and row.prompts.form == "clip-pair")
        evidence.append(f"{second.spelling} of the second text encoder: {base}")
        return base
    if not denoiser and any(module.inputs == _SD2_TEXT for module in encoders.values()):
        base = next(row.id for row in ARCHITECTURES if row.prompts and row.prompts.widths.get("clip_l") == _SD2_TEXT)
        evidence.append(f"text encoder of {_SD2_TEXT} channels: {base}")
        return base
    return None

"""The second table: what a LoRA file is (algorithm, dialect, base).

`Detection.format` of an adapter is `<algorithm>/<dialect>`: `lora/kohya`, `dora/diffusers`, `loha/kohya` …
`full` is differences of whole weights; `lora+…` holds more than low-rank pairs. worker.catalog.lora_keys reads the keys
and tells the dialect, as it does for the engine.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from worker.catalog.base_models import declared_base
from worker.catalog.lora_keys import read_keys
from worker.core.lora import DENOISER, LoraKeys, ModuleKeys
from worker.core.model import TensorIndex

ALGORITHMS = (
    "lora", "dora", "loha", "lokr", "boft", "oft", "glora", "ia3", "full", "lora+diff", "lora+embedding", "lora+control"
)  # fmt: skip
_CONTROL = ("img_in.lora_A.weight", "x_embedder.lora_A.weight")  # a FLUX.1 LoRA that also reads a control image
# No name of a model's own tensor but a few looks so: most files are told apart without being read as a LoRA.
_LOOKS_LIKE = re.compile(r"lora|hada_|lokr_|oft_|on_input|\.ia3_|\.diff|\.[ab]1\.weight$|w_norm")
# Algorithms whose tensors have names of their own: by what the reader refuses, or by how a role begins.
_REFUSED = {"BOFT": "boft", "peft's OFT": "oft", "the old OFT layout": "oft"}
_ROLES = (("loha", "hada_"), ("lokr", "lokr_"), ("oft", "oft_"), ("ia3", "on_input"))
_UNET_BLOCK = re.compile(r"^(?:down_blocks|up_blocks|mid_block|input_blocks|output_blocks|middle_block)_")
_ATTENTION_KEY = re.compile(r"attn2_to_[kv]$")


@dataclass(frozen=True, slots=True)
class Lora:
    """What the keys of a LoRA say."""

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
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()

    def find(self, modules: Iterable[ModuleKeys]) -> ModuleKeys | None:
        named = (module for module in modules if self.pattern.search(_flat(module)))
        sized = (module for module in named if not self.inputs or module.inputs in self.inputs)
        return next((module for module in sized if not self.outputs or module.outputs in self.outputs), None)


def _rule(base: str, pattern: str, inputs: tuple[int, ...] = (), outputs: tuple[int, ...] = ()) -> _Rule:
    return _Rule(base, re.compile(pattern), inputs, outputs)


# First match wins: a name that only one family has stands before one that needs a width.
_BASES: tuple[_Rule, ...] = (
    _rule("anima", r"llm_adapter|^blocks_\d+_(?:cross|self)_attn_[kqv]_proj$"),
    _rule(
        "krea2", r"^txtfusion|^blocks_\d+_attn_(?:wq|wk|wv|wo|gate)$|^text_fusion|^transformer_blocks_\d+_attn_to_gate$"
    ),
    _rule("chroma", r"^distilled_guidance_layer"),
    _rule("hunyuan-video", r"individual_token_refiner|^double_blocks_\d+_img_(?:mlp_fc[12]|mod_linear)$"),
    _rule("hunyuan-video", r"^single_transformer_blocks_(?:38|39)_"),  # FLUX.1, whose names these are, ends at 37
    _rule("auraflow", r"^joint_transformer_blocks_\d|^double_layers_\d"),
    _rule("hidream", r"^double_stream_blocks_\d"),
    _rule("flux2-klein", r"^single_blocks_\d+_linear1$", outputs=(27648,)),
    _rule("flux2-klein", r"^(?:double|single)_blocks_\d+_", inputs=(4096,)),
    _rule("flux2", r"^(?:double|single)_blocks_\d+_", inputs=(6144,)),
    _rule("flux2-klein", r"^single_transformer_blocks_\d+_attn_to_qkv_mlp_proj$", inputs=(3072, 4096)),
    _rule("flux2", r"^single_transformer_blocks_\d+_attn_to_qkv_mlp_proj$", inputs=(6144,)),
    _rule("flux2", r"^transformer_blocks_\d+_attn_add_[qkv]_proj$", inputs=(6144,)),
    _rule("flux1", r"^(?:double|single)_blocks_\d+_(?:img|txt|linear|modulation|qkv|proj)", inputs=(3072,)),
    _rule("flux1", r"^single_transformer_blocks_\d+_(?:attn|proj|norm)", inputs=(3072,)),
    _rule("sd3", r"^joint_blocks_\d+_", inputs=(1536, 2432)),
    _rule("z-image", r"^(?:layers|context_refiner|noise_refiner)_\d+_attention", inputs=(3840,)),
    _rule("lumina2", r"^(?:layers|context_refiner|noise_refiner)_\d+_(?:attention|attn_to)", inputs=(2304,)),
    _rule("qwen-image", r"^transformer_blocks_\d+_(?:img|txt)_(?:mlp|mod)"),
    _rule("qwen-image", r"^transformer_blocks_(?:19|[2-5]\d)_attn_", inputs=(3072,)),
    _rule("sd3", r"^transformer_blocks_\d+_attn_(?:to|add)_", inputs=(1536, 2432)),
    _rule("ltx", r"^transformer_blocks_\d+_attn[12]_to_", inputs=(2048,)),
    _rule("sana", r"^transformer_blocks_\d+_attn[12]_to_", inputs=(2240,)),
    _rule("cogview4", r"^transformer_blocks_\d+_attn1_to_", inputs=(4096,)),
    _rule(
        "mochi",
        r"^transformer_blocks_\d+_attn1_(?:add_|to_add_)|^transformer_blocks_4[2-7]_attn1_",
        inputs=(3072, 1536),
    ),
    _rule("cogvideox", r"^transformer_blocks_\d+_attn1_to_", inputs=(1920, 3072)),
    _rule("wan", r"^blocks_\d+_(?:(?:self|cross)_attn_[qkvo]|ffn_[02])$|^blocks_\d+_attn[12]_to_[qkv]$"),
    _rule("sdxl", r"^(?:down|up|input|output|mid|middle)_blocks?_.*_transformer_blocks_[2-9]_"),
    _rule("sd1", _ATTENTION_KEY.pattern, inputs=(768,)),
    _rule("sd2", _ATTENTION_KEY.pattern, inputs=(1024,)),
    _rule("sdxl", _ATTENTION_KEY.pattern, inputs=(2048,)),
    _rule("sdxl-refiner", _ATTENTION_KEY.pattern, inputs=(1280,)),
)


def lora_bases() -> frozenset[str]:
    """Return the architectures that the keys of a LoRA can tell."""
    return frozenset(rule.base for rule in _BASES)


def detect_lora(index: TensorIndex) -> Lora | None:
    """Read algorithm, dialect and base from the keys, then from the metadata. None when it is no LoRA."""
    if not any(map(_LOOKS_LIKE.search, index.tensors)):
        return None
    keys = read_keys({name: shape for name, (_, shape) in index.tensors.items()})
    algorithm = _algorithm(keys, index)
    if algorithm is None:
        return None
    # differences of norms and biases go along with anything, and count where nothing else is changed
    modules = [module for module in keys.modules if module.algorithm != "full"] or keys.modules
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
    """Name the file by the tensors it holds, complete or not; plain pairs come last, since they go with anything."""
    roles = {role for module in keys.modules for role in module.keys}
    if keys.refused in _REFUSED:
        return _REFUSED[keys.refused]
    for algorithm, start in _ROLES:
        if any(role.startswith(start) for role in roles):
            return algorithm
    if any(".ia3_l" in key for key in keys.unknown):  # peft's
        return "ia3"
    if {"a1", "a2", "b1", "b2"} <= roles:  # a weight called a1 or b2 is common; GLoRA has all four, always
        return "glora"
    if roles & {"down", "up"}:
        if "dora_scale" in roles:
            return "dora"
        if any(name.endswith(_CONTROL) and shape[-1:] == (128,) for name, (_, shape) in index.tensors.items()):
            return "lora+control"
        if roles & {"diff", "diff_b"}:
            return "lora+diff"
        return "lora+embedding" if keys.embeddings else "lora"
    return "full" if roles & {"diff", "diff_b"} else None


def _flat(module: ModuleKeys) -> str:
    """Return the module's name as every dialect can be compared."""
    return module.name.replace(".", "_")


def _base(modules: Sequence[ModuleKeys], evidence: list[str]) -> str | None:
    """Return the base architecture that the modules show, and add the module that shows it to the evidence."""
    denoiser = [module for module in modules if module.component == DENOISER]
    for rule in _BASES:
        module = rule.find(denoiser)
        if module is not None:
            size = f" takes {module.inputs} channels" if module.inputs else ""
            evidence.append(f"{module.spelling}{size}: {rule.base}")
            if rule.base == "flux1":
                evidence.append("FLUX.1 and Chroma LoRAs name the same modules")
            return rule.base
    encoders = {module.component: module for module in modules if module.component != DENOISER}
    if "text_encoder_2" in encoders and (not denoiser or any(_UNET_BLOCK.match(_flat(module)) for module in denoiser)):
        evidence.append(f"{encoders['text_encoder_2'].spelling} of the second text encoder: sdxl")
        return "sdxl"
    if not denoiser and any(module.inputs == 1024 for module in encoders.values()):
        evidence.append("text encoder of 1024 channels: sd2")
        return "sd2"
    return None

"""The second table: what a LoRA file is (algorithm, dialect, base), and what the other small files are.

`Detection.format` of an adapter is `<algorithm>/<dialect>`: `lora/kohya`, `dora/diffusers`, `loha/kohya` …
Algorithms: `lora`, `dora`, `loha`, `lokr`, `oft`, `boft`, `glora`, `ia3`, `full` (differences of whole weights), and
`lora+diff`, `lora+embedding`, `lora+control` for files that hold more than low-rank pairs. Dialects say how modules
are spelled: `kohya` (lora_unet_…), `diffusers` (unet.…, transformer.…), `peft` (base_model.model.…), `comfy`
(diffusion_model.…), `xlabs` (….processor.qkv_lora1), `bare` (no prefix at all).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from worker.catalog.base_models import declared_base
from worker.core.model import TensorIndex

# What ends a key, by algorithm; the first that is found names the file. Plain pairs come last: they go with anything.
_ALGORITHMS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("loha", re.compile(r"\.hada_(?:w[12]_[ab]|t[12])(?:\.\w+)?$")),
    ("lokr", re.compile(r"\.lokr_(?:w[12](?:_[ab])?|t2)(?:\.\w+)?$")),
    ("boft", re.compile(r"\.boft_[RrSs](?:\.\w+)?$|\.boft_blocks$")),
    ("oft", re.compile(r"\.oft_(?:blocks|diag|[rR])(?:\.\w+)*$")),
    ("glora", re.compile(r"\.[ab][12]\.weight$")),
    ("ia3", re.compile(r"\.on_input$|\.ia3_l(?:\.\w+)?$")),
)
_DORA = re.compile(r"\.dora_scale$|\.lora_magnitude_vector(?:\.\w+)*$")
_DIFF = re.compile(r"\.diff(?:_[bm])?$|\.w_norm$|\.b_norm$")
_PAIR = re.compile(
    r"^(?P<module>.+?)(?:"
    r"\.lora_(?P<side>A|B|down|up)(?:\.(?!weight)\w+)?\.weight"
    r"|\.lora_(?P<bare>A|B)"
    r"|[._]lora\.(?P<dotted>down|up)\.weight"
    r"|\.lora_linear_layer\.(?P<linear>down|up)\.weight"
    r"|(?P<xlabs>\.processor\d?\.\w+_lora[12]?)\.(?P<xside>down|up)\.weight"
    r")$"
)
# How the algorithms without pairs end a module's name, and which axis of the tensor is the module's input.
_SINGLE = re.compile(r"^(?P<module>.+?)\.(?P<end>diff|a1\.weight|b2\.weight|oft_blocks|oft_diag|on_input|w_norm)$")
_CONTROL = ("img_in.lora_A.weight", "x_embedder.lora_A.weight")  # a FLUX.1 LoRA that also reads a control picture
_LOOKS_LIKE = re.compile(r"lora|hada_|lokr_|oft_|on_input|\.ia3_|\.diff|\.[ab]1\.weight$|w_norm")

_COMPONENTS: tuple[tuple[str, str], ...] = (
    ("lora_te3_", "text_encoder_3"), ("lora_te2_", "text_encoder_2"), ("lora_te1_", "text_encoder"),
    ("lora_te_", "text_encoder"), ("lora_unet_", ""), ("lora_transformer_", ""), ("lycoris_", ""),
    ("text_encoder_3.", "text_encoder_3"), ("text_encoder_2.", "text_encoder_2"), ("text_encoder.", "text_encoder"),
    ("text_encoders.clip_l.transformer.", "text_encoder"), ("text_encoders.clip_g.transformer.", "text_encoder_2"),
    ("text_encoders.t5xxl.transformer.", "text_encoder_3"), ("base_model.model.", ""),
    ("model.diffusion_model.", ""), ("diffusion_model.", ""), ("transformer.", ""), ("unet.", ""),
)  # fmt: skip
_DIALECTS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("xlabs", re.compile(r"\.processor\d?\.(?:proj|qkv)_lora[12]?\.")),
    ("kohya", re.compile(r"^(?:lora_(?:unet|te\d?|transformer|prior_unet)|lycoris)_")),
    ("peft", re.compile(r"^base_model\.model\.")),
    ("comfy", re.compile(r"^(?:model\.)?diffusion_model\.|^text_encoders\.")),
    ("diffusers", re.compile(r"^(?:unet|transformer|text_encoder(?:_[23])?)\.")),
)
_UNET_BLOCK = re.compile(r"^(?:down_blocks|up_blocks|mid_block|input_blocks|output_blocks|middle_block)_")
_ATTENTION_KEY = re.compile(r"attn2_to_[kv]$")


@dataclass(frozen=True, slots=True)
class Module:
    """One place that a LoRA changes: its name below the component, and the sizes that its tensors show."""

    component: str  # "unet", "transformer", "text_encoder" … ; "denoiser" while the base is not known
    name: str
    inputs: int | None = None
    outputs: int | None = None

    @property
    def flat(self) -> str:
        """The name as every dialect can be compared: dots are underscores, processors are left out."""
        return self.name.replace(".processor", "").replace(".", "_").removesuffix("_lora")


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

    def find(self, modules: Iterable[Module]) -> Module | None:
        for module in modules:
            if (
                self.pattern.search(module.flat)
                and (not self.inputs or module.inputs in self.inputs)
                and (not self.outputs or module.outputs in self.outputs)
            ):
                return module
        return None


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


# What the answers of `detect_lora` are made of, in the tables' order.
ALGORITHMS = ("lora", "dora", *(name for name, _ in _ALGORITHMS), "full", "lora+diff", "lora+embedding", "lora+control")
DIALECTS = (*(name for name, _ in _DIALECTS), "bare")


def lora_bases() -> frozenset[str]:
    """Return the architectures that the keys of a LoRA can tell."""
    return frozenset(rule.base for rule in _BASES)


def detect_lora(index: TensorIndex) -> Lora | None:
    """Read algorithm, dialect and base from the keys, then from the metadata. None when it is no LoRA."""
    algorithm = _algorithm(index)
    if algorithm is None:
        return None
    modules = _modules(index)
    dialect = next((name for name, pattern in _DIALECTS if any(map(pattern.search, index.tensors))), "bare")
    evidence = [f"{algorithm} keys for {len(modules)} modules, {dialect} spelling"]
    base = _base(modules, evidence)
    if base is None:
        for key in ("modelspec.architecture", "ss_base_model_version"):
            base = declared_base(index.metadata.get(key, ""))
            if base:
                evidence.append(f"metadata {key} is {index.metadata[key][:60]}")
                break
        else:
            evidence.append("the keys and the metadata do not tell the base model")
    return Lora(algorithm, dialect, base, len(modules), tuple(evidence))


def _algorithm(index: TensorIndex) -> str | None:
    names = [name for name in index.tensors if _LOOKS_LIKE.search(name) or _DORA.search(name)]
    if not names:
        return None
    for algorithm, pattern in _ALGORITHMS:
        if algorithm != "glora" and any(map(pattern.search, names)):
            return algorithm
    # a weight called a1 or b2 is common; GLoRA has all four, always
    if all(any(name.endswith(f".{end}.weight") for name in index.tensors) for end in ("a1", "a2", "b1", "b2")):
        return "glora"
    pairs, diffs = any(map(_PAIR.match, names)), any(map(_DIFF.search, names))
    if pairs:
        if any(map(_DORA.search, names)):
            return "dora"
        if any(name.endswith(_CONTROL) and shape[-1:] == (128,) for name, (_, shape) in index.tensors.items()):
            return "lora+control"
        if diffs:
            return "lora+diff"
        return "lora+embedding" if any(name.startswith("bundle_emb.") for name in index.tensors) else "lora"
    return "full" if diffs else None


def _modules(index: TensorIndex) -> list[Module]:
    """Collect the modules of the file, with the sizes that its tensors show, in the file's order."""
    inputs: dict[str, int] = {}
    outputs: dict[str, int] = {}
    order: dict[str, None] = {}
    for key, (_, shape) in index.tensors.items():
        pair = _PAIR.match(key)
        if pair:
            module = pair["module"] + (pair["xlabs"] or "")
            order[module] = None
            side = pair["side"] or pair["bare"] or pair["dotted"] or pair["linear"] or pair["xside"]
            if len(shape) >= 2 and side in ("A", "down"):
                inputs[module] = shape[1]
            elif len(shape) >= 2:
                outputs[module] = shape[0]
            continue
        for marker in (".hada_", ".lokr_"):
            module, found, rest = key.partition(marker)
            if found:
                order[module] = None
                if rest.startswith("w1_b") and marker == ".hada_" and len(shape) >= 2:
                    inputs[module] = shape[1]
    for module, size in _kronecker(index).items():
        inputs[module] = size
    if not order:
        for key, (_, shape) in index.tensors.items():
            single = _SINGLE.match(key)
            if single:
                order[single["module"]] = None
                if len(shape) >= 2 and single["end"] in ("diff", "a1.weight"):
                    inputs[single["module"]] = shape[1]
                if len(shape) >= 2 and single["end"] in ("diff", "b2.weight"):
                    outputs[single["module"]] = shape[0]
    return [_module(name, inputs.get(name), outputs.get(name)) for name in order]


def _kronecker(index: TensorIndex) -> dict[str, int]:
    """Return the input width of each LoKr module: its two factors' widths multiplied."""
    widths: dict[str, dict[str, int]] = {}
    for key, (_, shape) in index.tensors.items():
        module, found, rest = key.partition(".lokr_")
        factor, _, half = rest.partition("_")
        if found and factor in ("w1", "w2") and half in ("", "b") and len(shape) >= 2:
            widths.setdefault(module, {})[factor] = shape[1]
    return {module: factors["w1"] * factors["w2"] for module, factors in widths.items() if len(factors) == 2}


def _module(key: str, inputs: int | None, outputs: int | None) -> Module:
    for prefix, component in _COMPONENTS:
        if key.startswith(prefix):
            name = key[len(prefix) :]
            if prefix == "base_model.model." and name.startswith("text_model."):
                component = "text_encoder"
            return Module(component or "denoiser", name, inputs, outputs)
    return Module("text_encoder" if key.startswith("text_model.") else "denoiser", key, inputs, outputs)


def _base(modules: list[Module], evidence: list[str]) -> str | None:
    """Return the base architecture that the modules show, and add the module that shows it to the evidence."""
    denoiser = [module for module in modules if module.component == "denoiser"]
    for rule in _BASES:
        module = rule.find(denoiser)
        if module is not None:
            size = f" takes {module.inputs} channels" if module.inputs else ""
            evidence.append(f"{module.name}{size}: {rule.base}")
            if rule.base == "flux1":
                evidence.append("FLUX.1 and Chroma LoRAs name the same modules")
            return rule.base
    encoders = {module.component: module for module in modules if module.component != "denoiser"}
    if "text_encoder_2" in encoders and (not denoiser or any(_UNET_BLOCK.match(module.flat) for module in denoiser)):
        evidence.append(f"{encoders['text_encoder_2'].name} of the second text encoder: sdxl")
        return "sdxl"
    if not denoiser and any(module.inputs == 1024 for module in encoders.values()):
        evidence.append("text encoder of 1024 channels: sd2")
        return "sd2"
    return None

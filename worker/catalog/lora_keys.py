"""What the keys of a LoRA file say: which module of which component each tensor changes, and the part it plays there.

Every trainer spells the same thing in its own way. This page undoes the spelling of whole keys (prefixes, adapter
names, `lora_down` for `lora_A`); what the modules themselves are called, the engine asks the loaded model.

| dialect | a key |
|---|---|
| kohya | `lora_unet_down_blocks_0_…_to_q.lora_down.weight`, `lora_te1_text_model_….alpha` |
| LyCORIS | `lycoris_transformer_blocks_0_attn_to_q.lokr_w1` |
| diffusers | `unet.….to_q.lora_A.weight`, `unet.….attn1.processor.to_q_lora.down.weight` |
| peft | `base_model.model.….to_q.lora_A.default.weight` |
| ComfyUI | `diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight` |
| xlabs | `double_blocks.0.processor.qkv_lora1.down.weight` |
| bare | `transformer_blocks.0.attn.to_q.lora_A.weight` |
"""

import json
import re
from collections.abc import Iterable, Mapping

from pydantic import JsonValue

from worker.core.lora import DENOISER, LoraKeys, ModuleKeys, Scaling

# Stripped in this order, the first alone any number of times. A flat prefix goes with underscored module names.
_WRAPPER = "base_model.model."
_PREFIXES: tuple[tuple[str, str], ...] = (
    ("lora_te3_", "text_encoder_3"), ("lora_te2_", "text_encoder_2"), ("lora_te1_", "text_encoder"),
    ("lora_te_", "text_encoder"), ("lora_unet_", DENOISER), ("lora_prior_unet_", DENOISER),
    ("lora_transformer_", DENOISER), ("lycoris_text_model_", "text_encoder"), ("lycoris_", DENOISER),
    ("text_encoder_3.", "text_encoder_3"), ("text_encoder_2.", "text_encoder_2"), ("text_encoder.", "text_encoder"),
    ("text_encoders.clip_l.transformer.", "text_encoder"), ("text_encoders.clip_g.transformer.", "text_encoder_2"),
    ("text_encoders.t5xxl.transformer.", "text_encoder_3"), ("text_model.", "text_encoder"),
    ("model.diffusion_model.", DENOISER), ("diffusion_model.", DENOISER), ("conditional_transformer.", DENOISER),
    ("transformer.", DENOISER), ("unet.", DENOISER),
)  # fmt: skip
_KEPT = ("text_model.", "lycoris_text_model_")  # prefixes that are also the beginning of the module's name

# `.default` and the like: the name of the adapter, which peft writes into its keys.
_PAIR = re.compile(
    r"^(?P<stem>.+?)(?:"
    r"\.lora_(?P<side>A|B|down|up|mid)(?:\.(?!weight$|bias$)[\w-]+)?(?:\.(?P<leaf>weight|bias))?"
    r"|\.lora(?:_linear_layer)?\.(?P<dotted>down|up)\.weight"
    r"|_lora(?P<stream>[12]?)\.(?P<processor>down|up)\.weight"
    r")$"
)
_SINGLE = re.compile(
    r"^(?P<stem>.+?)\.(?P<role>"
    r"alpha|dora_scale|lora_magnitude_vector|diff_b|diff|w_norm|b_norm|on_input|oft_blocks|rescale"
    r"|hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2"
    r")(?:\.(?!weight$)[\w-]+)?(?:\.weight)?$"
)
_GLORA = re.compile(r"^(?P<stem>.+)\.(?P<role>a1|a2|b1|b2|bm)\.weight$")
_EMBEDDING = re.compile(r"^bundle_emb\.(?P<token>.+?)\.(?:string_to_param\.)?(?P<part>\*|[^.]+)$")
_PROCESSOR_END = re.compile(r"_lora([12]?)$")
_SIDES = {"A": "down", "B": "up"}
_ROLES = {"lora_magnitude_vector": "dora_scale", "w_norm": "diff", "b_norm": "diff_b"}

# What nothing here can apply, by what its keys hold; read before anything is loaded.
_REFUSED: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("BOFT", re.compile(r"\.boft_[RrSs]\b|\.boft_blocks$")),
    ("peft's OFT", re.compile(r"\.oft_[rR]\b")),
    ("the old OFT layout", re.compile(r"\.oft_diag$")),
    ("VeRA", re.compile(r"\.vera_lambda_[bd]")),
    ("a LoRA that replaces whole weights", re.compile(r"\.(?:set_weight|reshape_weight)$")),
)
# The tensors that an algorithm cannot do without; the first that a module has names it. Differences go with any.
_ALGORITHMS: tuple[tuple[str, frozenset[str]], ...] = (
    ("lora", frozenset({"down", "up"})),
    ("loha", frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"})),
    ("lokr", frozenset({"lokr_w1", "lokr_w2"})),
    ("glora", frozenset({"a1", "a2", "b1", "b2"})),
    ("ia3", frozenset({"weight", "on_input"})),
    ("oft", frozenset({"oft_blocks"})),
)
_OPTIONAL: Mapping[str, frozenset[str]] = {
    "lora": frozenset({"mid", "up_bias", "alpha", "dora_scale"}),
    "loha": frozenset({"hada_t1", "hada_t2", "alpha", "dora_scale"}),
    "lokr": frozenset({"lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "alpha", "dora_scale"}),
    "glora": frozenset({"bm", "alpha"}),
    "ia3": frozenset(),
    "oft": frozenset({"rescale", "alpha"}),
}
_DIFFERENCES = frozenset({"diff", "diff_b"})


def read_keys(shapes: Mapping[str, tuple[int, ...]]) -> LoraKeys:
    """Sort the tensors of a LoRA file, given by name and shape, by module and role."""
    refused = next((name for name, mark in _REFUSED if any(map(mark.search, shapes))), None)
    if refused is None and any(name.endswith(".oft_blocks") and len(shape) == 4 for name, shape in shapes.items()):
        refused = "BOFT"
    grouped: dict[tuple[str, str], dict[str, str]] = {}
    embeddings: dict[str, dict[str, str]] = {}
    unknown: list[str] = []
    ia3 = {key.removesuffix(".on_input") for key in shapes if key.endswith(".on_input")}
    for key in shapes:
        embedding = _EMBEDDING.match(key)
        if embedding:
            embeddings.setdefault(embedding["token"], {})[embedding["part"]] = key
            continue
        found = (key.removesuffix(".weight"), "weight") if key.removesuffix(".weight") in ia3 else _split(key)
        if found is None:
            unknown.append(key)
            continue
        stem, role = found
        grouped.setdefault(_place(stem), {})[role] = key
    modules = tuple(ModuleKeys(component, name, keys, _algorithm(keys)) for (component, name), keys in grouped.items())
    return LoraKeys(modules, embeddings, tuple(unknown), refused)


def _algorithm(keys: Mapping[str, str]) -> str | None:
    """What the tensors of these roles are a change of; None when they are no complete one."""
    held = set(keys)
    # A LoKr factor is there whole, or as two halves.
    held |= {whole for whole in ("lokr_w1", "lokr_w2") if {f"{whole}_a", f"{whole}_b"} <= held}
    for name, needed in _ALGORITHMS:
        if needed <= held:
            if not held <= needed | _OPTIONAL[name] | _DIFFERENCES:
                return None
            if "dora_scale" in held:
                return "dora" if name == "lora" else f"{name}+dora"
            return name
    return "full" if held and held <= _DIFFERENCES else None


def _split(key: str) -> tuple[str, str] | None:
    """A key as the module's spelling and the tensor's role."""
    if match := _PAIR.match(key):
        side = match["side"] or match["dotted"] or match["processor"]
        role = _SIDES.get(side, side)
        if match["leaf"] == "bias":
            role = f"{role}_bias"
        return match["stem"] + (match["stream"] or ""), role
    if match := _SINGLE.match(key) or _GLORA.match(key):
        return _PROCESSOR_END.sub(r"\1", match["stem"]), _ROLES.get(match["role"], match["role"])
    return None


def _place(stem: str) -> tuple[str, str]:
    """The component and the module's name in it."""
    while stem.startswith(_WRAPPER):
        stem = stem.removeprefix(_WRAPPER)
    for prefix, component in _PREFIXES:
        if stem.startswith(prefix):
            name = stem if prefix in _KEPT else stem.removeprefix(prefix)
            return component, name.removeprefix("lycoris_").replace(".processor", "").lstrip("_.")
    return DENOISER, stem.replace(".processor", "")


def read_scaling(metadata: Mapping[str, str], adapter_config: Mapping[str, JsonValue] | None = None) -> Scaling:
    """The scaling in a file's metadata (diffusers), or in the adapter_config.json beside it (peft)."""
    flat = _json_object(metadata.get("lora_adapter_metadata", "")) or {}
    settings: dict[str, dict[str, JsonValue]] = {}
    for key, value in flat.items():
        component, _, name = key.partition(".")
        settings.setdefault(component, {})[name] = value
    if adapter_config and not settings:
        settings[""] = dict(adapter_config)
    return Scaling(settings)


def trigger_words(metadata: Mapping[str, str], embeddings: Iterable[str] = ()) -> tuple[str, ...]:
    """The words that a file says will call up what it was trained on; its own tokens among them."""
    phrase = metadata.get("modelspec.trigger_phrase", "")
    words = [word.strip()[:100] for word in phrase.split(",") if word.strip()]
    return tuple(dict.fromkeys([*words, *embeddings]))[:16]


def _json_object(text: str) -> dict[str, JsonValue] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None

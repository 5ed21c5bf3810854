"""Keys of a LoRA file: the component and module that each tensor changes, and the tensor's role there.

Every trainer spells the same thing in its own way. This module undoes the spelling of whole keys (prefixes, adapter
names, `lora_down` for `lora_A`). The engine asks the loaded model for the names of the modules themselves.

| dialect | a key |
|---|---|
| kohya | `lora_unet_down_blocks_0_…_to_q.lora_down.weight`, `lora_te1_text_model_….alpha` |
| LyCORIS | `lycoris_transformer_blocks_0_attn_to_q.lokr_w1` |
| diffusers | `unet.….to_q.lora_A.weight`, `unet.….attn1.processor.to_q_lora.down.weight` |
| peft | `base_model.model.….to_q.lora_A.default.weight` |
| ComfyUI | `diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight` |
| xlabs | `double_blocks.0.processor.qkv_lora1.down.weight` |
| omi | `clip_l.text_model.….self_attn.q_proj.lora_down.weight`, `transformer.double_blocks.0.img_attn.qkv.0.…` |
| bare | `transformer_blocks.0.attn.to_q.lora_A.weight` |

What wrapped the model while it was trained (peft, torch.compile, data parallelism) is stripped wherever it stands.
"""

import re
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from functools import lru_cache

from pydantic import JsonValue

from worker.core.json_text import parse_bounded
from worker.core.lora import DENOISER, LoraKeys, ModuleKeys, Scaling
from worker.core.wrappers import AROUND_ANY, PARALLEL, PEFT_MODEL

# Spellings by their names; the first that a file uses names it.
DIALECTS = ("xlabs", "kohya", "peft", "comfy", "omi", "diffusers", "bare")

# Wrappers around the whole model or a component: peft's and that of data parallelism; kohya writes `_` for dots.
_WRAPPERS = re.compile(rf"^(?:(?:{re.escape(PEFT_MODEL)}|{PARALLEL})\.)+")
_FLAT_WRAPPERS = re.compile(rf"^_*(?:(?:{PEFT_MODEL.replace('.', '_')}|{PARALLEL})_)+")
# Wrappers around any module, in flat names too.
_INNER_WRAPPERS = re.compile(rf"(?:^|(?<=[._]))(?:{'|'.join(AROUND_ANY)})(?:[._]|$)")
# The start of a key, its component, and the dialect of that spelling; the first that fits is stripped.
# `conditional_transformer.` is of Ideogram 4, `lora_prior_unet_` of Stable Cascade's prior. LyCORIS puts `lycoris_`
# before the modules of whatever it wraps, and only text encoders have a `text_model`.
PREFIXES: tuple[tuple[str, str, str], ...] = (
    ("lora_te4_", "text_encoder_4", "kohya"), ("lora_te3_", "text_encoder_3", "kohya"),
    ("lora_te2_", "text_encoder_2", "kohya"),
    ("lora_te1_", "text_encoder", "kohya"), ("lora_te_", "text_encoder", "kohya"),
    ("lora_unet_", DENOISER, "kohya"), ("lora_prior_unet_", DENOISER, "kohya"),
    ("lora_transformer_", DENOISER, "kohya"), ("lycoris_text_model_", "text_encoder", "kohya"),
    ("lycoris_", DENOISER, "kohya"),
    ("text_encoder_3.", "text_encoder_3", "diffusers"), ("text_encoder_2.", "text_encoder_2", "diffusers"),
    ("text_encoder.", "text_encoder", "diffusers"), ("conditional_transformer.", DENOISER, "diffusers"),
    ("transformer.", DENOISER, "diffusers"), ("unet.", DENOISER, "diffusers"),
    ("text_encoders.clip_l.transformer.", "text_encoder", "comfy"),
    ("text_encoders.clip_g.transformer.", "text_encoder_2", "comfy"),
    ("text_encoders.t5xxl.transformer.", "text_encoder_3", "comfy"),
    ("model.diffusion_model.", DENOISER, "comfy"), ("diffusion_model.", DENOISER, "comfy"),
    ("text_embedding_projection.", "connectors", "comfy"), ("connectors.", "connectors", "diffusers"),
    ("clip_l.", "clip_l", "omi"), ("clip_g.", "text_encoder_2", "omi"), ("t5.", "text_encoder_3", "omi"),
    ("llama.", "text_encoder_4", "omi"),
    ("text_model.", "text_encoder", "bare"),
)  # fmt: skip
# Of these prefixes the end is the beginning of the module's name.
_MODULE_STARTS = {"lycoris_text_model_": "text_model_", "text_model.": "text_model."}

# `.default` and the like: the name of the adapter, which peft writes into its keys. A quantized model of Nunchaku has
# `lora_down` without `.weight`, and is no LoRA.
_PAIR = re.compile(
    r"^(?P<stem>.+?)(?:"
    r"\.lora_(?P<side>A|B|down|up|mid)(?:\.(?!weight$|bias$)[\w-]+)?\.(?P<leaf>weight|bias)"
    r"|\.lora_(?P<bare>A|B)(?:\.(?!weight$|bias$)[\w-]+)?"
    r"|\.lora(?:_linear_layer)?\.(?P<dotted>down|up)\.weight"
    r"|(?:(?<=_lora)|(?<=_lora[12]))\.(?P<processor>down|up)\.weight"
    r")$"
)
_SINGLE = re.compile(
    r"^(?P<stem>.+?)\.(?P<role>"
    r"alpha|dora_scale|lora_magnitude_vector|diff_b|diff_m|diff|w_norm|b_norm|on_input|oft_blocks|rescale"
    r"|hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2"
    r")(?:\.(?!weight$)[\w-]+)?(?:\.weight)?$"
)
_GLORA = re.compile(r"^(?P<stem>.+)\.(?P<role>a1|a2|b1|b2|bm)\.weight$")
_EMBEDDING = re.compile(r"^bundle_emb\.(?P<token>.+?)\.(?:string_to_param\.)?(?P<part>\*|[^.]+)$")
_PROCESSOR_END = re.compile(r"_lora([12]?)$")
_XLABS = re.compile(r"\.processor\d?\.(?:proj|qkv)_lora[12]?$")
_SIDES = {"A": "down", "B": "up"}
_ROLES = {"lora_magnitude_vector": "dora_scale", "w_norm": "diff", "b_norm": "diff_b"}
# A layer that was trained as a whole beside a LoRA (peft's modules_to_save), and a layer's bias (peft's bias="all").
_WHOLE = re.compile(
    r"^(?P<stem>.+?)(?:\.modules_to_save(?:\.[\w-]+)?|\.base_layer(?=\.bias$))?\.(?P<leaf>weight|bias)$"
)
_WHOLE_ROLES = {"weight": "whole", "bias": "whole_bias"}
_UNTRAINED = ".original_module."  # the layer as it was, beside one of modules_to_save

# Algorithms that cannot be applied here, by their keys; checked before anything is loaded.
_REFUSED: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("BOFT", re.compile(r"\.boft_[RrSs]\b|\.boft_blocks$")),
    ("peft's OFT", re.compile(r"\.oft_[rR]\b")),
    ("the old OFT layout", re.compile(r"\.oft_diag$")),
    ("VeRA", re.compile(r"\.vera_lambda_[bd]")),
    ("a LoRA that replaces whole weights", re.compile(r"\.(?:set_weight|reshape_weight)$")),
)
# Without one of these no key of a file says anything here: a checkpoint's thousands of keys are not looked at singly.
_MARKS = (
    ".lora", "_lora", ".alpha", ".dora_scale", ".diff.", ".diff\n", ".diff_b", ".diff_m", ".w_norm", ".b_norm",
    ".on_input", ".oft_", ".rescale", ".hada_", ".lokr_", ".a1.weight\n", ".a2.weight\n", ".b1.weight\n",
    ".b2.weight\n", ".bm.weight\n", "bundle_emb.", ".boft_", ".vera_", ".set_weight", ".reshape_weight",
)  # fmt: skip
_DIFFERENCES = frozenset({"diff", "diff_b"})
# An algorithm's tensors: those it needs, and those that may be beside. The first match is the module's algorithm.
_ALGORITHMS = tuple(
    (name, frozenset(needed.split()), _DIFFERENCES.union(needed.split(), optional.split()))
    for name, needed, optional in (
        ("lora", "down up", "mid up_bias alpha dora_scale whole_bias"),
        ("loha", "hada_w1_a hada_w1_b hada_w2_a hada_w2_b", "hada_t1 hada_t2 alpha dora_scale"),
        ("lokr", "lokr_w1 lokr_w2", "lokr_w1_a lokr_w1_b lokr_w2_a lokr_w2_b lokr_t2 alpha dora_scale"),
        ("glora", "a1 a2 b1 b2", "bm alpha"),
        ("ia3", "weight on_input", ""),
        ("oft", "oft_blocks", "rescale alpha"),
        ("whole", "whole", "whole_bias"),
        ("whole", "whole_bias", ""),
    )
)


def read_keys(shapes: Mapping[str, tuple[int, ...]]) -> LoraKeys:
    """Sort the tensors of a LoRA file, given by name and shape, by module and role."""
    return _read_keys(tuple(shapes.items()))


@lru_cache(maxsize=4)  # what a file is asks for its keys, and then its reader does
def _read_keys(named: tuple[tuple[str, tuple[int, ...]], ...]) -> LoraKeys:
    shapes = dict(named)
    names = "\n".join((*shapes, ""))
    if not any(mark in names for mark in _MARKS):
        return LoraKeys((), {}, tuple(shapes), None, "bare")
    return _sort_keys(shapes)


def _sort_keys(shapes: Mapping[str, tuple[int, ...]]) -> LoraKeys:
    """Sort the tensors of a file, of which some are a LoRA's, one by one."""
    refused = next((name for name, mark in _REFUSED if any(map(mark.search, shapes))), None)
    if refused is None and any(name.endswith(".oft_blocks") and len(shape) == 4 for name, shape in shapes.items()):
        refused = "BOFT"
    grouped: dict[tuple[str, str], dict[str, str]] = {}
    spellings: dict[tuple[str, str], str] = {}
    dialects: set[str] = set()
    embeddings: dict[str, dict[str, str]] = {}
    unknown: list[str] = []
    ia3 = {key.removesuffix(".on_input") for key in shapes if key.endswith(".on_input")}
    for key in shapes:
        if embedding := _EMBEDDING.match(key):
            embeddings.setdefault(embedding["token"], {})[embedding["part"]] = key
        elif parts := _split(key, ia3):
            stem, role = parts
            target, spelling, dialect = _target(stem)
            grouped.setdefault(target, {})[role] = key
            spellings.setdefault(target, spelling)
            dialects.add(dialect)
        else:
            unknown.append(key)
    unknown = _take_whole_layers(unknown, grouped, spellings)
    modules = tuple(
        ModuleKeys(*target, keys, _algorithm(keys), spellings[target], *_widths(keys, shapes))
        for target, keys in grouped.items()
    )
    dialect = next((name for name in DIALECTS if name in dialects), "bare")
    return LoraKeys(modules, embeddings, tuple(unknown), refused, dialect)


def _take_whole_layers(
    unknown: list[str], grouped: dict[tuple[str, str], dict[str, str]], spellings: dict[tuple[str, str], str]
) -> list[str]:
    """Give the tensors of whole layers beside a LoRA their roles in `grouped`; return the keys that are still unknown.

    Plain weights mean that only in such a file: elsewhere they are a checkpoint's.
    """
    if not any({"down", "up"} <= keys.keys() for keys in grouped.values()):
        return unknown
    rest = []
    for key in unknown:
        match = _WHOLE.match(key)
        if _UNTRAINED in key:
            continue
        if match is None or ".base_layer" in match["stem"]:
            rest.append(key)
            continue
        target, spelling, _ = _target(match["stem"])
        grouped.setdefault(target, {})[_WHOLE_ROLES[match["leaf"]]] = key
        spellings.setdefault(target, spelling)
    return rest


def _algorithm(keys: Mapping[str, str]) -> str | None:
    """Return the algorithm that tensors of these roles make up; None when they are no complete one."""
    roles = set(keys)
    # A LoKr factor is there whole, or as two halves.
    roles |= {whole for whole in ("lokr_w1", "lokr_w2") if {f"{whole}_a", f"{whole}_b"} <= roles}
    for name, needed, allowed in _ALGORITHMS:
        if needed <= roles:
            if not roles <= allowed:
                return None
            if "dora_scale" in roles:
                return "dora" if name == "lora" else f"{name}+dora"
            return name
    return "full" if roles and roles <= _DIFFERENCES else None


def _split(key: str, ia3: AbstractSet[str]) -> tuple[str, str] | None:
    """Split a key into the module's spelling and the tensor's role; `ia3` are the modules whose weight is a gain."""
    stem = key.removesuffix(".weight")
    if stem in ia3:
        return stem, "weight"
    if match := _PAIR.match(key):
        side = match["side"] or match["bare"] or match["dotted"] or match["processor"]
        role = _SIDES.get(side, side)
        return match["stem"], f"{role}_bias" if match["leaf"] == "bias" else role
    if match := _SINGLE.match(key) or _GLORA.match(key):
        if match["role"] == "diff_m":  # of Wan's `modulation`, a table and no layer
            return f"{match['stem']}.modulation", "diff"
        return match["stem"], _ROLES.get(match["role"], match["role"])
    return None


def _target(stem: str) -> tuple[tuple[str, str], str, str]:
    """Return component and module name, the name as it is spelled, and the dialect of the spelling."""
    plain = _INNER_WRAPPERS.sub("", stem)
    stripped = _WRAPPERS.sub("", plain)
    prefix, component, dialect = next((row for row in PREFIXES if stripped.startswith(row[0])), ("", DENOISER, "bare"))
    if "base_model." in plain.removesuffix(stripped):
        dialect = "peft"
    if _XLABS.search(stem):
        dialect = "xlabs"
    wrappers = _FLAT_WRAPPERS if dialect == "kohya" else _WRAPPERS
    spelling = _MODULE_STARTS.get(prefix, "") + wrappers.sub("", stripped.removeprefix(prefix))
    name = _PROCESSOR_END.sub(r"\1", spelling).replace(".processor", "")
    return (component, name.lstrip("_.") if prefix else name), spelling, dialect


def _widths(keys: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> tuple[int | None, int | None]:
    """Return a module's input and output channels, by the shapes of its tensors; None where they do not show."""
    sizes = {role: shapes[key] for role, key in keys.items() if len(shapes[key]) > 1}
    if {"a1", "a2", "b1", "b2"} <= sizes.keys():  # the other of each two has the rank there, in both layouts of GLoRA
        return max(sizes["a1"][0], sizes["a2"][0]), max(sizes["b1"][0], sizes["b2"][0])
    factors = [sizes.get(f"{factor}_b", sizes.get(factor)) for factor in ("lokr_w1", "lokr_w2")]
    if factors[0] and factors[1]:
        return factors[0][1] * factors[1][1], None
    inputs = next((sizes[role][1] for role in ("down", "hada_w1_b", "diff") if role in sizes), None)
    return inputs, next((sizes[role][0] for role in ("up", "diff") if role in sizes), None)


def read_scaling(metadata: Mapping[str, str], adapter_config: Mapping[str, JsonValue] | None = None) -> Scaling:
    """Return the scaling in a file's metadata (diffusers), or in the adapter_config.json beside it (peft)."""
    flat = _json_object(metadata.get("lora_adapter_metadata", "")) or {}
    settings: dict[str, dict[str, JsonValue]] = {}
    for key, value in flat.items():
        component, _, name = key.partition(".")
        settings.setdefault(component, {})[name] = value
    if adapter_config and not settings:
        settings[""] = dict(adapter_config)
    return Scaling(settings)


def trigger_words(metadata: Mapping[str, str], embeddings: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the file's trigger words, which call up its subject, and the tokens of its embeddings; at most 16."""
    phrase = metadata.get("modelspec.trigger_phrase", "")
    words = [word.strip()[:100] for word in phrase.split(",") if word.strip()]
    return tuple(dict.fromkeys([*words, *embeddings]))[:16]


def _json_object(text: str) -> dict[str, JsonValue] | None:
    try:
        value = parse_bounded(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None

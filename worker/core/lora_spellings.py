"""Spellings in which a LoRA file is written: the way out of `catalog/lora_keys.py`.

| spelling | a key | read by |
|---|---|---|
| kohya | `lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight`, `….alpha` | sd-scripts, web UIs, ComfyUI |
| comfy | `diffusion_model.double_blocks.0.img_attn.qkv.lora_down.weight`, `….alpha` | ComfyUI |
| omi | `transformer.double_blocks.0.img_attn.qkv.0.lora_down.weight`, `….alpha` | OneTrainer |
| diffusers | `transformer.transformer_blocks.0.attn.to_q.lora_A.weight`, alphas in the metadata | diffusers |
| peft | `base_model.model.transformer_blocks.0.attn.to_q.lora_A.weight`, alphas in adapter_config.json | peft |

The first three name modules as the model's own code does, the last two as diffusers does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from worker.core.single_file import EncoderKind

SpellingName = Literal["kohya", "comfy", "omi", "diffusers", "peft"]

_DOWN_UP = {"down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight"}
_A_B = {
    "down": "lora_A.weight",
    "up": "lora_B.weight",
    "up_bias": "lora_B.bias",
    "dora_scale": "lora_magnitude_vector",
}
_WITH_WEIGHT = frozenset({"a1", "a2", "b1", "b2", "bm"})  # GLoRA's, which are layers
# Plain roles of trainers' files: a role is its own ending there.
_TRAINERS = frozenset({
    "alpha", "dora_scale", "diff", "diff_b", "weight", "on_input", "oft_blocks", "rescale", *_WITH_WEIGHT,
    *(f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")),
    *(f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")),
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Spelling:
    """How the keys of a file are put together, and which tensors such a file can hold."""

    name: SpellingName
    denoiser: str  # before the denoiser's modules; `{}` is its name in the pipeline
    ends: Mapping[str, str]  # role -> the end of the key
    roles: frozenset[str]  # roles that are their own ends
    original: bool  # whether modules have the names of the model's own code
    flat: bool = False  # whether dots of the module's name are underscores
    fuses: bool = True  # whether parts of a layer that the original fuses are put together

    def holds(self, role: str) -> bool:
        """True if such a file has a place for tensors of this role."""
        return role in self.ends or role in self.roles

    def key(self, prefix: str, module: str, role: str) -> str:
        """Return the key of one tensor."""
        end = self.ends.get(role) or (f"{role}.weight" if role in _WITH_WEIGHT else role)
        return f"{prefix}{module.replace('.', '_') if self.flat else module}.{end}"


SPELLINGS: Mapping[SpellingName, Spelling] = {
    spelling.name: spelling
    for spelling in (
        Spelling("kohya", "lora_unet_", _DOWN_UP, _TRAINERS, original=True, flat=True),
        Spelling("comfy", "diffusion_model.", _DOWN_UP, _TRAINERS, original=True),
        Spelling("omi", "{}.", _DOWN_UP, _TRAINERS, original=True, fuses=False),
        Spelling("diffusers", "{}.", _A_B, frozenset({"alpha"}), original=False),
        Spelling("peft", "base_model.model.", _A_B, frozenset({"alpha"}), original=False),
    )
}
_KOHYA_NUMBERS = {"clip": ("1", "2"), "t5": ("3", "3"), "llm": ("4", "4")}  # of the first encoder, and of the second
_BY_KIND: Mapping[SpellingName, Mapping[tuple[EncoderKind, bool], str]] = {
    "comfy": {
        ("clip", False): "text_encoders.clip_l.transformer.",
        ("clip", True): "text_encoders.clip_g.transformer.",
        ("t5", False): "text_encoders.t5xxl.transformer.",
        ("t5", True): "text_encoders.t5xxl.transformer.",
    },
    "omi": {("clip", False): "clip_l.", ("clip", True): "clip_g.", ("t5", False): "t5.", ("t5", True): "t5."},
}


def encoder_prefix(spelling: Spelling, component: str, kind: EncoderKind, *, alone: bool) -> str | None:
    """Return what stands before a text encoder's modules, None where such a file has no place for it.

    `component` is its name in the pipeline; `alone` is true where the pipeline has no other text encoder.
    """
    is_second = component == "text_encoder_2"
    if spelling.name == "diffusers":
        return f"{component}."
    if spelling.name == "kohya":
        return "lora_te_" if alone else f"lora_te{_KOHYA_NUMBERS[kind][is_second]}_"
    return _BY_KIND.get(spelling.name, {}).get((kind, is_second))

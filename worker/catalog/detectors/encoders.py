"""The tables of autoencoders and text encoders in files of their own, each with the class that reads it."""

from dataclasses import dataclass

from worker.catalog.architectures import ARCHITECTURES
from worker.catalog.conditions import (
    Condition,
    all_of,
    any_of,
    dimension,
    has_all,
    has_any,
    has_prefix,
    none_of,
    shape_is,
    under,
)
from worker.core.model import Kind, TensorIndex


@dataclass(frozen=True, slots=True)
class Encoder:
    """One autoencoder or text encoder."""

    kind: Kind
    variant: str
    condition: Condition
    component_class: str | None

    @property
    def architecture(self) -> str | None:
        """The one family that uses it; None where several do, or where the family is unknown."""
        return next((row.id for row in ARCHITECTURES if self.variant in row.autoencoders), None)


_VAE = ("", "first_stage_model.", "vae.")
_KL = under(_VAE, all_of(
    has_any("decoder.conv_in.weight"), has_any("encoder.conv_in.weight"),
    has_any("decoder.mid.block_1.norm1.weight", "decoder.mid_block.resnets.0.norm1.weight"),
))  # fmt: skip
# AutoencoderTiny in its authors' names, whose layers are all 64 wide (those for video are wider and have time), or in
# diffusers'. The authors publish each half in a file of its own too, with nothing before the layers' numbers.
_TINY_ENCODER = any_of(
    under(("taesd_encoder.", "encoder.", ""), all_of(shape_is("0.weight", 64, 3, 3, 3), has_all("1.conv.0.weight"))),
    has_all("encoder.layers.0.weight", "encoder.layers.1.conv.0.weight"),
)
_TINY_DECODER = any_of(
    under(("taesd_decoder.", "decoder.", ""), all_of(dimension("1.weight", 0, 64), has_all("3.conv.0.weight"))),
    has_all("decoder.layers.0.weight", "decoder.layers.2.conv.0.weight"),
)
TINY_ENCODER = "tiny-encoder"  # the variant of a file that can decode nothing
_PLAIN_3D = has_any("encoder.conv1.weight", "encoder.downsamples.0.residual.0.gamma")

_TIMED = has_any(
    "decoder.timestep_scale_multiplier", "decoder.up_blocks.0.time_embedder.timestep_embedder.linear_1.weight"
)


def _latents(channels: int) -> Condition:
    return under(_VAE, dimension("decoder.conv_in.weight", 1, channels))


def _vae(variant: str, condition: Condition, name: str | None) -> Encoder:
    return Encoder(Kind.VAE, variant, condition, name)


_BATCH_NORM = has_any("bn.running_mean", "vae.bn.running_mean", "first_stage_model.bn.running_mean")
_CAUSAL = under(_VAE, has_any("decoder.conv_in.conv.weight"))

VAES: tuple[Encoder, ...] = (
    _vae("flux2-32", all_of(_KL, _BATCH_NORM), "AutoencoderKLFlux2"),
    _vae("kl-4", all_of(_KL, _latents(4)), "AutoencoderKL"),
    _vae("kl-16", all_of(_KL, _latents(16)), "AutoencoderKL"),
    _vae("kl-8", all_of(_KL, _latents(8)), "AutoencoderKL"),
    _vae("kl-32", all_of(_KL, _latents(32)), "AutoencoderKL"),
    # Wan's own layout; Qwen-Image's autoencoder has the same names and shapes
    _vae("wan-16", under(_VAE, any_of(
        all_of(dimension("decoder.conv1.weight", 1, 16), _PLAIN_3D),
        all_of(dimension("decoder.conv_in.weight", 1, 16), has_any("decoder.mid_block.resnets.0.norm1.gamma")),
    )), "AutoencoderKLWan"),
    _vae("wan-48", under(_VAE, any_of(
        dimension("decoder.conv1.weight", 1, 48), dimension("decoder.conv_in.weight", 1, 48),
    )), "AutoencoderKLWan"),
    # of Wan 2.2's names, for images: its convolutions have no time
    _vae("qwen-image-64", under(_VAE, all_of(
        dimension("decoder.conv_in.weight", 1, 64), has_any("decoder.mid_block.resnets.0.norm1.gamma"),
    )), "AutoencoderKLQwenImage21"),
    # LTX-Video and LTX-2 share the width; LTX-Video's first has norms where its blocks widen
    _vae("ltx-video-128", under(_VAE, all_of(dimension("decoder.conv_in.conv.weight", 1, 128), has_any(
        "decoder.up_blocks.4.norm3.norm.weight", "decoder.up_blocks.2.conv_in.norm3.weight",
    ))), "AutoencoderKLLTXVideo"),
    # LTX-Video's later ones take the time step, LTX-2's does not
    _vae("ltx-video-timed-128", under(_VAE, all_of(dimension("decoder.conv_in.conv.weight", 1, 128), _TIMED)),
         "AutoencoderKLLTXVideo"),
    _vae("ltx2-128", under(_VAE, all_of(dimension("decoder.conv_in.conv.weight", 1, 128), has_any(
        "decoder.up_blocks.6.res_blocks.0.conv1.conv.weight", "decoder.up_blocks.2.resnets.0.conv1.conv.weight",
    ), none_of(_TIMED))), "AutoencoderKLLTX2Video"),
    _vae("hunyuan-video-16", all_of(_CAUSAL, under(_VAE, dimension("decoder.conv_in.conv.weight", 1, 16)), under(
        _VAE, has_any("decoder.mid.block_1.conv1.conv.weight", "decoder.mid_block.resnets.0.conv1.conv.weight"))
    ), "AutoencoderKLHunyuanVideo"),
    _vae("dc-32", under(_VAE, any_of(
        has_any(
            "decoder.stages.1.op_list.0.main.conv.conv.bias", "decoder.stages.0.0.main.conv.conv.bias",
            "encoder.project_in.conv.bias",
        ),
        all_of(dimension("decoder.conv_in.weight", 1, 32), has_any("encoder.down_blocks.0.0.conv1.weight")),
    )), "AutoencoderDC"),
    _vae("tiny", all_of(_TINY_DECODER, _TINY_ENCODER), "AutoencoderTiny"),
    _vae("tiny-decoder", _TINY_DECODER, "AutoencoderTiny"),
    _vae(TINY_ENCODER, _TINY_ENCODER, "AutoencoderTiny"),
    _vae("an autoencoder", under(_VAE, has_any(
        "decoder.conv_in.weight", "decoder.conv1.weight", "decoder.conv_in.conv.weight",
        "decoder.middle.0.residual.0.gamma",
    )), None),
)  # fmt: skip

_TEXT = (
    "",
    "model.",
    "transformer.",
    "language_model.model.",
    "model.language_model.",
    "text_encoder.",
    "text_encoders.",
)
_CLIP = "text_model.encoder.layers.0.self_attn.q_proj.weight"
_BARE_CLIP = "encoder.layers.0.self_attn.q_proj.weight"  # as transformers 5 saves it
_OPEN_CLIP = "transformer.resblocks.0.attn.in_proj_weight"
_T5 = "encoder.block.0.layer.0.SelfAttention.q.weight"
_T5_GGUF = "enc.blk.0.attn_q.weight"
_LLM = "layers.0.self_attn.q_proj.weight"
_LLM_GGUF = "blk.0.attn_q.weight"
_EMBED, _EMBED_GGUF = "embed_tokens.weight", "token_embd.weight"
_Q_NORM = has_any("layers.0.self_attn.q_norm.weight", "blk.0.attn_q_norm.weight")
_VISUAL = has_prefix("visual.", "model.visual.", "vision_tower.", "model.vision_tower.", "vision_model.")


_EVERY_BIAS = has_any("encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight")  # T5 has one for all


def _clip(variant: str, width: int, name: str) -> Encoder:
    names = any_of(*(dimension(key, 0, width) for key in (_CLIP, _BARE_CLIP)), dimension(_OPEN_CLIP, 1, width))
    text_only = none_of(has_any("vision_model.encoder.layers.0.self_attn.q_proj.weight"))
    return Encoder(Kind.TEXT_ENCODER, variant, all_of(under(_TEXT, names), text_only), name)


def _t5(variant: str, width: int) -> Encoder:
    names = any_of(dimension(_T5, 1, width), dimension(_T5_GGUF, 1, width))
    return Encoder(Kind.TEXT_ENCODER, variant, under(_TEXT, names), "T5EncoderModel")


def _llm(variant: str, width: int, name: str | None, *conditions: Condition) -> Encoder:
    names = any_of(
        all_of(dimension(_LLM, 1, width), dimension(_EMBED, 1, width)),
        all_of(dimension(_LLM_GGUF, 1, width), dimension(_EMBED_GGUF, 1, width)),
    )
    inner = [part for part in conditions if part is not _SEES and part is not _BLIND]
    outer = [part for part in conditions if part is _SEES or part is _BLIND]
    return Encoder(Kind.TEXT_ENCODER, variant, all_of(under(_TEXT, all_of(names, *inner)), *outer), name)


_SEES, _BLIND = any_of(_VISUAL), none_of(_VISUAL)
_PLAIN = none_of(_Q_NORM)
_NORMED = any_of(_Q_NORM)
_GEMMA = has_any("layers.0.post_feedforward_layernorm.weight", "blk.0.post_ffw_norm.weight")

TEXT_ENCODERS: tuple[Encoder, ...] = (
    _clip("clip-l", 768, "CLIPTextModel"),
    _clip("clip-h", 1024, "CLIPTextModel"),
    _clip("clip-g", 1280, "CLIPTextModelWithProjection"),
    Encoder(
        Kind.TEXT_ENCODER, "umt5-xxl", under(_TEXT, all_of(dimension(_T5, 1, 4096), _EVERY_BIAS)), "UMT5EncoderModel"
    ),
    _t5("t5-xxl", 4096),
    _t5("t5-xl", 2048),
    _t5("byt5-small", 1472),
    _llm("gemma-2-2b", 2304, "Gemma2Model", _GEMMA),
    _llm("gemma-3-12b", 3840, "Gemma3ForConditionalGeneration", _GEMMA),
    _llm("qwen3-4b", 2560, "Qwen3Model", _NORMED),
    _llm("qwen3-8b", 4096, "Qwen3Model", _NORMED),
    _llm("qwen2.5-vl-7b", 3584, "Qwen2_5_VLForConditionalGeneration", _PLAIN, _SEES),
    _llm("qwen2.5-7b", 3584, "Qwen2_5_VLForConditionalGeneration", _PLAIN, _BLIND),
    _llm("mistral-small-24b", 5120, "Mistral3ForConditionalGeneration", _PLAIN),
    _llm("llama-3.1-8b", 4096, "LlamaForCausalLM", _PLAIN),
    _llm("qwen2-1.5b", 1536, None, _PLAIN),
    Encoder(Kind.TEXT_ENCODER, "a language model", under(_TEXT, any_of(
        has_all(_LLM, _EMBED), has_all(_LLM_GGUF, _EMBED_GGUF), has_all(_LLM),
    )), None),
    Encoder(
        Kind.TEXT_ENCODER, "a text encoder", under(_TEXT, has_any(_CLIP, _OPEN_CLIP, _T5, _T5_GGUF, "shared.weight")),
        None,
    ),
)  # fmt: skip


# The decoder's first layer, whose inputs are the latents' channels: of AutoencoderKL, then of AutoencoderTiny.
_FIRST_LAYERS = (
    *("decoder.conv_in.weight", "decoder.layers.0.weight", "decoder.1.weight", "taesd_decoder.1.weight", "1.weight"),
)


def latent_channels(index: TensorIndex) -> int | None:
    """Return the number of latent channels of a VAE's file; None where its first layer is not found."""
    for name in (prefix + layer for prefix in _VAE for layer in _FIRST_LAYERS):
        if name in index.tensors and len(index.tensors[name][1]) == 4:
            return index.tensors[name][1][1]
    return None


def find_encoder(index: TensorIndex) -> tuple[Encoder, tuple[str, ...]] | None:
    """Return the autoencoder or text encoder that the file is, with the evidence; None when it is neither."""
    for row in (*VAES, *TEXT_ENCODERS):
        facts = row.condition.match(index)
        if facts is not None:
            title = "VAE" if row.kind is Kind.VAE else "text encoder"
            return row, (f"{facts[0]}: the {title} {row.variant}", *facts[1:3])
    return None

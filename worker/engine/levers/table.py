"""THE TABLE of levers, in the order in which they are tried: what changes least comes first."""

from worker.engine.levers.attention import cudnn_first, hub_kernel
from worker.engine.levers.caches import cache_dit_blocks, is_for_cache_dit, keeps_features, taylorseer
from worker.engine.levers.compiling import compiling, has_repeated_blocks
from worker.engine.levers.layout import (
    denoiser_channels_last,
    fused,
    fuses,
    has_convolutions,
    tf32,
    vae_channels_last,
)
from worker.engine.levers.row import Lever

_FA3_APPLIES, _FA3 = hub_kernel("_flash_3_hub", "kernels-community/flash-attn3")
_SAGE_APPLIES, _SAGE = hub_kernel("sage_hub", "SageAttention/sage-attention")

LEVERS: tuple[Lever, ...] = (
    Lever(
        "tf32",
        "exact",
        "products of float32, the VAE's for example, in TF32",
        applies=lambda ground: ground.device == "cuda" and ground.capability >= (8, 0),
        on=tf32,
    ),
    Lever(
        "vae-channels-last",
        "exact",
        "the VAE's convolutions with their channels last",
        applies=lambda ground: ground.is_whole and hasattr(ground.pipe, "vae"),
        on=vae_channels_last,
    ),
    Lever(
        "channels-last",
        "exact",
        "a UNet's convolutions with their channels last",
        applies=lambda ground: ground.is_whole and ground.is_plain and has_convolutions(ground),
        on=denoiser_channels_last,
        scope="pipeline",
    ),
    Lever(
        "fused-qkv",
        "exact",
        "one product for query, key and value",
        applies=lambda ground: ground.is_whole and ground.is_plain and fuses(ground),
        on=fused,
        scope="pipeline",
        beneath_adapters=False,
    ),
    Lever(
        "cudnn-attention",
        "exact",
        "attention by cuDNN's kernel",
        applies=lambda ground: ground.device == "cuda" and ground.capability >= (8, 0),
        on=cudnn_first,
    ),
    Lever(
        "flash-attention-3",
        "exact",
        "attention by FlashAttention 3, from a folder that the operator allows",
        applies=lambda ground: _FA3_APPLIES(ground) and ground.capability[0] == 9,
        on=_FA3,
    ),
    Lever(
        "compile",
        "exact",
        "the repeated blocks compiled, once a model has proven hot",
        applies=lambda ground: ground.is_whole and ground.is_plain and has_repeated_blocks(ground),
        on=compiling(),
        warms=True,
        hot=3,
    ),
    Lever(
        "sage-attention",
        "high",
        "attention with queries and keys in 8 bits, from a folder that the operator allows",
        applies=lambda ground: _SAGE_APPLIES(ground) and ground.capability >= (8, 0),
        on=_SAGE,
    ),
    Lever(
        "taylorseer",
        "fast",
        "every third step computed, the others guessed by a Taylor series",
        applies=keeps_features,
        on=taylorseer,
        excludes=("compile",),  # it decides in Python, in the middle of a block, whether to compute
    ),
    Lever(
        "cache-dit",
        "fast",
        "blocks skipped that would hardly change, by the package cache-dit",
        applies=is_for_cache_dit,
        on=cache_dit_blocks,
        alone=True,
        excludes=("compile",),
    ),
)

"""Autoencoders in full size, as diffusers saves them and as their authors publish them: known, and loaded whole."""

import diffusers
import pytest
import torch

from tests import original_vaes as originals
from tests.catalog.corpus import index as header_of
from tests.headers import layouts as earlier
from worker.catalog.detector import detect_header
from worker.catalog.detectors.encoders import TINY_ENCODER, VAES
from worker.core.errors import CorruptFile
from worker.core.model import Kind
from worker.engine import layouts
from worker.engine.sizes import shape_of

_WAN_22 = {
    "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True, "in_channels": 12, "out_channels": 12,
    "patch_size": 2, "scale_factor_spatial": 16, "latents_mean": [0.0] * 48, "latents_std": [1.0] * 48,
}  # fmt: skip
_KL = {
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
}  # fmt: skip


# LTX-Video's of 0.9.5 and later
_LTX_TIMED = {
    "block_out_channels": [128, 256, 512, 1024, 2048], "decoder_block_out_channels": [256, 512, 1024],
    "down_block_types": ["LTXVideo095DownBlock3D"] * 4, "layers_per_block": [4, 6, 6, 2, 2],
    "decoder_layers_per_block": [5, 5, 5, 5], "spatio_temporal_scaling": [True] * 4,
    "decoder_spatio_temporal_scaling": [True] * 3, "decoder_inject_noise": [False] * 4,
    "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"], "upsample_residual": [True] * 3,
    "upsample_factor": [2, 2, 2], "timestep_conditioning": True,
}  # fmt: skip


def kl(shapes):
    return earlier.ldm_vae(shapes, prefix="")


# kind in the table of autoencoders -> class, published sizes, its authors' names
PUBLISHED = {
    "kl-4": ("AutoencoderKL", _KL | {"latent_channels": 4}, kl),
    "kl-16": (
        "AutoencoderKL",
        _KL | {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False},
        kl,
    ),
    "flux2-32": ("AutoencoderKLFlux2", {}, originals.flux2),
    "wan-16": ("AutoencoderKLWan", {}, originals.wan),
    "wan-48": ("AutoencoderKLWan", _WAN_22, originals.wan_22),
    "qwen-image-64": ("AutoencoderKLQwenImage21", {}, None),
    "ltx-video-128": ("AutoencoderKLLTXVideo", {}, originals.ltx),
    "ltx2-128": ("AutoencoderKLLTX2Video", {}, originals.ltx2),
    "ltx-video-timed-128": ("AutoencoderKLLTXVideo", _LTX_TIMED, originals.ltx_timed),
    "dc-32": ("AutoencoderDC", {}, originals.dc),
    "hunyuan-video-16": ("AutoencoderKLHunyuanVideo", {}, None),
}
CASES = [
    (kind, layout)
    for kind, (_, _, original) in PUBLISHED.items()
    for layout in ("diffusers", "original")
    if layout == "diffusers" or original
]


def built(kind):
    name, config, original = PUBLISHED[kind]
    cls = getattr(diffusers, name)
    with torch.device("meta"):
        model = cls.from_config(dict(config))
    return cls, dict(model.config), {key: tuple(each.shape) for key, each in model.state_dict().items()}, original


@pytest.mark.quick_rows(6)
@pytest.mark.parametrize(("kind", "layout"), CASES)
def test_a_published_autoencoder_is_known_and_becomes_the_whole_model(kind, layout):
    cls, config, shapes, original = built(kind)
    file = original(shapes) if layout == "original" else shapes
    assert (file.keys() == shapes.keys()) is (layout == "diffusers")
    for prefix in ("", "vae.", "first_stage_model."):
        detection = detect_header(header_of({prefix + name: shape for name, shape in file.items()}))
        assert detection.kind is Kind.VAE
        assert detection.component_class == cls.__name__
        assert detection.variant == kind
    tensors = {name: torch.empty(shape, device="meta") for name, shape in file.items()}
    fit = layouts.fit("vae", cls, tensors, config)
    assert {name: shape_of(tensor) for name, tensor in fit.weights.items()} == shapes


@pytest.mark.parametrize("kind", ["wan-48", "dc-32"])
def test_one_that_lacks_a_tensor_says_which(kind):
    cls, config, shapes, original = built(kind)
    tensors = {name: torch.empty(shape, device="meta") for name, shape in original(shapes).items()}
    lost = next(name for name in tensors if name.startswith("decoder.") and name.endswith(".bias"))
    tensors.pop(lost)
    with pytest.raises(CorruptFile, match="lacks 1 tensors of its vae"):
        layouts.fit("vae", cls, tensors, config)


def test_every_kind_with_a_class_of_its_own_is_tried():
    alike = {"kl-8", "kl-32"}  # of kl-4's class and names
    small = {"tiny", "tiny-decoder", TINY_ENCODER}  # tests/engine/test_vae.py tries them
    known = {row.variant for row in VAES} - {"an autoencoder", *alike, *small}
    assert known == PUBLISHED.keys()

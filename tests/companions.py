"""One file of each kind that goes beside the tiny models of `tests.builders`: controls, image prompts, words, a VAE."""

from pathlib import Path

import torch
from diffusers import AutoencoderTiny, ControlNetModel, DiffusionPipeline, FluxControlNetModel, T2IAdapter
from safetensors.torch import save_file

from tests import builders, hypernetworks, image_prompts, upscalers
from tests.builders import enliven_control

_HINT = (8, 8, 16, 16)  # channels of what reads a control image


def vectors(count: int, width: int = builders.WIDTH, seed: int = 4) -> torch.Tensor:
    """A textual inversion's vectors for one text encoder."""
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@builders.private_rng
def companions(folder: str | Path, *, models: Path) -> Path:
    """Save what fits the `sd1`, `sdxl` and `flux` below `models`, named after what it is and whom it fits."""
    folder = Path(folder)
    torch.manual_seed(21)
    _controls(folder, models)
    image_prompts.clip_encoder(folder / "image_encoder")
    for family, layout in (("sd1", "plain"), ("sdxl", "plus")):
        tensors = image_prompts.unet_adapter(models / family, layout=layout)
        image_prompts.save(tensors, folder / f"ip-{family}.safetensors")
    save_file({"emb_params": vectors(2)}, folder / "word-sd1.safetensors")
    pair = {"clip_l": vectors(2), "clip_g": vectors(2, seed=5)}
    save_file(pair, folder / "word-sdxl.safetensors")
    saved = hypernetworks.pickled()
    save_file(hypernetworks.flat(saved), folder / "style.safetensors", hypernetworks.told(saved))
    _vae(folder / "vae")
    upscalers.upscaler(folder / "esrgan.safetensors")
    return folder


def _controls(folder: Path, models: Path) -> None:
    for family in ("sd1", "sdxl"):
        unet = DiffusionPipeline.from_pretrained(models / family, safety_checker=None).unet
        net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=_HINT)
        enliven_control(net.eval()).save_pretrained(folder / f"control-{family}")
    channels = list(unet.config.block_out_channels)
    T2IAdapter(channels=channels, num_res_blocks=1, downscale_factor=8).eval().save_pretrained(folder / "t2i-sd1")
    transformer = DiffusionPipeline.from_pretrained(models / "flux").transformer
    kept = ("in_channels", "num_layers", "num_single_layers", "attention_head_dim", "num_attention_heads")
    kept += ("joint_attention_dim", "pooled_projection_dim", "axes_dims_rope", "guidance_embeds", "patch_size")
    net = FluxControlNetModel(**{name: transformer.config[name] for name in kept})
    enliven_control(net.eval()).save_pretrained(folder / "control-flux")


def _vae(folder: Path) -> None:
    AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    ).save_pretrained(folder)

"""Modular pipelines that make videos of the parts of an ordinary pipeline."""

from collections.abc import Callable
from typing import Any

from diffusers import HeliosDMDScheduler, LTX2VideoDiffusionDecoderModel, WanTransformer3DModel

from tests.zoo import parts
from tests.zoo.autoencoders import CHANNELS
from tests.zoo.families.video_wan import SIZES as WAN_SIZES
from tests.zoo.modular.shared import like, ordinary
from tests.zoo.recipe import Image, Recipe, Video

_ONE = {"prompt": "a cat walks", "width": 64, "height": 64, "num_frames": 5, "num_inference_steps": 2}
_GUIDED = {**_ONE, "negative_prompt": "blue", "guidance_scale": 3.0}
_PYRAMID = {name: value for name, value in _GUIDED.items() if name != "num_inference_steps"}
_PYRAMID |= {"num_latent_frames_per_chunk": 2, "pyramid_num_inference_steps_list": [1, 1, 1]}


def _of(pipeline: str, part: str) -> Callable[[], Any]:
    return lambda: ordinary(pipeline)()[part]


_TWO = {"transformer_2": _of("WanPipeline", "transformer")}


def _with_frame() -> WanTransformer3DModel:
    """A transformer of Wan 2.2, to which the first frame is told in latents alone."""
    return WanTransformer3DModel(**(WAN_SIZES | {"in_channels": 3 * CHANNELS})).eval()


_TWO_IMAGE = {"transformer": _with_frame, "transformer_2": _with_frame}


def _decoder() -> LTX2VideoDiffusionDecoderModel:
    return LTX2VideoDiffusionDecoderModel(
        latent_channels=8,
        decoder_head_dim=8,
        decoder_stage_channels=(8, 8, 8, 8, 8),
        decoder_stage_depths=(1, 1, 1, 1, 1),
        decoder_stage_kernels=((1, 1, 1),) * 4,  # no larger than a latent
        decoder_stage5_kernel=(1, 1, 1),
        decoder_upsample_channel_reductions=(1, 1, 1, 1),
        decoder_t_emb_dim=8,
    ).eval()


RECIPES: tuple[Recipe, ...] = (
    like("Cosmos3OmniModularPipeline", "Cosmos3OmniPipeline", {**_ONE, "num_frames": 9}),
    like(
        "Cosmos3DistilledModularPipeline",
        "Cosmos3OmniPipeline",
        {name: value for name, value in {**_ONE, "num_frames": 9}.items() if name != "num_inference_steps"},
        parts={"distilled_sigmas": lambda: [1.0, 0.5], "scheduler": parts.flow_euler},
    ),
    like("HeliosModularPipeline", "HeliosPipeline", {**_GUIDED, "num_latent_frames_per_chunk": 2}),
    like("HeliosPyramidModularPipeline", "HeliosPyramidPipeline", _PYRAMID),
    like(
        "HeliosPyramidDistilledModularPipeline",
        "HeliosPyramidPipeline",
        _PYRAMID,
        parts={"scheduler": lambda: HeliosDMDScheduler(gamma=0.3)},
    ),
    like("HunyuanVideo15ModularPipeline", "HunyuanVideo15Pipeline", _GUIDED),
    like("LTXModularPipeline", "LTXPipeline", {**_GUIDED, "num_frames": 9}),
    like("LTX2ModularPipeline", "LTX2Pipeline", {**_GUIDED, "num_frames": 9}),
    like("LTX25ModularPipeline", "LTX2Pipeline", {**_GUIDED, "num_frames": 9}, parts={"diffusion_decoder": _decoder}),
    like("WanModularPipeline", "WanPipeline", _GUIDED),
    like("WanImage2VideoModularPipeline", "WanImageToVideoPipeline", {**_GUIDED, "image": Image()}),
    like("Wan22ModularPipeline", "WanPipeline", _GUIDED, parts=_TWO),
    like("Wan22Image2VideoModularPipeline", "WanImageToVideoPipeline", {**_GUIDED, "image": Image()}, parts=_TWO_IMAGE),
    like(
        "Wan22VaceModularPipeline",
        "WanVACEPipeline",
        {**_GUIDED, "video": Video(5)},
        parts={"transformer_2": _of("WanVACEPipeline", "transformer")},
    ),
)

"""Rows of the families that denoise with a UNet."""

from worker.catalog.conditions import (
    all_of,
    dimension,
    has_all,
    none_of,
)
from worker.catalog.families.row import MEGAPIXEL, Architecture, Name, alone
from worker.catalog.families.unet_shapes import GUIDED, KOLORS, TIME, WAY_UP, cross_attention
from worker.core.model import Task

_LCM = all_of(cross_attention(0, 320, 768), WAY_UP, GUIDED)
_KOLORS_UNET = all_of(cross_attention(1, 640, 2048), KOLORS, WAY_UP)
_X4 = all_of(cross_attention(1, 512, 1024), WAY_UP, none_of(TIME))
_CASCADE = all_of(has_all("clip_txt_mapper.weight"), dimension("clip_txt_mapper.weight", 0, 1536, 2048))


UNETS: tuple[Architecture, ...] = (
    Architecture(
        id="kolors",
        title="Kolors",
        pipelines={Task.TEXT_TO_IMAGE: "KolorsPipeline", Task.IMAGE_TO_IMAGE: "KolorsImg2ImgPipeline"},
        classes=("KolorsPAGPipeline",),
        size_multiple=8,
        defaults={"num_inference_steps": 50, "guidance_scale": 5.0},
        denoiser=alone(_KOLORS_UNET),
        base_repo="Kwai-Kolors/Kolors-diffusers",
        activation_gb_per_mp=3.5,
        noise="diffusion",
        scheduler="EulerDiscreteScheduler",
        image_prompts=True,
        ip_adapter_files=("ip_adapter_plus_general.safetensors",),
        image_encoder="Kwai-Kolors/Kolors-IP-Adapter-Plus#image_encoder",
        civitai=(Name("Kolors"),),
        names=(Name("kolors"),),
    ),
    Architecture(
        id="latent-consistency",
        title="Latent Consistency Model",
        pipelines={
            Task.TEXT_TO_IMAGE: "LatentConsistencyModelPipeline",
            Task.IMAGE_TO_IMAGE: "LatentConsistencyModelImg2ImgPipeline",
        },
        native_size=768,
        size_multiple=8,
        max_pixels=2 * MEGAPIXEL,
        defaults={"num_inference_steps": 4, "guidance_scale": 8.5},
        max_steps=50,
        negative_prompt=False,
        base_repo="SimianLuo/LCM_Dreamshaper_v7",
        denoiser=alone(_LCM),
        family="sd1",
        noise="diffusion",
        scheduler="LCMScheduler",
    ),
    Architecture(
        id="stable-cascade",
        title="Stable Cascade",
        pipelines={Task.TEXT_TO_IMAGE: "StableCascadeCombinedPipeline"},
        classes=("StableCascadePriorPipeline", "StableCascadeDecoderPipeline"),
        size_multiple=128,
        defaults={"num_inference_steps": 12, "prior_num_inference_steps": 20, "prior_guidance_scale": 4.0},
        guidance="prior_guidance_scale",
        denoiser=alone(_CASCADE),
        base_repo="stabilityai/stable-cascade",
        noise=None,
        scheduler="DDPMWuerstchenScheduler",
        fixed_size=True,
        civitai=(Name("Stable Cascade"),),
        names=(Name("stable.?cascade"),),
    ),
    Architecture(
        id="kandinsky-2.2",
        title="Kandinsky 2.2",
        pipelines={
            Task.TEXT_TO_IMAGE: "KandinskyV22CombinedPipeline",
            Task.IMAGE_TO_IMAGE: "KandinskyV22Img2ImgCombinedPipeline",
            Task.INPAINTING: "KandinskyV22InpaintCombinedPipeline",
        },
        classes=("KandinskyV22Pipeline", "KandinskyV22PriorPipeline", "KandinskyV22InpaintPipeline"),
        native_size=512,
        size_multiple=64,
        max_pixels=2 * MEGAPIXEL,
        defaults={"num_inference_steps": 50, "guidance_scale": 4.0},
        base_repo="kandinsky-community/kandinsky-2-2-decoder",
        noise="diffusion",
        scheduler="DDPMScheduler",
        fixed_size=True,
        inpaints_apart=True,
    ),
    Architecture(
        id="kandinsky-3",
        title="Kandinsky 3",
        pipelines={Task.TEXT_TO_IMAGE: "Kandinsky3Pipeline", Task.IMAGE_TO_IMAGE: "Kandinsky3Img2ImgPipeline"},
        size_multiple=64,
        max_pixels=2 * MEGAPIXEL,
        defaults={"num_inference_steps": 25, "guidance_scale": 3.0},
        base_repo="kandinsky-community/kandinsky-3",
        noise="diffusion",
        scheduler="DDPMScheduler",
        fixed_size=True,
    ),
    Architecture(
        id="sd-x4-upscaler",
        title="Stable Diffusion x4 upscaler",
        pipelines={Task.UPSCALING: "StableDiffusionUpscalePipeline"},
        native_size=512,
        size_multiple=8,
        max_pixels=MEGAPIXEL // 2,
        defaults={"num_inference_steps": 50, "guidance_scale": 9.0},
        denoiser=alone(_X4),
        base_repo="stabilityai/stable-diffusion-x4-upscaler",
        noise="diffusion",
        scheduler="DDIMScheduler",
    ),
    Architecture(
        id="sd-latent-upscaler",
        title="Stable Diffusion x2 latent upscaler",
        pipelines={Task.UPSCALING: "StableDiffusionLatentUpscalePipeline"},
        native_size=512,
        size_multiple=8,
        max_pixels=MEGAPIXEL,
        defaults={"num_inference_steps": 20, "guidance_scale": 0.0},
        base_repo="stabilityai/sd-x2-latent-upscaler",
        noise="diffusion",
        scheduler="EulerDiscreteScheduler",
    ),
)

"""Rows of the image families that stand alone: one pipeline class each, saved in diffusers' own layout only.

Their files are known by the tensor names of their model class (`components.py`), so few need a condition here.
Steps and guidance are the defaults of their pipelines in diffusers 0.42.1.
"""

from worker.catalog.conditions import Condition, all_of, dimension, has_all, has_any, none_of
from worker.catalog.families.row import MEGAPIXEL, Architecture, Name, alone
from worker.core.model import Task


def _flux_like(text: int) -> Condition:
    """FLUX's blocks without its pooled text; Bria and LongCat differ in the width of their text alone."""
    names = has_all("single_transformer_blocks.0.proj_mlp.weight", "time_embed.timestep_embedder.linear_1.weight")
    caption = has_any("caption_projection.0.linear.weight")  # FIBO's, once for each block
    return all_of(names, dimension("context_embedder.weight", 1, text), none_of(caption))


INDEPENDENT: tuple[Architecture, ...] = (
    Architecture(
        id="bria",
        title="Bria 3",
        pipelines={Task.TEXT_TO_IMAGE: "BriaPipeline"},
        defaults={"num_inference_steps": 30, "guidance_scale": 5.0},
        denoiser=alone(_flux_like(4096)),
        base_repo="briaai/BRIA-3.2",
    ),
    Architecture(
        id="bria-fibo",
        title="Bria FIBO",
        pipelines={Task.TEXT_TO_IMAGE: "BriaFiboPipeline"},
        defaults={"num_inference_steps": 30, "guidance_scale": 5.0},
        base_repo="briaai/FIBO",
    ),
    Architecture(
        id="bria-fibo-edit",
        title="Bria FIBO Edit",
        pipelines={Task.IMAGE_EDITING: "BriaFiboEditPipeline", Task.INPAINTING: "BriaFiboEditPipeline"},
        defaults={"num_inference_steps": 30, "guidance_scale": 5.0},
        base_repo="briaai/Fibo-Edit-1.5-base",
        twin="bria-fibo",
    ),
    Architecture(
        id="bria-fibo-2",
        title="Bria FIBO 2",
        pipelines={Task.TEXT_TO_IMAGE: "BriaFibo2Pipeline", Task.IMAGE_EDITING: "BriaFibo2Pipeline"},
        defaults={"num_inference_steps": 30, "guidance_scale": 5.0},
        base_repo="briaai/Fibo-2.0-dev",
    ),
    Architecture(
        id="ovis-image",
        title="Ovis-Image",
        pipelines={Task.TEXT_TO_IMAGE: "OvisImagePipeline"},
        defaults={"num_inference_steps": 50, "guidance_scale": 5.0},
        base_repo="AIDC-AI/Ovis-Image-7B",
    ),
    Architecture(
        id="prx",
        title="PRX",
        pipelines={Task.TEXT_TO_IMAGE: "PRXPipeline"},
        native_size=512,
        max_pixels=2 * MEGAPIXEL,
        defaults={"num_inference_steps": 28, "guidance_scale": 4.0},
        base_repo="Photoroom/prx-512-t2i-sft",
    ),
    Architecture(
        id="nucleus-image",
        title="NucleusMoE-Image",
        pipelines={Task.TEXT_TO_IMAGE: "NucleusMoEImagePipeline"},
        defaults={"num_inference_steps": 50, "guidance_scale": 4.0},
        base_repo="NucleusAI/NucleusMoE-Image",
    ),
    Architecture(
        id="joyimage-edit",
        title="JoyImage Edit",
        pipelines={Task.IMAGE_EDITING: "JoyImageEditPipeline", Task.TEXT_TO_IMAGE: "JoyImageEditPipeline"},
        defaults={"num_inference_steps": 40, "guidance_scale": 4.0},
        base_repo="jdopensource/JoyAI-Image-Edit-Diffusers",
    ),
    Architecture(
        id="joyimage-edit-plus",
        title="JoyImage Edit Plus",
        pipelines={Task.IMAGE_EDITING: "JoyImageEditPlusPipeline", Task.TEXT_TO_IMAGE: "JoyImageEditPlusPipeline"},
        defaults={"num_inference_steps": 30, "guidance_scale": 4.0},
        base_repo="jdopensource/JoyAI-Image-Edit-Plus-Diffusers",
        twin="joyimage-edit",
    ),
    Architecture(
        id="ideogram4",
        title="Ideogram 4",
        pipelines={Task.TEXT_TO_IMAGE: "Ideogram4Pipeline"},
        native_size=2048,
        max_pixels=6 * MEGAPIXEL,
        defaults={"num_inference_steps": 48},
        base_repo="ideogram-ai/ideogram-v4",
        civitai=(Name("Ideogram 4.0"),),
        names=(Name("ideogram.?4"),),
    ),
    Architecture(
        id="dreamlite",
        title="DreamLite",
        pipelines={Task.TEXT_TO_IMAGE: "DreamLitePipeline", Task.IMAGE_EDITING: "DreamLitePipeline"},
        max_pixels=2 * MEGAPIXEL,
        defaults={"num_inference_steps": 30, "guidance_scale": 3.5},
        base_repo="carlofkl/DreamLite-base",
    ),
    Architecture(
        id="lumina-next",
        title="Lumina-Next",
        pipelines={Task.TEXT_TO_IMAGE: "LuminaPipeline"},
        defaults={"num_inference_steps": 30, "guidance_scale": 4.0},
        base_repo="Alpha-VLLM/Lumina-Next-SFT-diffusers",
    ),
    Architecture(
        id="omnigen",
        title="OmniGen",
        pipelines={Task.TEXT_TO_IMAGE: "OmniGenPipeline", Task.IMAGE_EDITING: "OmniGenPipeline"},
        max_pixels=2 * MEGAPIXEL,
        defaults={"num_inference_steps": 50, "guidance_scale": 2.5},
        negative_prompt=False,
        base_repo="Shitao/OmniGen-v1-diffusers",
        names=(Name("omnigen"),),
    ),
    Architecture(
        id="ernie-image",
        title="ERNIE-Image",
        pipelines={Task.TEXT_TO_IMAGE: "ErnieImagePipeline"},
        defaults={"num_inference_steps": 50, "guidance_scale": 4.0},
        civitai=(Name("Ernie"),),
        names=(Name("ernie.?image"),),
        ai_toolkit="ernie_image",
    ),
    Architecture(
        id="longcat-image",
        title="LongCat-Image",
        pipelines={Task.TEXT_TO_IMAGE: "LongCatImagePipeline"},
        defaults={"num_inference_steps": 50, "guidance_scale": 4.5},
        denoiser=alone(_flux_like(3584)),
        base_repo="meituan-longcat/LongCat-Image",
        names=(Name("longcat.?image", general=1),),
    ),
    Architecture(
        id="longcat-image-edit",
        title="LongCat-Image-Edit",
        pipelines={Task.IMAGE_EDITING: "LongCatImageEditPipeline"},
        defaults={"num_inference_steps": 50, "guidance_scale": 4.5},
        base_repo="meituan-longcat/LongCat-Image-Edit",
        twin="longcat-image",
        family="longcat-image",
        names=(Name("longcat.?image.?edit"),),
    ),
    Architecture(
        id="kandinsky-5",
        title="Kandinsky 5 image",
        pipelines={Task.TEXT_TO_IMAGE: "Kandinsky5T2IPipeline"},
        max_pixels=2 * MEGAPIXEL,
        defaults={"num_inference_steps": 50, "guidance_scale": 3.5},
        activation_gb_per_mp=3.5,
    ),
)

"""Rows of the Qwen-Image families."""

from worker.catalog.conditions import all_of, has_all, has_any, none_of
from worker.catalog.families.row import MEGAPIXEL, Architecture, LoraRule, Name, alone
from worker.core.model import Task

_CONTROLS = has_any("controlnet_blocks.0.weight")  # a ControlNet has its base's way in
_QWEN = all_of(
    has_all("txt_norm.weight", "img_in.weight", "transformer_blocks.0.attn.add_q_proj.weight"),
    none_of(has_any("txt_in.text_norm.weight"), _CONTROLS),
)
_EDIT_2511 = has_any("__index_timestep_zero__")
_LAYERED = has_any("time_text_embed.addition_t_embedding.weight")

QWENS: tuple[Architecture, ...] = (
    Architecture(
        id="qwen-image",
        title="Qwen-Image",
        pipelines={
            Task.TEXT_TO_IMAGE: "QwenImagePipeline",
            Task.IMAGE_TO_IMAGE: "QwenImageImg2ImgPipeline",
            Task.INPAINTING: "QwenImageInpaintPipeline",
        },
        classes=("QwenImageControlNetPipeline", "QwenImageControlNetInpaintPipeline"),
        defaults={"num_inference_steps": 50, "true_cfg_scale": 4.0},
        guidance="true_cfg_scale",
        denoiser=alone(all_of(_QWEN, none_of(_EDIT_2511, _LAYERED))),
        config="qwen-image",
        base_repo="Qwen/Qwen-Image",
        activation_gb_per_mp=4.0,
        notes={"variants": "Qwen-Image-Edit has the same keys and shapes"},
        variants={"lightning": {"num_inference_steps": 8, "true_cfg_scale": 1.0}},
        civitai=(Name("Qwen"),),
        names=(Name("qwen.?image", general=1),),
        loras=(
            LoraRule(r"^transformer_blocks_\d+_(?:img|txt)_(?:mlp|mod)"),
            LoraRule(r"^transformer_blocks_(?:19|[2-5]\d)_attn_", inputs=(3072,), general=True),
        ),
        ai_toolkit="qwen_image",
    ),
    Architecture(
        id="qwen-image-edit",
        title="Qwen-Image-Edit",
        pipelines={Task.IMAGE_EDITING: "QwenImageEditPipeline", Task.INPAINTING: "QwenImageEditInpaintPipeline"},
        defaults={"num_inference_steps": 50, "true_cfg_scale": 4.0},
        guidance="true_cfg_scale",
        base_repo="Qwen/Qwen-Image-Edit",
        activation_gb_per_mp=6.0,
        family="qwen-image",
        variants={"lightning": {"num_inference_steps": 8, "true_cfg_scale": 1.0}},
        twin="qwen-image",
        names=(Name("qwen.?image.?edit(?!.?(?:25|plus))"),),
    ),
    Architecture(
        id="qwen-image-edit-plus",
        title="Qwen-Image-Edit-2509 and later",
        pipelines={Task.IMAGE_EDITING: "QwenImageEditPlusPipeline"},
        defaults={"num_inference_steps": 40, "true_cfg_scale": 4.0},
        guidance="true_cfg_scale",
        denoiser=alone(all_of(_QWEN, _EDIT_2511)),
        base_repo="Qwen/Qwen-Image-Edit-2509",
        activation_gb_per_mp=6.0,
        family="qwen-image",
        variants={"lightning": {"num_inference_steps": 8, "true_cfg_scale": 1.0}},
        twin="qwen-image",
        names=(Name("qwen.?image.?edit.?(?:25|plus)"),),
    ),
    Architecture(
        id="qwen-image-layered",
        title="Qwen-Image-Layered",
        pipelines={Task.IMAGE_EDITING: "QwenImageLayeredPipeline"},
        native_size=640,
        max_pixels=2 * MEGAPIXEL,
        defaults={"num_inference_steps": 50, "true_cfg_scale": 4.0},
        guidance="true_cfg_scale",
        base_repo="Qwen/Qwen-Image-Layered",
        activation_gb_per_mp=12.0,
        family="qwen-image",
        denoiser=alone(all_of(_QWEN, _LAYERED)),
        names=(Name("qwen.?image.?layered"),),
    ),
    Architecture(
        id="qwen-image-2.1",
        title="Qwen-Image 2.1",
        pipelines={Task.TEXT_TO_IMAGE: "QwenImage21Pipeline", Task.IMAGE_EDITING: "QwenImage21Pipeline"},
        size_multiple=32,
        defaults={"num_inference_steps": 40, "true_cfg_scale": 1.0},
        guidance="true_cfg_scale",
        original=True,
        denoiser=alone(has_any("txt_in.text_norm.weight")),
        base_repo="Qwen/Qwen-Image-2.1",
        autoencoders=("qwen-image-64",),
        activation_gb_per_mp=4.0,
        civitai=(Name("Qwen 2"),),
        names=(Name("qwen.?image.?2"),),
    ),
)

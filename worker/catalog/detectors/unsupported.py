"""The table of files that are recognised and cannot run here, each with its reason."""

from worker.catalog.conditions import Condition, all_of, any_of, dimension, has_all, has_any, has_prefix, none_of, under
from worker.catalog.families.row import alone
from worker.core.errors import UnsupportedModel
from worker.core.model import TensorIndex

_MODULAR = "is read from its modular repository only, not from single files"
_AUDIO = "makes audio, which this worker does not do; use an image or video model"
_SOLID = "makes 3D objects, which this worker does not do; use an image or video model"
_IMAGE = "is conditioned by an image through parts that no single file's reader here knows"
_UNET = ("model.diffusion_model.", "diffusion_model.", "")
_LABELS = "label_emb.0.0.weight"  # of SDXL and its refiner too, whose text is wider
_TEXT = (
    "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
    "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight",
)
_TOOL = "looks at images and draws none; use an image or video model"

# Name, condition on the file, reason for the refusal.
REFUSED: tuple[tuple[str, Condition, str], ...] = (
    ("FLUX.3", alone(has_any("early_stream_modulations.image.lin.weight", "x_embedders.image.weight")), _MODULAR),
    ("Anima", alone(has_any("llm_adapter.blocks.0.cross_attn.q_proj.weight", "llm_adapter.embed.weight")), _MODULAR),
    ("MiniMax H3", alone(has_any("token_refiner.blocks.0.attn.qkv_proj.weight")), _MODULAR),
    ("OmniGen2", alone(has_all("ref_image_patch_embedder.weight", "time_caption_embed.caption_embedder.1.weight")),
     "is in no released version of diffusers; use OmniGen, FLUX.1 Kontext or Qwen-Image-Edit"),
    ("Stable unCLIP", any_of(
        under(_UNET, all_of(
            has_any(_LABELS), any_of(*(dimension(name, 1, 768, 1024) for name in _TEXT)),
        )),
        all_of(under(_UNET, has_any(_LABELS)), has_prefix("noise_augmentor.")),
        all_of(
            has_any("class_embedding.linear_1.weight"), none_of(has_any("add_embedding.linear_1.weight")),
            dimension("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight", 1, 768, 1024),
        ),
    ), f"{_IMAGE}; use its diffusers repository"),
    ("Zero123", has_any("cc_projection.weight"), f"{_IMAGE}; use a model of another kind"),
    ("Stable Diffusion Image Variations", all_of(
        has_prefix("model.diffusion_model."),
        has_prefix("cond_stage_model.model.visual.", "cond_stage_model.vision_model."),
        none_of(has_prefix("cond_stage_model.model.transformer.", "cond_stage_model.transformer.")),
    ), f"{_IMAGE}; use its diffusers repository"),
    ("a checkpoint with nothing of its UNet but the moving average (EMA)", all_of(
        has_prefix("model_ema."), none_of(has_prefix("model.diffusion_model.")),
    ), "keeps it under names that cannot be told apart; use the file that has the plain weights"),
    ("a ControlNet-LLLite", has_prefix("lllite_"), "diffusers has no class for; use a ControlNet or a T2I-Adapter"),
    ("the first layers of a ControlNet", under(("", "control_model.", "controlnet."), all_of(
        has_any("controlnet_cond_embedding.conv_in.weight", "input_hint_block.0.weight"),
        none_of(has_any(
            "controlnet_down_blocks.0.weight", "controlnet_mid_block.weight", "zero_convs.0.0.weight",
            "middle_block_out.0.weight", "controlnet_blocks.0.weight", "control_to_base_for_conv_in.weight",
            "pos_embed_input.weight", "time_embed.0.weight", "time_embedding.linear_1.weight",
        )),
    )), "is a part of a file; use the whole ControlNet"),
    ("Stable Audio", any_of(has_prefix("pretransform.model."), has_any("model.model.preprocess_conv.weight")), _AUDIO),
    ("ACE-Step", alone(has_any("lyric_embs.weight", "lyric_encoder.embed.out.0.weight")), _AUDIO),
    ("TripoSR", has_all("image_tokenizer.model.embeddings.cls_token", "post_processor.upsample.weight"), _SOLID),
    ("a YOLO detector", has_all("model.0.conv.weight", "model.1.conv.weight", "model.2.cv1.conv.weight"), _TOOL),
    ("Segment Anything", any_of(
        has_all("mask_decoder.iou_token.weight", "prompt_encoder.no_mask_embed.weight"),
        has_all("sam_mask_decoder.iou_token.weight", "sam_prompt_encoder.no_mask_embed.weight"),
    ), _TOOL),
    ("a depth estimator", has_any("depth_head.projects.0.weight"), _TOOL),
)  # fmt: skip


def refuse(index: TensorIndex) -> None:
    """Raise UnsupportedModel if the file is one of these."""
    for title, condition, reason in REFUSED:
        evidence = condition.match(index)
        if evidence is not None:
            raise UnsupportedModel(f"This is {title}, which {reason}.", details={"evidence": list(evidence)[:3]})

"""The table of files that are recognised and cannot run here, each with its reason."""

from worker.catalog.conditions import Condition, any_of, has_all, has_any, has_prefix
from worker.catalog.families.row import alone
from worker.core.errors import UnsupportedModel
from worker.core.model import TensorIndex

_MODULAR = "exists in diffusers only as a modular pipeline, which this version cannot load"
_AUDIO = "makes audio, which this worker does not do; use an image or video model"
_SOLID = "makes 3D objects, which this worker does not do; use an image or video model"
_TOOL = "looks at images and draws none; use an image or video model"

# Name, condition on the file, reason for the refusal.
REFUSED: tuple[tuple[str, Condition, str], ...] = (
    ("FLUX.3", alone(has_any("early_stream_modulations.image.lin.weight", "x_embedders.image.weight")), _MODULAR),
    ("Anima", alone(has_any("llm_adapter.blocks.0.cross_attn.q_proj.weight", "llm_adapter.embed.weight")), _MODULAR),
    ("MiniMax H3", alone(has_any("token_refiner.blocks.0.attn.qkv_proj.weight")), _MODULAR),
    ("OmniGen2", alone(has_all("ref_image_patch_embedder.weight", "time_caption_embed.caption_embedder.1.weight")),
     "is in no released version of diffusers; use OmniGen, FLUX.1 Kontext or Qwen-Image-Edit"),
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

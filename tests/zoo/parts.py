"""Tiny random parts that several pipelines share: text and image encoders, VAEs, schedulers.

Widths agree: text encoders are `WIDTH` wide unless asked otherwise, latents have four channels, VAEs shrink eight
times. Every call makes new weights; the harness seeds torch once for each pipeline. UNets, the plain VAE and the
tokenizers of CLIP and T5 are those of `tests.builders`; text encoders that are language models are in `language.py`.
"""

import torch
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    UnCLIPScheduler,
    UniPCMultistepScheduler,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from torch.nn import Module
from transformers import (
    BertTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    T5EncoderModel,
    XLMRobertaTokenizer,
)

from tests.builders import SD_BETAS, WIDTH, clip_config, clip_tokenizer, enliven, t5_config, t5_tokenizer, unet, vae

__all__ = ["SD_BETAS", "WIDTH", "clip_config", "clip_tokenizer", "enliven", "t5_config", "t5_tokenizer", "unet", "vae"]


def fill(model: Module, *endings: str, std: float = 0.02) -> Module:
    """Give weights to the parameters with these names, which the model's class leaves as the memory was."""
    for name, weight in model.named_parameters():
        if name.endswith(endings):
            torch.nn.init.normal_(weight, std=std)
    return model


def clip_text(**changes: object) -> CLIPTextModel:
    """CLIP's text encoder."""
    return CLIPTextModel(clip_config(**changes)).eval()


def clip_text_projected(**changes: object) -> CLIPTextModelWithProjection:
    """CLIP's text encoder that also gives a pooled embedding of `projection_dim`."""
    return CLIPTextModelWithProjection(clip_config(**changes)).eval()


def clip_vision_config(**changes: object) -> CLIPVisionConfig:
    """A CLIP image encoder over images of 32x32 in four patches."""
    config: dict[str, object] = {
        "hidden_size": WIDTH,
        "projection_dim": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 16,
    }
    return CLIPVisionConfig(**(config | changes))


def clip_vision(**changes: object) -> CLIPVisionModel:
    """CLIP's image encoder, without the projection."""
    return CLIPVisionModel(clip_vision_config(**changes)).eval()


def clip_vision_projected(**changes: object) -> CLIPVisionModelWithProjection:
    """CLIP's image encoder with its projection."""
    return CLIPVisionModelWithProjection(clip_vision_config(**changes)).eval()


def clip_image_processor() -> CLIPImageProcessor:
    """The processor for `clip_vision`."""
    return CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def safety_checker() -> dict[str, object]:
    """Stable Diffusion's safety checker, which lets everything pass, and its processor: for pipelines that insist."""
    config = CLIPConfig(
        text_config=clip_config().to_dict(), vision_config=clip_vision_config().to_dict(), projection_dim=WIDTH
    )
    checker = StableDiffusionSafetyChecker(config).eval()
    return {"safety_checker": checker, "feature_extractor": clip_image_processor()}


def t5(width: int = WIDTH) -> T5EncoderModel:
    """T5's encoder, for `t5_tokenizer`."""
    return T5EncoderModel(t5_config(width)).eval()


def taesd(**changes: object) -> AutoencoderTiny:
    """A tiny autoencoder without a distribution, as distilled models use."""
    channels = (8, 8, 8, 8)
    config = {
        "encoder_block_out_channels": channels,
        "decoder_block_out_channels": channels,
        "num_encoder_blocks": (1, 1, 1, 1),
        "num_decoder_blocks": (1, 1, 1, 1),
    }
    return AutoencoderTiny(**(config | changes)).eval()


def ddim(**changes: object) -> DDIMScheduler:
    """Stable Diffusion's betas; repeats exactly."""
    config = {**SD_BETAS, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
    return DDIMScheduler(**(config | changes))


def ddpm(**changes: object) -> DDPMScheduler:
    """The scheduler of pipelines that add noise at each step."""
    return DDPMScheduler(**({**SD_BETAS, "clip_sample": False, "steps_offset": 1} | changes))


def euler(**changes: object) -> EulerDiscreteScheduler:
    """Stable Diffusion XL's."""
    return EulerDiscreteScheduler(**({**SD_BETAS, "steps_offset": 1} | changes))


def unipc(**changes: object) -> UniPCMultistepScheduler:
    """A multistep scheduler; `use_flow_sigmas` makes it one of flow matching."""
    return UniPCMultistepScheduler(**changes)


def lcm(**changes: object) -> LCMScheduler:
    """Of latent consistency models."""
    return LCMScheduler(**({**SD_BETAS, "clip_sample": False} | changes))


def flow_euler(**changes: object) -> FlowMatchEulerDiscreteScheduler:
    """Of flow-matching transformers."""
    return FlowMatchEulerDiscreteScheduler(**changes)


def unclip_scheduler(**changes: object) -> UnCLIPScheduler:
    """Of priors that guess an image embedding."""
    config = {"prediction_type": "sample", "clip_sample_range": 5.0, "variance_type": "fixed_small_log"}
    return UnCLIPScheduler(**(config | changes))


def bert_tokenizer() -> BertTokenizer:
    """Single characters, alone and within a word."""
    characters = [chr(code) for code in range(33, 127)]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{item}" for item in characters)]
    return BertTokenizer(vocab={token: index for index, token in enumerate(tokens)}, model_max_length=77)


def xlm_roberta_tokenizer() -> XLMRobertaTokenizer:
    """Pieces that are single characters, printable ASCII."""
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(chr(code), -3.0) for code in range(33, 127)] + [("<mask>", 0.0)]
    return XLMRobertaTokenizer(vocab=pieces, model_max_length=77)

"""Tiny language models and their tokenizers: what the newer pipelines read a prompt with.

Every model is `WIDTH` wide, with two layers unless asked otherwise, and reads the 264 tokens of `qwen_tokenizer` (each
byte, and the specials of the chat and vision templates) or the fewer of the others.
"""

from typing import Any
from unittest import mock

from transformers import (
    ByT5Tokenizer,
    Gemma2Config,
    Gemma2Model,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GemmaConfig,
    GemmaModel,
    GemmaTokenizer,
    GlmConfig,
    GlmImageConfig,
    GlmImageForConditionalGeneration,
    GlmImageImageProcessor,
    GlmImageProcessor,
    GlmModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Mistral3Model,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLModel,
    SmolLM3Config,
    SmolLM3ForCausalLM,
    T5Config,
    T5EncoderModel,
    T5Gemma2Encoder,
    T5Gemma2EncoderConfig,
    T5GemmaConfig,
    T5GemmaEncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from tests.builders import WIDTH, byte_units
from tests.zoo import parts, vision

VOCABULARY = 400
"""Ids that every model here has a row for: more than any of the tokenizers has."""

_SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_KNOWN = 256 + len(_SPECIALS)
_END, _, _TURN_END, _VISION_START, _VISION_END, _, _IMAGE, _VIDEO = range(256, _KNOWN)
_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'text' %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LLAMA = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<image>")
_GLM_IMAGE = ("<|dit_token_begin|>", "<|dit_token_end|>")  # before and after the tokens of an image
_CHARACTERS = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?'\"()-_\n"
_BYTES = [f"<0x{value:02X}>" for value in range(256)]
_LLAMA_IMAGE = 3 + len(_BYTES) + len(_CHARACTERS) + _LLAMA.index("<image>")


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Each byte alone, with the specials of Qwen's chat and vision templates."""
    tokens = [*byte_units().values(), *_SPECIALS]
    return Qwen2Tokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=[],
        extra_special_tokens=list(_SPECIALS),
        chat_template=_CHAT,
        model_max_length=4096,
    )


def gemma_tokenizer() -> GemmaTokenizer:
    """Single characters, other bytes by their number."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *_BYTES, *_CHARACTERS]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return GemmaTokenizer(vocab=vocabulary, chat_template=_CHAT, model_max_length=256)


def llama_tokenizer() -> LlamaTokenizer:
    """Single characters, other bytes by their number, with the specials of Llama 3's chat template."""
    tokens = ["<unk>", "<s>", "</s>", *_BYTES, *_CHARACTERS, *_LLAMA]
    return LlamaTokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=[],
        pad_token="</s>",
        extra_special_tokens=list(_LLAMA),
    )


def glm_image_processor() -> GlmImageProcessor:
    """GLM-Image's: `qwen_tokenizer` with the specials that tell how large the image is, and an image processor."""
    names = {"image_token": "<|image|>", "grid_bos_token": "<sop>", "grid_eos_token": "<eop>"}
    tokens = [*byte_units().values(), *_SPECIALS, *names.values(), *_GLM_IMAGE]
    tokenizer = Qwen2Tokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=[],
        bos_token=_GLM_IMAGE[0],
        extra_special_tokens=names,
        chat_template=_CHAT.replace("<|vision_start|><|image_pad|><|vision_end|>", "<|image|>".join(_GLM_IMAGE)),
    )
    # As published, but for the sizes.
    images = GlmImageImageProcessor(
        patch_size=16, temporal_patch_size=1, merge_size=1, min_pixels=64 * 64, max_pixels=256 * 256
    )
    return GlmImageProcessor(image_processor=images, tokenizer=tokenizer, chat_template=tokenizer.chat_template)


def glm_image(codes: int) -> GlmImageForConditionalGeneration:
    """GLM-Image's own language model, which writes `codes` different tokens for the parts of an image."""
    tower = {"depth": 1, "hidden_size": WIDTH, "num_heads": 2, "image_size": 128, "intermediate_size": 32}
    text = _text(vision_vocab_size=codes, **_MROPE)
    text["eos_token_id"] = VOCABULARY - 1  # no code: nothing ends an image early
    config = GlmImageConfig(
        text_config=text,
        vision_config=tower,
        vq_config={"embed_dim": 16, "num_embeddings": codes, "latent_channels": WIDTH},
        image_token_id=_KNOWN,
        image_start_token_id=_KNOWN + 3,
        image_end_token_id=_KNOWN + 4,
    )
    return GlmImageForConditionalGeneration(config).eval()


def chat_processor() -> LlavaProcessor:
    """A processor that needs no torchvision, where only the chat template and the tokenizer of Qwen's are used."""
    return LlavaProcessor(parts.clip_image_processor(), qwen_tokenizer(), patch_size=16, chat_template=_CHAT)


def byt5_tokenizer() -> ByT5Tokenizer:
    """Bytes; 384 ids."""
    return ByT5Tokenizer()


def qwen_processor(cls: type, patch: int = 14) -> Any:
    """Qwen2VLProcessor or Qwen3VLProcessor: `qwen_tokenizer` and an image processor for at most 112x112 pixels.

    Both want a video processor, which transformers only has with torchvision. Without it the processor is put together
    by hand, as if it had one: it can be saved and used, but only a machine with torchvision loads it.
    """
    images = Qwen2VLImageProcessor(patch_size=patch, min_pixels=56 * 56, max_pixels=112 * 112)
    parts = {"image_processor": images, "tokenizer": qwen_tokenizer(), "chat_template": _CHAT}
    try:
        return cls(**parts, video_processor=_video_processor(cls, patch))
    except ImportError:
        return _without_video(cls, parts)


def qwen25_vl(**changes: Any) -> Qwen2_5_VLForConditionalGeneration:
    """Qwen 2.5 VL, the text encoder of Qwen-Image."""
    tower = {"depth": 1, "hidden_size": WIDTH, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": WIDTH}
    tower |= {"patch_size": 14, "fullatt_block_indexes": [0]}
    config = Qwen2_5_VLConfig(text_config=_text(**_MROPE, **changes), vision_config=tower, **_VISION_TOKENS)
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def qwen25_vl_text(**changes: Any) -> Qwen2_5_VLTextModel:
    """The language half of Qwen 2.5 VL, the text encoder of HunyuanVideo 1.5."""
    return Qwen2_5_VLTextModel(Qwen2_5_VLTextConfig(**_text(**_MROPE, **changes))).eval()


def qwen2_vl(**changes: Any) -> Qwen2VLForConditionalGeneration:
    """Qwen 2 VL, the text encoder of EasyAnimate."""
    tower = {"depth": 1, "embed_dim": WIDTH, "hidden_size": WIDTH, "num_heads": 2, "patch_size": 14}
    config = Qwen2VLConfig(text_config=_text(**_MROPE, **changes), vision_config=tower, **_VISION_TOKENS)
    return Qwen2VLForConditionalGeneration(config).eval()


def qwen3_vl(cls: type = Qwen3VLForConditionalGeneration, **changes: Any) -> Qwen3VLForConditionalGeneration:
    """Qwen 3 VL, whole or as Qwen3VLModel."""
    tower = {"depth": 1, "hidden_size": WIDTH, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": WIDTH}
    tower |= {"patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
    text = _text(**_MROPE, **changes)
    return cls(Qwen3VLConfig(text_config=text, vision_config=tower, **_VISION_TOKENS)).eval()


def qwen3_vl_model(**changes: Any) -> Qwen3VLModel:
    """Qwen 3 VL without its language head."""
    return qwen3_vl(Qwen3VLModel, **changes)


def qwen3(**changes: Any) -> Qwen3Model:
    """Qwen 3 without its language head."""
    return Qwen3Model(Qwen3Config(**_text(**changes))).eval()


def qwen3_lm(**changes: Any) -> Qwen3ForCausalLM:
    """Qwen 3."""
    return Qwen3ForCausalLM(Qwen3Config(**_text(**changes))).eval()


def qwen35() -> Qwen3_5ForConditionalGeneration:
    """Qwen 3.5, which rewrites the prompts of FLUX.3; one layer of each kind of attention."""
    tower = {"depth": 1, "hidden_size": WIDTH, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": WIDTH}
    tower |= {"num_position_embeddings": 64}
    linear = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2}
    text = _text(layer_types=["linear_attention", "full_attention"], linear_num_value_heads=2, **linear)
    config = Qwen3_5Config(text_config=text, vision_config=tower, **_VISION_TOKENS)
    return Qwen3_5ForConditionalGeneration(config).eval()


def gemma() -> GemmaModel:
    """Gemma 1."""
    return GemmaModel(GemmaConfig(**_text())).eval()


def gemma2() -> Gemma2Model:
    """Gemma 2, the text encoder of Sana and Lumina 2."""
    return Gemma2Model(Gemma2Config(**_text())).eval()


def gemma3(**changes: Any) -> Gemma3ForConditionalGeneration:
    """Gemma 3 with its image tower, the text encoder of LTX 2."""
    tower = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    tower |= {"image_size": 28, "patch_size": 14}
    config = Gemma3Config(text_config=_text(**changes), vision_config=tower, mm_tokens_per_image=4)
    return Gemma3ForConditionalGeneration(config).eval()


def t5_gemma() -> T5GemmaEncoderModel:
    """The encoder of T5Gemma."""
    return T5GemmaEncoderModel(T5GemmaConfig(encoder=_text(), decoder=_text(), is_encoder_decoder=False)).eval()


def t5_gemma2() -> T5Gemma2Encoder:
    """The encoder of T5Gemma 2, which also looks at images; the text encoder of Motif-Video."""
    tower = {"model_type": "siglip_vision_model", **vision.SIGLIP}
    text = _text(query_pre_attn_scalar=16, dropout_rate=0.0, attention_dropout=0.0)
    config = T5Gemma2EncoderConfig(
        text_config=text, vision_config=tower, mm_tokens_per_image=4, image_token_index=_IMAGE
    )
    return T5Gemma2Encoder(config).eval()


def llava(**changes: Any) -> LlavaForConditionalGeneration:
    """Llama that looks at images with CLIP, the text encoder of HunyuanVideo's image-to-video."""
    tower = {"model_type": "clip_vision_model", "hidden_size": WIDTH, "intermediate_size": 32}
    tower |= {"num_hidden_layers": 2, "num_attention_heads": 2}
    tower |= {"image_size": 96, "patch_size": 4}  # the pipeline counts on 576 patches
    text = _text(**changes) | {"model_type": "llama"}
    config = LlavaConfig(text_config=text, vision_config=tower, image_token_index=_LLAMA_IMAGE, pad_token_id=2)
    return LlavaForConditionalGeneration(config).eval()


def glm() -> GlmModel:
    """GLM 4, the text encoder of CogView 4."""
    return GlmModel(GlmConfig(**_text())).eval()


def llama(**changes: Any) -> LlamaModel:
    """Llama without its language head."""
    return LlamaModel(LlamaConfig(**_text(**changes))).eval()


def llama_lm(**changes: Any) -> LlamaForCausalLM:
    """Llama."""
    return LlamaForCausalLM(LlamaConfig(**_text(**changes))).eval()


def smollm3(**changes: Any) -> SmolLM3ForCausalLM:
    """SmolLM 3, the text encoder of Bria's FIBO."""
    return SmolLM3ForCausalLM(SmolLM3Config(**_text(**changes))).eval()


def mistral3(cls: type = Mistral3ForConditionalGeneration, **changes: Any) -> Mistral3ForConditionalGeneration:
    """Mistral 3 with a Pixtral image tower, whole or as Mistral3Model."""
    tower = {"model_type": "pixtral", "hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 1}
    tower |= {"num_attention_heads": 2, "head_dim": 16, "image_size": 28, "patch_size": 14}
    text = _text(**changes) | {"model_type": "mistral"}
    return cls(Mistral3Config(text_config=text, vision_config=tower, image_token_index=_IMAGE)).eval()


def mistral3_model(**changes: Any) -> Mistral3Model:
    """Mistral 3 without its language head."""
    return mistral3(Mistral3Model, **changes)


def byt5() -> T5EncoderModel:
    """T5 over bytes; reads `byt5_tokenizer`."""
    config = T5Config(vocab_size=384, d_model=WIDTH, d_ff=64, d_kv=8, num_heads=4, num_layers=2, dropout_rate=0.0)
    return T5EncoderModel(config).eval()


def umt5() -> UMT5EncoderModel:
    """UMT5, the text encoder of Wan and AuraFlow; reads the T5 tokenizer's ids."""
    config = UMT5Config(vocab_size=98, d_model=WIDTH, d_ff=64, d_kv=8, num_heads=4, num_layers=2, dropout_rate=0.0)
    return UMT5EncoderModel(config).eval()


_MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}}
_VISION_TOKENS = {
    "image_token_id": _IMAGE,
    "video_token_id": _VIDEO,
    "vision_start_token_id": _VISION_START,
    "vision_end_token_id": _VISION_END,
    "tie_word_embeddings": False,
}


def _text(**changes: Any) -> dict[str, Any]:
    config = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": WIDTH // 2,
        "max_position_embeddings": 4096,
        "bos_token_id": _END,
        "eos_token_id": _TURN_END,
        "pad_token_id": _END,
    }
    return config | changes


def _video_processor(cls: type, patch: int) -> Any:
    from transformers import Qwen2VLVideoProcessor, Qwen3VLVideoProcessor

    video = Qwen3VLVideoProcessor if cls.__name__ == "Qwen3VLProcessor" else Qwen2VLVideoProcessor
    return video(patch_size=patch)


def _without_video(cls: type, parts: dict[str, Any]) -> Any:
    # what transformers would check is only that the video processor is one; no image ever reaches it
    with mock.patch.object(cls, "check_argument_for_proper_class"):
        return cls(**parts, video_processor=parts["image_processor"])

"""Header or model_index.json in, Detection with evidence out. "Unknown" is an answer, never a guess.

`Detection.format` is `diffusers` for repositories and their parts, `safetensors` for weight files, with a suffix where
the weights need more than reading (`safetensors/fp8-scaled`, `safetensors/nf4`, `safetensors/svdquant`), and
`<algorithm>/<dialect>` for LoRAs (see `worker.catalog.adapters`).
"""

from collections.abc import Iterable

from worker.catalog.adapters import declared_base, detect_lora
from worker.catalog.architectures import ARCHITECTURES, Architecture, fits
from worker.catalog.families.row import DENOISER_PREFIXES, TEXT_ENCODER_PREFIXES, VAE_PREFIXES
from worker.catalog.repositories import detect_repository
from worker.core.model import Detection, Kind, Outline, Task, TensorIndex

_CONTROLNETS = (
    "control_model.time_embed.0.weight", "controlnet_cond_embedding.conv_in.weight", "controlnet_x_embedder.weight",
    "controlnet_blocks.0.weight", "control_all_x_embedder.2-1.weight", "control_layers.0.adaLN_modulation.0.weight",
    "lora_controlnet", "input_hint_block.0.weight", "control_model.input_hint_block.0.weight",
)  # fmt: skip
_ATTENTION = "{}attn2.to_k.weight"
_CONTEXTS = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
_VAE_PREFIXES = ("", *VAE_PREFIXES)
_VAE_ENTRIES = (
    "decoder.conv_in.weight", "decoder.conv1.weight", "decoder.conv_in.conv.weight",
    "decoder.stages.1.op_list.0.main.conv.conv.bias", "decoder.middle.0.residual.0.gamma",
)  # fmt: skip
_TEXT_ENCODERS = (
    ("text_model.encoder.layers.0.self_attn.q_proj.weight", "CLIP"),
    ("transformer.resblocks.0.attn.in_proj_weight", "OpenCLIP"),
    ("encoder.block.0.layer.0.SelfAttention.q.weight", "T5"),
    ("layers.0.self_attn.q_proj.weight", "a language model"),
)
_DENOISER_STARTS = ("model.diffusion_model.", "diffusion_model.", "unet.", "input_blocks.", "double_blocks.")
_TEXT_PREFIXES = ("", "model.", "transformer.", "language_model.model.", "model.language_model.", "text_encoder.")
_OTHERS = (
    (("conv_first.weight", "body.0.rdb1.conv1.weight"), "an ESRGAN upscaler", "upscaler"),
    (("model.0.weight", "model.1.sub.0.RDB1.conv1.0.weight"), "an ESRGAN upscaler", "upscaler"),
    (("image_proj.proj.weight",), "an IP-Adapter", "ip-adapter"),
    (("image_proj.latents",), "an IP-Adapter", "ip-adapter"),
    (("ip_adapter.1.to_k_ip.weight",), "an IP-Adapter", "ip-adapter"),
    (("adapter.body.0.in_conv.weight",), "a T2I-Adapter", "t2i-adapter"),
    (("body.0.in_conv.weight",), "a T2I-Adapter", "t2i-adapter"),
    (("adapter.body.0.resnets.0.block1.weight",), "a T2I-Adapter", "t2i-adapter"),
    (("redux_up.weight", "redux_down.weight"), "a FLUX.1 Redux image encoder", "flux1-redux"),
    (("vision_model.encoder.layers.0.self_attn.q_proj.weight",), "an image encoder", "image-encoder"),
    (
        ("down_blocks.0.motion_modules.0.temporal_transformer.norm.weight",),
        "an AnimateDiff motion module",
        "motion-module",
    ),
)
_EMBEDDING_NAMES = frozenset({"emb_params", "clip_g", "clip_l"})
_EMBEDDING_WIDTHS = {768: "sd1", 1024: "sd2", 1280: "sdxl"}
_INPAINT_CHANNELS, _EDIT_CHANNELS, _DEPTH_CHANNELS = 9, 8, 5
_VARIANTS = {
    ("sd1", _INPAINT_CHANNELS): ("StableDiffusionInpaintPipeline", Task.INPAINTING),
    ("sd2", _INPAINT_CHANNELS): ("StableDiffusionInpaintPipeline", Task.INPAINTING),
    ("sdxl", _INPAINT_CHANNELS): ("StableDiffusionXLInpaintPipeline", Task.INPAINTING),
    ("sd1", _EDIT_CHANNELS): ("StableDiffusionInstructPix2PixPipeline", Task.IMAGE_EDITING),
    ("sdxl", _EDIT_CHANNELS): ("StableDiffusionXLInstructPix2PixPipeline", Task.IMAGE_EDITING),
    ("sd2", _DEPTH_CHANNELS): ("StableDiffusionDepth2ImgPipeline", Task.IMAGE_TO_IMAGE),
}
_MAX_NEAR = 3
_NEAR_ENOUGH = 0.2


def detect(outline: Outline) -> Detection:
    """Say what a source is from its JSON files, or from one file's header.

    Raises UnsupportedModel for what is recognised and cannot run here: remote code, modular repositories, other media.
    """
    found = detect_repository(outline.configs)
    if found is not None and found.kind is Kind.PIPELINE:
        return found
    if outline.header is None:
        return found or Detection(Kind.UNKNOWN, "unknown", evidence=("no model_index.json and no weights to look at",))
    seen = detect_header(outline.header)
    if found is None:
        return seen
    if found.kind is Kind.LORA and seen.kind is Kind.LORA:
        base = seen.architecture or found.architecture
        evidence = (*seen.evidence, *found.evidence)
        return Detection(Kind.LORA, seen.format, architecture=base, evidence=evidence)
    return found if seen.kind is Kind.UNKNOWN else seen


def detect_header(index: TensorIndex, name: str = "") -> Detection:
    """Say what a weight file is from its names, shapes and metadata. `name` is the file's, and only breaks ties."""
    for step in (_lora, _embedding, _controlnet, _denoiser, _vae, _text_encoder):
        found = step(index)
        if found is not None:
            return found
    return _unknown(index, name)


def _lora(index: TensorIndex) -> Detection | None:
    lora = detect_lora(index)
    if lora is None:
        return None
    return Detection(
        Kind.LORA, f"{lora.algorithm}/{lora.dialect}", architecture=lora.base, evidence=lora.evidence + _metadata(index)
    )


def _embedding(index: TensorIndex) -> Detection | None:
    """Textual inversions hold a few vectors as wide as their text encoder."""
    if len(index.tensors) >= 10:
        return None
    names = set(index.tensors)
    token = len(names) == 1 and next(iter(names)).startswith("<")
    if not (names & _EMBEDDING_NAMES or token or any("string_to_param" in name for name in names)):
        return None
    if {"clip_g", "clip_l"} <= names:
        evidence = ("has clip_g and clip_l: two text encoders",)
        return Detection(Kind.TEXTUAL_INVERSION, "safetensors", architecture="sdxl", evidence=evidence)
    name, (_, shape) = next(iter(index.tensors.items()))
    base = _EMBEDDING_WIDTHS.get(shape[-1]) if shape else None
    return Detection(
        Kind.TEXTUAL_INVERSION, "safetensors", architecture=base, evidence=(f"{name[:60]} is {shape}: token vectors",)
    )


def _controlnet(index: TensorIndex) -> Detection | None:
    marker = next((name for name in _CONTROLNETS if name in index.tensors), None)
    if marker is None:
        return None
    evidence = [f"has {marker}"]
    base = "flux1" if _has_shape(index, "controlnet_x_embedder.weight", 3072) else None
    if base is None and any(name in index.tensors for name in ("control_all_x_embedder.2-1.weight",)):
        base = "z-image"
    for name, (_, shape) in index.tensors.items():
        if base is None and name.endswith("transformer_blocks.0.attn2.to_k.weight") and len(shape) == 2:
            base = _CONTEXTS.get(shape[1])
            evidence.append(f"{name} is {shape}")
    return Detection(Kind.CONTROLNET, "safetensors", architecture=base, evidence=tuple(evidence))


def _has_shape(index: TensorIndex, name: str, size: int) -> bool:
    tensor = index.tensors.get(name)
    return tensor is not None and bool(tensor[1]) and tensor[1][0] == size


def _denoiser(index: TensorIndex) -> Detection | None:
    """Find the row whose condition holds; the parts beside the denoiser tell a checkpoint from a denoiser alone."""
    for row in ARCHITECTURES:
        found = row.checkpoint.match(index) if row.checkpoint else None
        if found is not None:
            return _model(index, row, Kind.CHECKPOINT, found)
        found = row.denoiser.match(index) if row.denoiser else None
        if found is not None:
            parts = any(name.startswith((*VAE_PREFIXES, *TEXT_ENCODER_PREFIXES)) for name in index.tensors)
            return _model(index, row, Kind.CHECKPOINT if parts else Kind.DENOISER, found)
    return None


def _model(index: TensorIndex, row: Architecture, kind: Kind, found: tuple[str, ...]) -> Detection:
    evidence = [f"{text}: {row.id}" if at == 0 else text for at, text in enumerate(found)]
    pipeline, tasks = next(iter(row.pipelines.values())), tuple(row.pipelines)
    channels = _input_channels(index)
    variant = _VARIANTS.get((row.id, channels)) if channels else None
    if variant is not None:
        pipeline, tasks = variant[0], (variant[1],)
        evidence.append(f"{channels} input channels")
    if kind is Kind.CHECKPOINT:
        evidence.extend(_missing(index))
    weights, why = _storage(index)
    evidence.extend(why)
    prediction, why = _prediction(index)
    evidence.extend(why)
    declared = declared_base(index.metadata.get("modelspec.architecture", ""))
    if not fits(declared, row.id):
        evidence.append(f"metadata says {declared}, which the tensors contradict")
    return Detection(
        kind,
        weights,
        row.id,
        pipeline,
        tasks,
        prediction,
        zero_snr="ztsnr" in index.tensors,
        native_size=row.native_size,
        evidence=(*evidence, *_metadata(index)),
    )


def _input_channels(index: TensorIndex) -> int | None:
    for prefix in DENOISER_PREFIXES:
        for name in ("input_blocks.0.0.weight", "conv_in.weight"):
            tensor = index.tensors.get(prefix + name)
            if tensor is not None and len(tensor[1]) == 4:
                return tensor[1][1]
    return None


def _missing(index: TensorIndex) -> Iterable[str]:
    for what, prefixes in (("VAE", VAE_PREFIXES), ("text encoder", TEXT_ENCODER_PREFIXES)):
        if not any(name.startswith(prefixes) for name in index.tensors):
            yield f"no {what} in the file"


def _storage(index: TensorIndex) -> tuple[str, tuple[str, ...]]:
    """Say how the weights are stored; a plain reading of the suffixed formats gives garbage."""
    for name in index.tensors:
        if name.endswith((".scale_weight", ".weight_scale", ".scale_input", "scaled_fp8", ".comfy_quant")):
            return "safetensors/fp8-scaled", (f"has {name}: the weights need their scales",)
        if ".quant_state.bitsandbytes__" in name:
            return "safetensors/nf4", (f"has {name}: 4-bit weights",)
        if name.endswith((".qweight", ".wscales", ".proj_down")):
            return "safetensors/svdquant", (f"has {name}: 4-bit weights",)
    if "_quantization_metadata" in index.metadata:
        return "safetensors/fp8-scaled", ("metadata lists scaled layers: the weights need their scales",)
    if any(dtype.startswith("F8") for dtype, _ in index.tensors.values()):
        return "safetensors", ("weights in fp8",)
    return "safetensors", ()


def _prediction(index: TensorIndex) -> tuple[str | None, tuple[str, ...]]:
    """Read what the model predicts from the marker tensors that trainers leave, else from the metadata."""
    has = index.tensors.keys()
    if "edm_vpred.sigma_max" in has:
        return "edm_v_prediction", ("has edm_vpred.sigma_max",)
    if "edm_mean" in has and "edm_std" in has:
        return "edm", ("has edm_mean and edm_std",)
    if "v_pred" in has:
        return "v_prediction", tuple(f"has {name}" for name in ("v_pred", "ztsnr") if name in has)
    text = index.metadata.get("modelspec.prediction_type", index.metadata.get("modelspec.predict_key", "")).lower()
    if text in ("v", "v_prediction", "v-prediction", "vpred"):
        return "v_prediction", (f"metadata prediction_type is {text}",)
    if text in ("epsilon", "eps"):
        return "epsilon", (f"metadata prediction_type is {text}",)
    return None, ("has ztsnr",) if "ztsnr" in has else ()


def _has_denoiser(index: TensorIndex) -> bool:
    """Say whether a denoiser that no row knows is in the file, so that it is not taken for one of its parts."""
    return any(name.startswith(_DENOISER_STARTS) for name in index.tensors)


def _vae(index: TensorIndex) -> Detection | None:
    if _has_denoiser(index):
        return None
    for prefix in _VAE_PREFIXES:
        for entry in _VAE_ENTRIES:
            tensor = index.tensors.get(prefix + entry)
            if tensor is not None:
                channels = f" with {tensor[1][1]} latent channels" if len(tensor[1]) >= 2 else ""
                evidence = (f"{prefix}{entry} is {tensor[1]}: a VAE{channels}",)
                return Detection(Kind.VAE, _storage(index)[0], evidence=evidence)
    return None


def _text_encoder(index: TensorIndex) -> Detection | None:
    if _has_denoiser(index):
        return None
    for prefix in _TEXT_PREFIXES:
        for entry, what in _TEXT_ENCODERS:
            tensor = index.tensors.get(prefix + entry)
            if tensor is not None:
                evidence = (f"{prefix}{entry} is {tensor[1]}: {what}",)
                return Detection(Kind.TEXT_ENCODER, _storage(index)[0], evidence=evidence)
    return None


def _unknown(index: TensorIndex, name: str) -> Detection:
    for markers, what, near in _OTHERS:
        if all(marker in index.tensors for marker in markers):
            return Detection(Kind.UNKNOWN, "safetensors", evidence=(f"has {markers[0]}: {what}",), near=(near,))
    scores = []
    for row in ARCHITECTURES:
        score = max((part.score(index) for part in (row.denoiser, row.checkpoint) if part), default=0.0)
        if score >= _NEAR_ENOUGH:
            scores.append((score, row.id))
    scores.sort(key=lambda scored: -scored[0])
    sample = next(iter(index.tensors), "")
    where = f" in {name[:60]}" if name else ""
    evidence = (f"{len(index.tensors)} tensors{where} that no row knows, the first is {sample[:80]}", *_metadata(index))
    return Detection(Kind.UNKNOWN, "safetensors", evidence=evidence, near=tuple(id for _, id in scores[:_MAX_NEAR]))


def _metadata(index: TensorIndex) -> tuple[str, ...]:
    """Quote what the file says of itself: a hint for people, no proof."""
    keys = ("modelspec.architecture", "modelspec.title", "ss_base_model_version", "ss_network_module")
    return tuple(f"metadata {key} is {index.metadata[key][:60]}" for key in keys if index.metadata.get(key))

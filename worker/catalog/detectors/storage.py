"""How a file stores its weights, what it predicts, which parts of a pipeline it holds: all from names and dtypes."""

import re
from collections.abc import Iterator

from worker.catalog.families.row import DENOISER_PREFIXES
from worker.core.model import TensorIndex

# What tools write beside quantized weights. Read like plain ones, these give garbage without an error.
_SCALES = (".scale_weight", ".weight_scale", ".scale_input", ".input_scale", "scaled_fp8", ".comfy_quant")
_SVDQUANT = (".qweight", ".wscales", ".proj_down", ".smooth_factor")
_BNB = re.compile(r"\.quant_state\.bitsandbytes__(nf4|fp4)$|\.(?:absmax|quant_map)$")

# Component of a pipeline -> how single files begin its names. First match in a file wins for each component.
_PARTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("vae", ("first_stage_model.", "vae.")),
    (
        "text_encoder",
        ("cond_stage_model.", "conditioner.embedders.0.", "text_encoders.", "text_encoder.", "te.", "te1."),
    ),
    (
        "text_encoder_2",
        ("conditioner.embedders.1.", "text_encoders.clip_g.", "text_encoders.t5xxl.", "text_encoder_2.", "te2."),
    ),
    ("text_encoder_3", ("text_encoder_3.", "te3.")),
    ("audio_vae", ("audio_vae.",)),
    ("vocoder", ("vocoder.",)),
    ("safety_checker", ("safety_checker.",)),
    ("image_encoder", ("image_encoder.", "embedder.model.visual.", "clip_vision.")),
)

_THREE = ("text_encoders.clip_g", "text_encoders.t5xxl")
_ALL_STARTS = tuple(start for _, starts in _PARTS for start in starts)


def quantization_of(index: TensorIndex) -> tuple[str | None, tuple[str, ...]]:
    """Return how the weights are quantized (fp8, fp8-scaled, nf4, svdquant, gguf; None for plain) and the evidence."""
    if index.container == "gguf":
        types = sorted({dtype for dtype, _ in index.tensors.values()} - {"F32", "F16", "BF16"})
        return ("gguf", (f"GGUF with {', '.join(types)[:80]}",)) if types else (None, ("GGUF with plain weights",))
    fp8 = None
    for name, (dtype, _) in index.tensors.items():
        if name.endswith(_SCALES):
            return "fp8-scaled", (f"has {name}: the weights need their scales",)
        if _BNB.search(name):
            return "nf4", (f"has {name}: 4-bit weights",)
        if name.endswith(_SVDQUANT):
            return "svdquant", (f"has {name}: 4-bit weights",)
        if dtype.startswith("F8") and fp8 is None:
            fp8 = name
    if "_quantization_metadata" in index.metadata:
        return "fp8-scaled", ("metadata lists scaled layers: the weights need their scales",)
    return ("fp8", ("weights in fp8",)) if fp8 is not None else (None, ())


def prediction_of(index: TensorIndex) -> tuple[str | None, bool, tuple[str, ...]]:
    """Return what the model predicts, whether down to zero signal, and the evidence.

    Marker tensors that trainers leave come first, then the metadata. None where neither tells.
    """
    has = index.tensors.keys()
    zero = "ztsnr" in has or index.metadata.get("modelspec.zero_terminal_snr", "").lower() == "true"
    told = ("has ztsnr",) if "ztsnr" in has else ()
    if "edm_vpred.sigma_max" in has:
        return "edm_v_prediction", zero, ("has edm_vpred.sigma_max",)
    if "edm_mean" in has and "edm_std" in has:
        return "edm", zero, ("has edm_mean and edm_std",)
    if "v_pred" in has:
        return "v_prediction", zero, ("has v_pred", *told)
    for key in ("modelspec.prediction_type", "modelspec.predict_key"):
        text = index.metadata.get(key, "").lower()
        if text in ("v", "v_prediction", "v-prediction", "vpred"):
            return "v_prediction", zero, (f"metadata {key} is {text}", *told)
        if text in ("epsilon", "eps"):
            return "epsilon", zero, (f"metadata {key} is {text}", *told)
    # Stability's own 2.x checkpoints: the base models stopped at 220,000 and 550,000 steps, the 768 ones went on
    steps = {"110000": "v_prediction", "140000": "v_prediction", "220000": "epsilon", "550000": "epsilon"}
    step = index.metadata.get("global_step", "")
    if index.container == "torch" and step in steps:
        return steps[step], zero, (f"global_step is {step}", *told)
    return None, zero, told


def parts_of(index: TensorIndex) -> tuple[str, ...]:
    """Return the parts of a pipeline that the file holds, the denoiser first."""
    return ("denoiser", *parts_beside(index))


def parts_beside(index: TensorIndex) -> tuple[str, ...]:
    """Return the parts that a file holds beside its denoiser."""
    # a few beginnings stand for thousands of names
    heads = {".".join(name.split(".", 3)[:3]) for name in index.tensors if name.startswith(_ALL_STARTS)}
    parts = tuple(part for part, starts in _PARTS if any(f"{head}.".startswith(starts) for head in heads))
    # T5 is FLUX.1's second text encoder and Stable Diffusion 3's third
    three = all(any(head.startswith(start) for head in heads) for start in _THREE)
    return (*parts, "text_encoder_3") if three and "text_encoder_3" not in parts else parts


def missing_parts(index: TensorIndex) -> Iterator[str]:
    """Yield what a checkpoint lacks, as facts for its evidence."""
    held = parts_beside(index)
    if "vae" not in held:
        yield "no VAE in the file"
    if "text_encoder" not in held:
        yield "no text encoder in the file"


def input_channels(index: TensorIndex) -> int | None:
    """Return how many channels a UNet takes in: 4 for plain ones, 9 to inpaint, 8 to edit, 5 with depth."""
    for prefix in DENOISER_PREFIXES:
        for name in ("input_blocks.0.0.weight", "conv_in.weight"):
            tensor = index.tensors.get(prefix + name)
            if tensor is not None and len(tensor[1]) == 4:
                return tensor[1][1]
    return None

"""Facts of a weight file by its names and dtypes: its storage, its prediction type, its parts of a pipeline."""

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from worker.catalog.families.row import DENOISER_PREFIXES
from worker.core.model import ModelFiles, ModelSource, Outline, TensorIndex
from worker.core.precision import Reducible
from worker.core.single_file import VAE_PREFIXES, text_encoders

# Names that tools write beside quantized weights. Read like plain ones, such weights give garbage without an error.
_SCALES = (".scale_weight", ".weight_scale", ".scale_input", ".input_scale", "scaled_fp8", ".comfy_quant")
_GLOBAL_SCALE = ".weight_scale_2"
_SVDQUANT = (".qweight", ".wscales", ".proj_down", ".smooth_factor")
# Blocks of GGUF that diffusers cannot unpack.
UNREAD_BLOCKS = frozenset({
    "Q8_1", "Q8_K", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "TQ1_0", "TQ2_0", "MXFP4",
    "NVFP4",
})  # fmt: skip
_BNB = re.compile(r"\.quant_state\.bitsandbytes__(nf4|fp4)$|\.(?:absmax|quant_map)$")

# Component of a pipeline -> the starts of its names in single files. The first match wins for each component.
_PARTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("vae", VAE_PREFIXES),
    ("audio_vae", ("audio_vae.",)),
    ("vocoder", ("vocoder.",)),
    ("safety_checker", ("safety_checker.",)),
    ("image_encoder", ("image_encoder.", "embedder.model.visual.", "clip_vision.")),
)

_ALL_STARTS = tuple(start for _, starts in _PARTS for start in starts)


def quantization_of(index: TensorIndex) -> tuple[str | None, tuple[str, ...]]:
    """Return the weights' quantization, by its id in capabilities.py, and the evidence; None for plain weights.

    GGUF in blocks that cannot be read has their name.
    """
    if index.container == "gguf":
        return _blocks_of(index)
    special = _int8_of(index) or _scaled_in_blocks(index)
    if special is not None:
        return special
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


def _scaled_in_blocks(index: TensorIndex) -> tuple[str, tuple[str, ...]] | None:
    """Return the quantization of weights with a scale for each block of a row, and the evidence; None for others."""
    four = next((name for name in index.tensors if name.endswith(_GLOBAL_SCALE)), None)
    if four is not None:
        # ComfyUI marks its layers, and orders their scales as one kind of GPU reads them.
        comfy = any(name.endswith(".comfy_quant") for name in index.tensors)
        return "nvfp4-comfy" if comfy else "nvfp4", (f"has {four}: 4-bit weights in blocks",)
    for name, (_, shape) in index.tensors.items():
        if len(shape) == 2 and min(shape) > 1 and name.endswith(_SCALES):
            return "mxfp8", (f"has {name} of {shape}: weights scaled in blocks",)
    return None


def unpacked(index: TensorIndex) -> TensorIndex:
    """Return the header with the shapes that nvfp4 weights have when unpacked: two of their numbers lie in a byte."""
    stems = {name.removesuffix(_GLOBAL_SCALE) for name in index.tensors if name.endswith(_GLOBAL_SCALE)}
    if not stems:
        return index
    tensors = {
        name: (dtype, (*shape[:-1], 2 * shape[-1]))
        if dtype == "U8" and name.endswith(".weight") and name.removesuffix(".weight") in stems
        else (dtype, shape)
        for name, (dtype, shape) in index.tensors.items()
    }
    return replace(index, tensors=tensors)


def _blocks_of(index: TensorIndex) -> tuple[str | None, tuple[str, ...]]:
    """Return the quantization of a GGUF file: the first kind of blocks that cannot be read goes before all others."""
    types = sorted({dtype for dtype, _ in index.tensors.values()} - {"F32", "F16", "BF16"})
    if not types:
        return None, ("GGUF with plain weights",)
    unread = [name for name in types if name in UNREAD_BLOCKS]
    return unread[0] if unread else "gguf", (f"GGUF with {', '.join(types)[:80]}",)


def _int8_of(index: TensorIndex) -> tuple[str, tuple[str, ...]] | None:
    """Return ComfyUI's int8: a scale beside int8 weights. With ConvRot, which only metadata can say, they are rotated.

    Its layers' own markers are tensors, whose content no header shows.
    """
    for name in index.tensors:
        layer = name.removesuffix(".weight_scale").removesuffix(".scale_weight")
        if layer != name and index.tensors.get(f"{layer}.weight", ("", ()))[0] == "I8":
            rotated = "convrot" in index.metadata.get("_quantization_metadata", "")
            rotation = ", and the metadata says convrot" if rotated else ""
            return ("int8-convrot" if rotated else "int8"), (f"{layer}.weight is int8 with a scale{rotation}",)
    return None


def prediction_of(index: TensorIndex) -> tuple[str | None, bool, tuple[str, ...]]:
    """Return the prediction type, True if the noise goes down to zero signal, and the evidence.

    Marker tensors of trainers come first, then the metadata. The type is None where neither tells.
    """
    names = index.tensors.keys()
    zero_snr = "ztsnr" in names or index.metadata.get("modelspec.zero_terminal_snr", "").lower() == "true"
    evidence = ("has ztsnr",) if "ztsnr" in names else ()
    if "edm_vpred.sigma_max" in names:
        return "edm_v_prediction", zero_snr, ("has edm_vpred.sigma_max",)
    if "edm_mean" in names and "edm_std" in names:
        return "edm", zero_snr, ("has edm_mean and edm_std",)
    if "v_pred" in names:
        return "v_prediction", zero_snr, ("has v_pred", *evidence)
    for key in ("modelspec.prediction_type", "modelspec.predict_key"):
        text = index.metadata.get(key, "").lower()
        if text in ("v", "v_prediction", "v-prediction", "vpred"):
            return "v_prediction", zero_snr, (f"metadata {key} is {text}", *evidence)
        if text in ("epsilon", "eps"):
            return "epsilon", zero_snr, (f"metadata {key} is {text}", *evidence)
    # Stability's own 2.x checkpoints: the base models stopped at 220,000 and 550,000 steps, the 768 ones went on
    steps = {"110000": "v_prediction", "140000": "v_prediction", "220000": "epsilon", "550000": "epsilon"}
    step = index.metadata.get("global_step", "")
    if index.container == "torch" and step in steps:
        return steps[step], zero_snr, (f"global_step is {step}", *evidence)
    return None, zero_snr, evidence


def held(index: TensorIndex) -> tuple[int, int]:
    """Return how a file with a denoiser lies in memory: the count of plain numbers, and the bytes that stay packed.

    Of GGUF the loader unpacks all but the denoiser's matrices; of nvfp4 it unpacks nothing.
    """
    if index.container == "gguf":
        packed = index.packed((*_ALL_STARTS, *text_encoders(index.tensors)))
        plain = sum(math.prod(shape) for name, (_, shape) in index.tensors.items() if name not in packed)
        return plain, sum(packed.values())
    return (0, index.file_bytes) if quantization_of(index)[0] == "nvfp4" else (index.parameters, 0)


def outlined_files(source: ModelSource, outline: Outline) -> ModelFiles | None:
    """Return the files of a source as far as its outline tells, to plan with; None where their size is not told."""
    if not outline.weight_bytes:
        return None
    plain, packed = held(outline.header) if outline.header else (0, 0)
    return ModelFiles(
        root=Path(source.locator),
        total_bytes=outline.weight_bytes,
        revision=outline.revision,
        parameters={"model": plain} if plain else {},
        reducible=_reducible(outline.header) if plain else {},
        packed={"model": packed} if packed else {},
    )


def _reducible(header: TensorIndex | None) -> dict[str, Reducible]:
    shapes = {name: shape for name, (_, shape) in header.tensors.items()} if header else {}
    return {"model": Reducible.of("model", shapes)}


def parts_of(index: TensorIndex) -> tuple[str, ...]:
    """Return the parts of a pipeline that the file holds, the denoiser first."""
    return ("denoiser", *parts_beside(index))


def parts_beside(index: TensorIndex) -> tuple[str, ...]:
    """Return the parts that a file holds beside its denoiser."""
    # a few beginnings stand for thousands of names
    heads = {".".join(name.split(".", 3)[:3]) for name in index.tensors if name.startswith(_ALL_STARTS)}
    parts = tuple(part for part, starts in _PARTS if any(f"{head}.".startswith(starts) for head in heads))
    count = len(text_encoders(index.tensors))
    encoders = tuple("text_encoder" if number == 1 else f"text_encoder_{number}" for number in range(1, count + 1))
    return (*parts[:1], *encoders, *parts[1:]) if parts[:1] == ("vae",) else (*encoders, *parts)


def is_vae_alone(index: TensorIndex) -> bool:
    """True if a VAE's prefix stands before every tensor: the file is an autoencoder, cut out of a checkpoint."""
    return all(name.startswith(VAE_PREFIXES) for name in index.tensors)


def missing_parts(index: TensorIndex) -> Iterator[str]:
    """Yield the parts that a checkpoint lacks, as facts for its evidence."""
    parts = parts_beside(index)
    if "vae" not in parts:
        yield "no VAE in the file"
    if "text_encoder" not in parts:
        yield "no text encoder in the file"


def input_channels(index: TensorIndex) -> int | None:
    """Return the number of a UNet's input channels: 4 for plain ones, 9 to inpaint, 8 to edit, 5 with depth."""
    for prefix in DENOISER_PREFIXES:
        for name in ("input_blocks.0.0.weight", "conv_in.weight"):
            tensor = index.tensors.get(prefix + name)
            if tensor is not None and len(tensor[1]) == 4:
                return tensor[1][1]
    return None

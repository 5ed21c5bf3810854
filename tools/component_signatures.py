"""Write component_signatures.json.gz (worker/catalog/detectors): the weights' names of each diffusers model class.

    python -m tools.component_signatures

Run it after a new diffusers is pinned: classes that it brings are then recognised from a file's names alone. Every
model class is built on the meta device from its default configuration (or the one in CONFIGURATIONS), so nothing is
downloaded and no memory is used; it takes about two minutes. Numbers in names become `#`, so that depth does not
matter. Which pipelines take a class is read from the annotations of their constructors, in diffusers' source text.
"""

import ast
import gzip
import json
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import diffusers
import torch
from diffusers.models.modeling_utils import ModelMixin

from worker.catalog.detectors.components import FILE, normalised

# Classes whose defaults cannot be built: the published configuration of their best known model.
CONFIGURATIONS: Mapping[str, Mapping[str, object]] = {
    "HiDreamImageTransformer2DModel": {
        "patch_size": 2, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 128,
        "num_attention_heads": 20, "caption_channels": [4096, 4096], "text_emb_dim": 2048, "num_routed_experts": 4,
        "num_activated_experts": 2, "axes_dims_rope": [64, 32, 32], "max_resolution": [128, 128],
        "llama_layers": [0, 0],
    },
    "StableCascadeUNet": {
        "in_channels": 16, "out_channels": 16, "patch_size": 1, "block_out_channels": [2048, 2048],
        "num_attention_heads": [32, 32], "down_num_layers_per_block": [8, 24], "up_num_layers_per_block": [24, 8],
        "clip_text_in_channels": 1280, "clip_text_pooled_in_channels": 1280, "clip_image_in_channels": 768,
        "conditioning_dim": 2048, "down_blocks_repeat_mappers": [1, 1], "up_blocks_repeat_mappers": [1, 1],
        "block_types_per_layer": [["SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"]] * 2,
        "dropout": [0.1, 0.1], "self_attn": True, "timestep_conditioning_type": ["sca", "crp"],
    },
    "AutoencoderKL": {
        "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
        "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
    "PixArtTransformer2DModel": {"caption_channels": 4096, "sample_size": 64, "use_additional_conditions": False},
    "T2IAdapter": {"adapter_type": "full_adapter_xl"},
    "HunyuanDiT2DModel": {
        "num_attention_heads": 16, "attention_head_dim": 88, "num_layers": 4, "hidden_size": 1408, "text_len": 77,
        "text_len_t5": 256, "cross_attention_dim": 1024, "cross_attention_dim_t5": 2048, "pooled_projection_dim": 1024,
        "in_channels": 4, "patch_size": 2, "sample_size": 128, "mlp_ratio": 4.3637, "learn_sigma": True,
        "activation_fn": "gelu-approximate", "norm_type": "layer_norm",
    },
    "HunyuanDiT2DControlNetModel": {
        "num_attention_heads": 16, "attention_head_dim": 88, "transformer_num_layers": 4, "hidden_size": 1408,
        "cross_attention_dim": 1024, "cross_attention_dim_t5": 2048, "pooled_projection_dim": 1024, "in_channels": 4,
        "patch_size": 2, "sample_size": 128, "mlp_ratio": 4.3637, "activation_fn": "gelu-approximate",
    },
    "OmniGenTransformer2DModel": {
        "num_layers": 2,
        "rope_scaling": {"long_factor": [1.0] * 48, "short_factor": [1.0] * 48, "type": "su"},
    },
    "LuminaNextDiT2DModel": {"num_layers": 2, "num_kv_heads": 8},
    "LatteTransformer3DModel": {
        "num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "out_channels": 8, "num_layers": 2,
        "cross_attention_dim": 1152, "caption_channels": 4096, "patch_size": 2, "sample_size": 64, "video_length": 16,
        "norm_type": "ada_norm_single", "activation_fn": "gelu-approximate", "attention_bias": True,
        "norm_elementwise_affine": False,
    },
    "EasyAnimateTransformer3DModel": {"num_attention_heads": 48, "attention_head_dim": 64, "num_layers": 2},
    "DreamLiteTransformer2DModel": {"in_channels": 4},
    "ZImageControlNetModel": {
        "control_layers_places": [0, 5, 10, 15, 20, 25], "control_refiner_layers_places": [0, 1], "control_in_dim": 33,
    },
    "ControlNetUnionModel": {
        "cross_attention_dim": 2048, "block_out_channels": [320, 640, 1280], "attention_head_dim": [5, 10, 20],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "transformer_layers_per_block": [1, 2, 10], "use_linear_projection": True, "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816, "num_control_type": 6,
        "num_trans_channel": 320, "num_trans_head": 8, "num_trans_layer": 1, "num_proj_channel": 320,
    },
    "AutoencoderKLHunyuanImage": {
        "in_channels": 3, "out_channels": 3, "latent_channels": 64,
        "block_out_channels": [128, 256, 512, 512, 1024, 1024], "layers_per_block": 2, "spatial_compression_ratio": 32,
        "sample_size": 384, "scaling_factor": 0.75289,
    },
}  # fmt: skip
_KINDS = (
    ("ControlNet", "controlnet"), ("Controlnet", "controlnet"), ("T2IAdapter", "t2i-adapter"),
    ("MotionAdapter", "motion-module"), ("Autoencoder", "vae"), ("VQModel", "vae"), ("VAE", "vae"),
    ("VideoToVideo", "denoiser"), ("Transformer", "denoiser"), ("UNet", "denoiser"), ("DiT", "denoiser"),
)  # fmt: skip


def kind_of(name: str) -> str | None:
    """Say what a model class is, from its name; None for what is no part of an image or video pipeline."""
    if any(
        word in name
        for word in ("Audio", "Vocoder", "UNet1D", "Music", "AceStep", "MultiControlNet", "MultiAdapter", "Protein")
    ):
        return None
    return next((kind for word, kind in _KINDS if word in name), None)


def signature_of(name: str) -> list[str]:
    """Return the sorted normalised tensor names of a model class. Raises whatever the class raises."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = getattr(diffusers, name).from_config(dict(CONFIGURATIONS.get(name, {})))
    return sorted({normalised(key) for key in model.state_dict()})


def model_classes() -> Iterator[str]:
    """Yield the exported model classes that are a part of an image or video pipeline."""
    exported = {name for names in diffusers._import_structure.values() for name in names}
    for name in sorted(exported):
        if kind_of(name) and not name.startswith("Flax"):
            value = getattr(diffusers, name)
            if isinstance(value, type) and issubclass(value, ModelMixin):
                yield name


def users(classes: set[str]) -> dict[str, list[str]]:
    """Return the pipeline classes whose constructor takes a model class, by model class, best name first."""
    found: dict[str, list[str]] = {name: [] for name in classes}
    for path in sorted((Path(diffusers.__file__).parent / "pipelines").rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not (isinstance(node, ast.ClassDef) and node.name.endswith("Pipeline")):
                continue
            start = next((part for part in node.body if getattr(part, "name", "") == "__init__"), None)
            if isinstance(start, ast.FunctionDef):
                for argument in start.args.args:
                    for part in ast.walk(argument.annotation) if argument.annotation else ():
                        if isinstance(part, ast.Name) and part.id in classes and node.name not in found[part.id]:
                            found[part.id].append(node.name)
    return {name: sorted(pipelines, key=lambda text: (len(text), text)) for name, pipelines in found.items()}


def main() -> None:
    """Build every class and write the file."""
    torch.set_num_threads(1)
    table: dict[str, dict[str, object]] = {}
    for name in model_classes():
        try:
            table[name] = {"kind": kind_of(name), "names": signature_of(name)}
        except Exception as error:
            print(f"left out {name}: {type(error).__name__}: {str(error)[:100]}", file=sys.stderr)
    for name, pipelines in users(set(table)).items():
        table[name]["pipelines"] = pipelines
    text = json.dumps({"diffusers": diffusers.__version__, "classes": table}, separators=(",", ":"))
    FILE.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    print(f"{len(table)} classes of diffusers {diffusers.__version__}, {FILE.stat().st_size:,} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()

"""A ControlNet or T2I-Adapter from disk: a diffusers folder, or one weight file in diffusers' or the original layout.

A single file has no config. Its base decides whatever the file leaves open, so the config is the base's own, with the
numbers of the file's shapes. A control LoRA also needs its base's weights (`control_loras.py`).
"""

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from worker.core.adapter import AdapterFiles, Control
from worker.core.errors import CorruptFile, IncompatibleAdapter, UnsupportedModel, WorkerError
from worker.core.single_file import DIFFERENCE, unwrapped
from worker.engine.adapters.control_loras import MARKER, added, unfolded
from worker.engine.devices import is_out_of_memory
from worker.engine.pretrained import load_pretrained

_FIELD = "controlnets"
Weights = dict[str, Tensor]

_PREFIXES = ("control_model.", "controlnet.", "model.diffusion_model.", "diffusion_model.")
_INSIDE = "control_model."  # a checkpoint of the first authors holds the whole model beside its ControlNet
_WEIGHTS = "diffusion_pytorch_model"
_REFINED_BY_LAYERS = "control_layers"
# Values in which control and base must agree, by the names of their configs.
_SHARED = ("cross_attention_dim", "joint_attention_dim", "caption_channels", "dim", "cross_attention_dim_t5")


def load_control(item: AdapterFiles[Control], denoiser: Any, dtype: torch.dtype) -> nn.Module:
    """Load the control into memory, in `dtype`, on the CPU.

    Raises IncompatibleAdapter where it does not fit `denoiser`, CorruptFile where it is damaged, UnsupportedModel for
    a single file that needs a config of its own.
    """
    name, root = item.model, item.files.root
    try:
        net = _from_folder(item, dtype) if root.is_dir() else _from_file(item, denoiser, dtype)
    except WorkerError:
        raise
    except SafetensorError:
        raise CorruptFile(f"{_FIELD}: the weights of {name} are damaged; fetch it again.", field=_FIELD) from None
    except (OSError, ValueError, RuntimeError, LookupError) as error:
        if is_out_of_memory(error):
            raise
        raise CorruptFile(
            f"{_FIELD}: {name} cannot be read as a {item.detection.component_class} ({type(error).__name__}); "
            "its files are damaged or of another kind than they say.",
            field=_FIELD,
        ) from None
    _check_sizes(net, denoiser, name)
    return net.requires_grad_(False).eval()


def _from_folder(item: AdapterFiles[Control], dtype: torch.dtype) -> Any:
    root = item.files.root
    return load_pretrained(
        _class(item),
        root,
        f"{_FIELD}: {item.model}",
        field=_FIELD,
        dtype=dtype,
        variant=item.files.variant or _only_variant(root),
        use_safetensors=True,
        local_files_only=True,
    )


def _only_variant(root: Path) -> str | None:
    """Return the variant in a folder that lacks the plain weights: "fp16", for example."""
    if any(root.glob(f"{_WEIGHTS}.safetensors*")):
        return None
    names = sorted(path.name.split(".")[1] for path in root.glob(f"{_WEIGHTS}.*.safetensors"))
    return names[0] if names else None


def _from_file(item: AdapterFiles[Control], denoiser: Any, dtype: torch.dtype) -> Any:
    cls, weights, name = _class(item), unwrapped(load_file(item.files.root)), item.model
    is_difference = weights.pop(DIFFERENCE, None) is not None
    if MARKER in weights:
        net = _without_memory(cls, _config(cls, denoiser.config, weights))
        named = unfolded(weights, net, denoiser, name, dtype)
    else:
        net, named = build_control(cls, weights, denoiser.config, name)
        # Copied: in the mapped file tensors lie at any byte, where a CPU's kernels round differently.
        named = {key: tensor.to(dtype, copy=True) for key, tensor in named.items()}
        if is_difference:
            named = added(named, denoiser, name, dtype)
    net.load_state_dict(named, assign=True)
    return net


def build_control(cls: Any, weights: Weights, base: Mapping[str, Any], name: str) -> tuple[Any, Weights]:
    """Build a control of class `cls` for a denoiser of config `base`, without memory yet; and `weights` by its names.

    Raises IncompatibleAdapter unless the file has exactly the tensors of such a control.
    """
    weights = _bare(weights)
    if cls is diffusers.ControlNetXSAdapter:
        raise UnsupportedModel(
            f"{_FIELD}: {name} is one file of a {cls.__name__}, which does not tell how it is put together; "
            "name its diffusers repository, with a config.json.",
            field=_FIELD,
        )
    if cls is diffusers.T2IAdapter:
        weights = _adapter_names(weights)
        settings = _adapter_config(weights)
    else:
        settings = _config(cls, base, weights)
    if settings.get("add_control_noise_refiner") == _REFINED_BY_LAYERS:  # the file's own refiner is not used
        weights = {key: tensor for key, tensor in weights.items() if not key.startswith("control_noise_refiner.")}
    if any(key.startswith(("input_blocks.", "zero_convs.")) for key in weights):
        weights = dict(convert_controlnet_checkpoint(weights, settings))
    net = _without_memory(cls, settings)
    _check_names(net, weights, name)
    return net, weights


def _without_memory(cls: Any, settings: Mapping[str, Any]) -> Any:
    with init_empty_weights():
        return cls.from_config(settings)


def _bare(weights: Weights) -> Weights:
    """Return `weights` by names without the prefixes of tools."""
    for prefix in _PREFIXES:
        bare = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
        if 2 * len(bare) > len(weights) or (bare and prefix == _INSIDE):
            return bare
    return weights


def _config(cls: Any, base: Mapping[str, Any], weights: Weights) -> dict[str, Any]:
    """Return the base's config as far as `cls` takes it, with the values of the file's own shapes."""
    accepted = inspect.signature(cls.__init__).parameters
    settings = {name: value for name, value in base.items() if name in accepted}
    if cls is diffusers.ZImageControlNetModel:
        from_shapes = _z_image_config(base, weights)
    else:
        from_shapes = (
            _unet_config(weights) if cls.__name__.startswith("ControlNet") else _transformer_config(base, weights)
        )
    return settings | {name: value for name, value in from_shapes.items() if name in accepted}


def _unet_config(weights: Weights) -> dict[str, Any]:
    config: dict[str, Any] = {
        "in_channels": 4,  # an inpainting UNet has more, its control has not
        "conditioning_embedding_out_channels": _hint_channels(weights),
    }
    projections = [
        tensor
        for name, tensor in weights.items()
        if name.endswith(("attentions.0.proj_in.weight", ".1.proj_in.weight"))
    ]
    if projections:
        config["use_linear_projection"] = projections[0].ndim == 2
    return config | (_union_config(weights) if "task_embedding" in weights else {})


def _transformer_config(base: Mapping[str, Any], weights: Weights) -> dict[str, Any]:
    """Return the numbers of layers and of inputs: a control is as wide as its base, and seldom as deep."""
    config: dict[str, Any] = {
        "num_layers": _count(weights, "transformer_blocks."),
        "num_single_layers": _count(weights, "single_transformer_blocks."),
        "transformer_num_layers": base.get("num_layers"),  # of Hunyuan-DiT, which counts its base's
        "guidance_embeds": "time_text_embed.guidance_embedder.linear_1.weight" in weights,
        "use_pos_embed": "pos_embed.proj.weight" in weights,
    }
    if "controlnet_mode_embedder.weight" in weights:
        config["num_mode"] = int(weights["controlnet_mode_embedder.weight"].shape[0])
    if "context_embedder.weight" in weights:
        config["caption_projection_dim"] = int(weights["context_embedder.weight"].shape[0])
    for name, key in (
        ("extra_conditioning_channels", "pos_embed_input.proj.weight"),
        ("extra_condition_channels", "controlnet_x_embedder.weight"),
    ):
        if key in weights:
            config[name] = int(weights[key].shape[1]) - int(base["in_channels"])
    return config


def _z_image_config(base: Mapping[str, Any], weights: Weights) -> dict[str, Any]:
    """Return the positions of a Z-Image ControlNet's layers beside its base's, which no tensor gives.

    Its authors publish single files of 6, 15 and 3 layers for a base of 30. Their configs (VideoX-Fun,
    config/z_image) place them evenly: every 5th, 2nd and 10th. Version 2.0 differs from 2.1 in one thing: it refines
    with its layers, and its own refiner still has the zeros that it started with.
    """
    layers, steps = _count(weights, "control_layers."), int(base["n_layers"])
    if not 0 < layers <= steps:
        raise LookupError("control_layers")
    before_proj = weights.get("control_noise_refiner.0.before_proj.weight")
    refiner = "control_noise_refiner" if before_proj is not None and bool(before_proj.any()) else _REFINED_BY_LAYERS
    is_first = before_proj is None and "control_noise_refiner.0.attention.to_q.weight" in weights  # it has a plain one
    patch, frames = int(base["all_patch_size"][0]), int(base["all_f_patch_size"][0])
    inputs = _of(weights, f"control_all_x_embedder.{patch}-{frames}.weight").shape[1]
    return {
        "control_layers_places": [at * (steps // layers) for at in range(layers)],
        "control_refiner_layers_places": [*range(int(base["n_refiner_layers"]))],
        "control_in_dim": int(inputs) // (patch**2 * frames),
        "add_control_noise_refiner": None if is_first else refiner,
    }


def _hint_channels(weights: Weights) -> tuple[int, ...]:
    """Return the widths through which the image goes: every second convolution widens."""
    if "input_hint_block.0.weight" in weights:
        names = [f"input_hint_block.{at}.weight" for at in (0, 4, 8, 12)]
    else:
        names = [f"controlnet_cond_embedding.{at}.weight" for at in ("conv_in", "blocks.1", "blocks.3", "blocks.5")]
    return tuple(int(weights[name].shape[0]) for name in names if name in weights)


def _union_config(weights: Weights) -> dict[str, Any]:
    types, channels = _of(weights, "task_embedding").shape
    return {
        "num_control_type": int(types),
        "num_trans_channel": int(channels),
        "num_trans_layer": _count(weights, "transformer_layes."),  # spelt so in diffusers
        "num_proj_channel": int(_of(weights, "spatial_ch_projs.weight").shape[0]),
    }


def _adapter_names(weights: Weights) -> Weights:
    """Return `weights` by diffusers' names of a T2I-Adapter: its authors count blocks through, two to a level."""
    if any(".resnets." in name for name in weights):
        return weights
    renamed: Weights = {}
    for name, tensor in weights.items():
        block = re.fullmatch(r"body\.(\d+)\.(block[12]|in_conv)\.(.+)", name)
        light_block = re.fullmatch(r"body\.(\d+)\.body\.(.+)", name)
        if block:
            level, resnet = divmod(int(block[1]), 2)
            position = f"resnets.{resnet}.{block[2]}" if block[2].startswith("block") else block[2]
            name = f"body.{level}.{position}.{block[3]}"
        elif light_block:
            name = f"body.{light_block[1]}.resnets.{light_block[2]}"
        renamed[f"adapter.{name}"] = tensor
    return renamed


def _adapter_config(weights: Weights) -> dict[str, Any]:
    """Return a T2I-Adapter's config: the first convolution sees the image folded 8 times, 16 times for SDXL."""
    levels = _count(weights, "adapter.body.")
    resnets = _count(weights, "adapter.body.0.resnets.")
    light = "adapter.conv_in.weight" not in weights
    first = _of(weights, "adapter.body.0.in_conv.weight" if light else "adapter.conv_in.weight")
    folded = int(first.shape[1])
    factor = 16 if folded in (256, 768) else 8
    if light:  # its last level is as wide as the one before
        levels -= 1
    widths = "out_conv" if light else "resnets.0.block1"
    kind = "light_adapter" if light else "full_adapter_xl" if factor == 16 else "full_adapter"
    return {
        "in_channels": folded // factor**2,
        "channels": [int(_of(weights, f"adapter.body.{at}.{widths}.weight").shape[0]) for at in range(levels)],
        "num_res_blocks": resnets,
        "downscale_factor": factor,
        "adapter_type": kind,
    }


def _check_names(net: nn.Module, weights: Weights, name: str) -> None:
    """Raise IncompatibleAdapter unless the file has exactly the tensors of a control for this model."""
    expected = {key: tuple(tensor.shape) for key, tensor in net.state_dict().items()}
    present = {key: tuple(tensor.shape) for key, tensor in weights.items()}
    wrong = sorted(key for key in expected.keys() | present.keys() if expected.get(key) != present.get(key))
    if wrong:
        raise IncompatibleAdapter(
            f"{_FIELD}: {len(wrong)} tensors of {name} are not those of a {type(net).__name__} for this model "
            f"({wrong[0][:80]}, say); use one for it, or name a diffusers repository with its own config.json.",
            field=_FIELD,
            details={"samples": wrong[:3]},
        )


def _check_sizes(net: Any, denoiser: Any, name: str) -> None:
    """Raise IncompatibleAdapter where control and base differ in a value that both must share."""
    pairs = [(key, net.config.get(key), denoiser.config.get(key)) for key in _SHARED]
    if isinstance(net, diffusers.T2IAdapter):
        levels = denoiser.config.get("block_out_channels") or [None]
        pairs.append(("channels", net.config["channels"][0], levels[0]))
    for key, size, base_size in pairs:
        if isinstance(size, int) and isinstance(base_size, int) and size != base_size:
            raise IncompatibleAdapter(
                f"{_FIELD}: {name} was made for a model whose {key} is {size}, and this model's is {base_size}; "
                "use one of the model's own family.",
                field=_FIELD,
            )


def _class(item: AdapterFiles[Control]) -> Any:
    return getattr(diffusers, str(item.detection.component_class))


def _of(weights: Weights, name: str) -> Tensor:
    if name not in weights:
        raise CorruptFile(f"{_FIELD}: the file lacks {name}; it is damaged, fetch it again.", field=_FIELD)
    return weights[name]


def _count(weights: Weights, prefix: str) -> int:
    numbers = {int(name.removeprefix(prefix).split(".")[0]) for name in weights if name.startswith(prefix)}
    return max(numbers, default=-1) + 1

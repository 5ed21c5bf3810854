"""What ai-toolkit is asked for: its dataset's folder and its YAML, and refusals of what these cannot say.

JSON is YAML, and says every text without doubt; `$` is written as its number, since the toolkit puts variables of its
environment in the place of `${NAME}` before it reads the file.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.core.errors import InvalidRequest, UnsupportedModel
from worker.core.training import TrainingOptions
from worker.media.images import to_pil
from worker.training.dataset import Dataset

NAME = "adapter"  # its own name for every training: it goes by names in paths, of which some mean other things to it
# Options that its YAML says, and those that are this worker's before or after it.
_SAID = frozenset({
    "trainer", "method", "rank", "targets", "steps", "batch_size", "accumulation", "learning_rate", "optimizer", "ema",
    "warmup_steps", "decay", "seed", "resolution", "trigger", "caption", "template", "caption_dropout", "flip", "mask",
    "min_snr", "save_every", "samples", "sample_captions", "tensorboard", "precision",
})  # fmt: skip
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "method": ("lora",),
    "targets": ("linear", "all"),
    "precision": ("fp32", "fp16", "bf16"),
}
_INSTEAD = "leave it out, or send trainer=worker for this worker's own trainer"
_CHECKPOINTS = 2


@dataclass(frozen=True, slots=True)
class Base:
    """The model that it trains: the folder in diffusers' layout, its `arch` there, and what it predicts."""

    root: Path
    arch: str
    native_size: int
    is_flow: bool
    is_v: bool
    on_cpu: bool


def check_sayable(options: TrainingOptions, *, is_flow: bool) -> None:
    """Raise InvalidRequest for an option that its YAML cannot say, by name, before anything is loaded."""
    for name, field in type(options).model_fields.items():
        value = getattr(options, name)
        if name not in _SAID and value != field.get_default(call_default_factory=True):
            raise InvalidRequest(f"{name} cannot be said to ai-toolkit; {_INSTEAD}.", field=name)
        if name in _CHOICES and value is not None and value not in _CHOICES[name]:
            choices = " or ".join(_CHOICES[name])
            raise InvalidRequest(
                f"{name}={value} cannot be said to ai-toolkit, only {choices}; {_INSTEAD}.", field=name
            )
    if options.min_snr is not None and is_flow:
        raise InvalidRequest(
            "min_snr is for models of diffusion noise, and this one's is a flow; leave it out.", field="min_snr"
        )
    if options.decay == "cosine" and options.warmup_steps not in (
        0,
        type(options).model_fields["warmup_steps"].default,
    ):
        raise InvalidRequest(
            "warmup_steps cannot be said to ai-toolkit together with decay=cosine; leave it out, or send "
            "decay=constant.",
            field="warmup_steps",
        )


def check_data(dataset: Dataset) -> None:
    """Raise InvalidRequest for what a dataset has and cannot be told."""
    if dataset.has_sources:
        raise InvalidRequest(
            "data has sources, which are not told to ai-toolkit; take them out, or send trainer=worker.", field="data"
        )
    if any(each.mask is not None for each in dataset.examples):
        raise InvalidRequest(f"mask: masks are not told to ai-toolkit; send mask=off, or {_INSTEAD}.", field="mask")


def check_root(root: Path, model: str) -> None:
    """Raise UnsupportedModel unless `root` is a folder in diffusers' layout."""
    if not (root / "model_index.json").is_file():
        raise UnsupportedModel(
            f"{model} is no repository in diffusers' layout, which ai-toolkit is given; train one that is.",
            field="model",
        )


def write_dataset(dataset: Dataset, folder: Path) -> None:
    """Write images and captions as it reads them; those that are there stay."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, example in enumerate(dataset.examples):
        first = folder / f"{index:05d}-1.png"
        if not first.exists():
            partial = first.with_suffix(".partial")
            to_pil(example.raster()).convert("RGB").save(partial, "PNG")
            partial.replace(first)
        for number in range(1, example.repeats + 1):  # it repeats whole folders alone
            image = folder / f"{index:05d}-{number}.png"
            if not image.exists():
                shutil.copyfile(first, image)
            image.with_suffix(".txt").write_text(example.caption, encoding="utf-8")


def write_config(path: Path, options: TrainingOptions, base: Base, data: Path) -> None:
    """Write its YAML."""
    text = json.dumps(config(options, base, data), indent=1)
    path.write_text(text.replace("$", "\\u0024"))


def config(options: TrainingOptions, base: Base, data: Path) -> dict[str, Any]:
    """Return what its YAML says."""
    dtype = options.precision or ("fp32" if base.on_cpu else "bf16")
    network: dict[str, Any] = {"type": "lora", "linear": options.rank, "linear_alpha": options.rank}
    if options.targets == "all":
        network |= {"conv": options.rank, "conv_alpha": options.rank}
    process: dict[str, Any] = {
        "type": "sd_trainer",
        "training_folder": ".",
        "device": "cpu" if base.on_cpu else "cuda:0",
        "network": network,
        "save": {
            "dtype": "float16",
            "save_every": options.save_every,
            "max_step_saves_to_keep": _CHECKPOINTS,
        },
        "datasets": [
            {
                "folder_path": str(data),
                "caption_ext": "txt",
                "caption_dropout_rate": options.caption_dropout,
                "resolution": [options.resolution or base.native_size],
                "flip_x": options.flip,
                "cache_latents_to_disk": True,
            }
        ],
        "train": _train(options, base) | {"dtype": dtype},
        "model": {"name_or_path": str(base.root), "arch": base.arch, "is_v_pred": base.is_v},
        "sample": {"sampler": "flowmatch" if base.is_flow else "ddpm", "prompts": []},
    }
    return {
        "job": "extension",
        "config": {"name": NAME, "process": [process]},
        "meta": {"name": NAME, "version": "1.0"},
    }


def _train(options: TrainingOptions, base: Base) -> dict[str, Any]:
    said: dict[str, Any] = {
        "batch_size": options.batch_size,
        "steps": options.steps,
        "gradient_accumulation": options.accumulation,
        "train_unet": True,
        "train_text_encoder": False,
        "gradient_checkpointing": not base.on_cpu,
        "noise_scheduler": "flowmatch" if base.is_flow else "ddpm",
        "optimizer": options.optimizer,
        "lr": options.learning_rate,
        "disable_sampling": True,
        "skip_first_sample": True,
    }
    if options.decay == "cosine":
        said["lr_scheduler"] = "cosine"
    elif options.warmup_steps:
        said |= {
            "lr_scheduler": "constant_with_warmup",
            "lr_scheduler_params": {"num_warmup_steps": options.warmup_steps},
        }
    if options.ema is not None:
        said["ema_config"] = {"use_ema": True, "ema_decay": options.ema}
    if options.min_snr is not None:
        said["min_snr_gamma"] = options.min_snr
    return said

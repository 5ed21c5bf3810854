"""What some options need, packages and each other: asked for by name before anything is read or loaded."""

from importlib.util import find_spec

from worker.core.errors import InvalidRequest, UnsupportedModel
from worker.core.precision import WAYS
from worker.core.training import TrainingOptions

_OPTIMIZERS = {"prodigy": "prodigyopt", "adamw8bit": "bitsandbytes"}  # whose package it is


def check_demands(options: TrainingOptions) -> None:
    """Raise InvalidRequest or UnsupportedModel, naming the option and the fix, where something is missing."""
    if options.patience is not None and not options.held_out:
        raise InvalidRequest(
            "patience needs images that are not learnt; send held_out, too, such as 0.1.", field="patience"
        )
    if options.method == "dora" and options.precision in WAYS:
        raise UnsupportedModel(
            f"method dora reads whole weights, and precision {options.precision} holds them in fewer bits; choose "
            "lora, or leave precision out.",
            field="method",
        )
    if options.field == "model" and options.text_encoder:
        raise InvalidRequest(
            "text_encoder is for adapters: method full learns the denoiser; leave it out.", field="text_encoder"
        )
    if options.field == "model" and options.precision is not None:
        raise InvalidRequest(
            "precision is for adapters: method full learns the weights themselves, in float32; leave it out.",
            field="precision",
        )
    ours = options.trainer != "ai-toolkit"  # which has an environment of its own
    if ours and (package := _OPTIMIZERS.get(options.optimizer)) is not None:
        _check_package("optimizer", f"optimizer={options.optimizer}", package, "choose adamw")
    if options.tensorboard:
        otherwise = "leave it out: progress.jsonl has every step, too"
        _check_package("tensorboard", "tensorboard", "tensorboardX", otherwise)


def _check_package(field: str, user: str, package: str, otherwise: str) -> None:
    if find_spec(package) is None:
        raise UnsupportedModel(
            f"{user} needs the Python package {package}, which is not installed here; let the operator install the "
            f"extra train, or {otherwise}.",
            field=field,
            details={"package": package},
        )

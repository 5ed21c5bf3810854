"""Loaders of pipelines from weights on disk, one per format."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import diffusers
import torch
import transformers
from diffusers.hooks import apply_group_offloading
from safetensors import SafetensorError

from worker.core.device import LoadFormat, LoadPlan
from worker.core.errors import CorruptFile, LoadFailed, UnsupportedModel, WorkerError
from worker.core.precision import is_encoder
from worker.core.unsearched import unsearched
from worker.engine.ahead import read_ahead, yielding
from worker.engine.classes import DTYPES, pipeline_class
from worker.engine.compatibility import reach_moved_parts
from worker.engine.complaints import complaint, missing_package
from worker.engine.components import load_component, read_index, schedule
from worker.engine.context_parallel import check_parallel, share_out
from worker.engine.devices import RankLost, is_out_of_memory
from worker.engine.mirror import readable
from worker.engine.modular import load_modular
from worker.engine.precision import reduce_weights
from worker.engine.reduced_weights import load_reduced
from worker.engine.single_file import load_checkpoint, load_part
from worker.engine.spreading import spread
from worker.engine.upscaling import load_upscaler

_LOG = logging.getLogger(__name__)
# Our own progress is enough; the bars of two libraries say nothing in a log.
for library in (diffusers, transformers):
    library.utils.logging.disable_progress_bar()
    library.utils.logging.set_verbosity_error()
# Values of each tensor that are checked for NaN: to check all would take as long as loading the model.
_SAMPLE = 64


def load_pipeline(plan: LoadPlan) -> Any:
    """Build the pipeline of `plan` and put it where the plan says.

    Raises UnsupportedModel for a model that no loader here reads, CorruptFile for damaged weights, LoadFailed for
    the rest.
    """
    with _load_errors(plan):
        if plan.ranks > 1:
            check_parallel(plan)
        with readable(plan) as files, unsearched(), yielding(), read_ahead(plan):
            pipe = FORMATS[plan.format](files)
        _check_finite(pipe)
        reduce_weights(pipe, plan)
        schedule(pipe, plan.scheduler, plan.scheduler_options)
        pipe.set_progress_bar_config(disable=True)
        place(pipe, plan)
        if plan.ranks > 1:
            share_out(pipe, plan, load_pipeline)
    return pipe


def view(pipe: Any, class_name: str, others: Mapping[str, Any] | None = None) -> Any:
    """Return the same components as another pipeline class: image-to-image beside text-to-image, without more memory.

    `others` are parts that only the other class has: a ControlNet, for example.
    """
    cls = pipeline_class(class_name)
    if type(pipe) is cls and not others:
        return pipe
    expected, optional = cls._get_signature_keys(cls)
    components = pipe.components | dict(others or {})
    shared = {name: part for name, part in components.items() if name in expected or name in optional}
    missing = sorted(expected - shared.keys() - set(cls._optional_components))
    if missing:
        raise UnsupportedModel(
            f"{class_name} needs {', '.join(missing)}, which this model does not have; "
            "leave the task out or use another model.",
            field="task",
        )
    settings = {name: value for name, value in pipe.config.items() if name in optional and name not in shared}
    absent = dict.fromkeys(expected - shared.keys())
    other = cls(**shared, **absent, **settings)
    other.set_progress_bar_config(disable=True)
    return other


def _load_repository(plan: LoadPlan) -> Any:
    cls = pipeline_class(plan.pipeline)
    reach_moved_parts(plan.root)
    dtype = DTYPES[plan.dtype]
    index = read_index(plan.root)
    others = {name: load_part(index, name, path, plan.root, dtype) for name, path in plan.parts.items()}
    others |= _without_safety_checker(cls)
    expected, _ = cls._get_signature_keys(cls)
    for name in sorted(expected):  # the order in which they are read ahead
        if name in index and plan.reduced is not None and (plan.reduced / name).is_dir():
            others[name] = load_reduced(index[name], plan.reduced / name, plan)
        if name in index and name not in others and index[name].is_model:
            # One by one, since a pipeline's own loader lets tensors be missing.
            others[name] = load_component(index[name], plan.root / name, dtype, plan.variant)
    return cls.from_pretrained(
        plan.root,
        # Always explicit: left out, transformers keeps the file's dtype and diffusers takes float32.
        dtype=dtype,
        variant=plan.variant,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        **others,
    )


FORMATS: Mapping[LoadFormat, Callable[[LoadPlan], Any]] = {
    "diffusers": _load_repository,
    "modular": lambda plan: load_modular(plan, pipeline_class(plan.pipeline), DTYPES[plan.dtype]),
    "safetensors": load_checkpoint,
    "gguf": load_checkpoint,
    "upscaler": load_upscaler,
}


def _without_safety_checker(cls: type[Any]) -> dict[str, Any]:
    signature = cls._get_signature_keys(cls)
    if "safety_checker" in getattr(cls, "_optional_components", []):
        return {"safety_checker": None} | (
            {"requires_safety_checker": False} if "requires_safety_checker" in signature[1] else {}
        )
    return {}


def _check_finite(pipe: Any) -> None:
    """Check a sample of every tensor: NaN weights load without an error and generate NaN. Raises CorruptFile."""
    for name, part in pipe.components.items():
        if not isinstance(part, torch.nn.Module):
            continue
        for key, tensor in part.named_parameters():
            if not tensor.is_floating_point() or tensor.is_meta or tensor.numel() == 0 or tensor.itemsize < 2:
                continue
            flat = tensor.detach().reshape(-1)
            if not torch.isfinite(flat[:: max(1, flat.numel() // _SAMPLE)]).all():
                raise CorruptFile(
                    f"The weights of {name} hold NaN or infinity ({key[:80]}): they are damaged, or were trained to "
                    "nothing; fetch the model again or use another one.",
                    field="model",
                    retryable=False,
                )


def place(pipe: Any, plan: LoadPlan) -> None:
    """Put every module of `pipe` where the plan says; under offloading, each is fetched when it is needed."""
    if plan.cards:
        spread(pipe, plan)
    elif plan.offload == "group":
        _fetch_encoders_by_layers(pipe, plan)
    elif plan.offload == "model":
        pipe.enable_model_cpu_offload(device=plan.device)
    elif plan.offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=plan.device)
    else:
        pipe.to(plan.device)


def _fetch_encoders_by_layers(pipe: Any, plan: LoadPlan) -> None:
    """Keep text encoders in memory, from which each layer is fetched as it computes; all else stays on the device.

    Without streams: an encoder waits for its bytes, not for its products, and diffusers' streams have drawn garbage.
    """
    for name, part in pipe.components.items():
        if not isinstance(part, torch.nn.Module):
            continue
        if is_encoder(name):
            apply_group_offloading(part, torch.device(plan.device), offload_type="leaf_level")
        else:
            part.to(plan.device)


@contextmanager
def _load_errors(plan: LoadPlan) -> Iterator[None]:
    try:
        yield
    except (WorkerError, RankLost):
        raise
    except SafetensorError:
        raise CorruptFile(
            "A weight file of the model is truncated or damaged; fetch the model again.", field="model"
        ) from None
    except Exception as error:
        if is_out_of_memory(error):
            raise
        _LOG.exception("loading failed")
        if "torchvision::" in str(error):
            raise LoadFailed(
                "torchvision was built for another torch than the one installed here, and most pipelines cannot be "
                "imported beside it; the operator has to install both from one index, or uninstall torchvision.",
                field="model",
            ) from None
        package = missing_package(error)
        if package is not None:
            raise UnsupportedModel(
                f"{plan.pipeline} needs the Python package {package}, which is not installed on this worker; "
                "add it to the image.",
                field="model",
                details={"package": package},
            ) from None
        words = complaint(error)
        said = f": {words}" if words else ""
        raise LoadFailed(
            f"The weights could not be made into a {plan.pipeline} ({type(error).__name__}{said}); "
            "the files may be damaged or belong to another kind of model.",
            field="model",
            details={"exception": type(error).__name__},
        ) from None

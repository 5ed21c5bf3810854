"""Weights on disk to a diffusers pipeline: one loader per format."""

import logging
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from transformers import CLIPTokenizer

from worker.core.device import LoadPlan
from worker.core.errors import LoadFailed, UnsupportedModel, WorkerError
from worker.engine.devices import is_out_of_memory

_LOG = logging.getLogger(__name__)
# Our own progress says what happens; bars of two libraries in a log say nothing.
for library in (diffusers, transformers):
    library.utils.logging.disable_progress_bar()
    library.utils.logging.set_verbosity_error()
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def load_pipeline(plan: LoadPlan) -> Any:
    """Build the pipeline of `plan` and put it where the plan says. Raises LoadFailed, UnsupportedModel."""
    with _load_errors(plan):
        pipe = FORMATS["file" if plan.root.is_file() else "diffusers"](plan)
        pipe.set_progress_bar_config(disable=True)
        _place(pipe, plan)
    return pipe


def view(pipe: Any, class_name: str) -> Any:
    """The same components as another pipeline class: image-to-image beside text-to-image, without more memory."""
    cls = pipeline_class(class_name)
    if type(pipe) is cls:
        return pipe
    expected, optional = cls._get_signature_keys(cls)
    shared = {name: part for name, part in pipe.components.items() if name in expected or name in optional}
    missing = sorted(expected - shared.keys())
    if missing:
        raise UnsupportedModel(
            f"{class_name} needs {', '.join(missing)}, which this model does not have; "
            "leave the task out or use another model.",
            field="task",
        )
    settings = {name: value for name, value in pipe.config.items() if name in optional and name not in shared}
    other = cls(**shared, **settings)
    other.set_progress_bar_config(disable=True)
    return other


def pipeline_class(name: str) -> type:
    """The diffusers class called `name`: diffusers' own pipelines and nothing else."""
    cls = getattr(diffusers, name, None)
    if not isinstance(cls, type) or not issubclass(cls, diffusers.DiffusionPipeline):
        raise UnsupportedModel(
            f"{name} is no pipeline of diffusers {diffusers.__version__}; "
            "models that bring their own code are not run.",
            field="model",
        )
    return cls


def _load_folder(plan: LoadPlan) -> Any:
    cls = pipeline_class(plan.pipeline)
    return cls.from_pretrained(
        plan.root,
        # Always explicit: left out, transformers keeps the file's dtype and diffusers takes float32.
        dtype=_DTYPES[plan.dtype],
        variant=plan.variant,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        **_without_safety_checker(cls),
    )


def _load_file(plan: LoadPlan) -> Any:
    cls = pipeline_class(plan.pipeline)
    if plan.config is None or not hasattr(cls, "from_single_file"):
        raise UnsupportedModel(
            f"{plan.pipeline} cannot be loaded from a single file here; use the model's diffusers repository.",
            field="model",
        )
    pipe = cls.from_single_file(
        str(plan.root),
        config=str(plan.config),
        dtype=_DTYPES[plan.dtype],
        local_files_only=True,
        **_bundled_tokenizers(plan.config),
        **_without_safety_checker(cls),
    )
    if plan.scheduler_options:
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **plan.scheduler_options)
    return pipe


FORMATS: Mapping[str, Callable[[LoadPlan], Any]] = {"diffusers": _load_folder, "file": _load_file}


def _bundled_tokenizers(config: Path) -> dict[str, Any]:
    """CLIP tokenizers of a bundled config: the vocabulary is kept once, beside the configs that share it."""
    vocabulary = config.parent / "tokenizers" / "clip"
    found = {}
    for name in ("tokenizer", "tokenizer_2"):
        folder = config / name
        own = (folder / "vocab.json").is_file() or (folder / "tokenizer.json").is_file()
        if vocabulary.is_dir() and (folder / "tokenizer_config.json").is_file() and not own:
            found[name] = CLIPTokenizer.from_pretrained(
                vocabulary, **_pad_token(folder / "tokenizer_config.json"), local_files_only=True
            )
    return found


def _pad_token(config: Path) -> dict[str, str]:
    import json

    token = json.loads(config.read_text()).get("pad_token")
    return {"pad_token": token["content"] if isinstance(token, dict) else token} if token else {}


def _without_safety_checker(cls: type) -> dict[str, Any]:
    if "safety_checker" in getattr(cls, "_optional_components", []):
        return {"safety_checker": None, "requires_safety_checker": False}
    return {}


def _place(pipe: Any, plan: LoadPlan) -> None:
    if plan.offload == "model":
        pipe.enable_model_cpu_offload(device=plan.device)
    elif plan.offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=plan.device)
    else:
        pipe.to(plan.device)


@contextmanager
def _load_errors(plan: LoadPlan) -> Any:
    try:
        yield
    except WorkerError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        _LOG.exception("loading failed")
        raise LoadFailed(
            f"The weights could not be made into a {plan.pipeline} ({type(error).__name__}); "
            "the files may be damaged or belong to another kind of model.",
            field="model",
            details={"exception": type(error).__name__},
        ) from None

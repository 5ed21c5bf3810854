"""Modular pipelines of diffusers in the shape of ordinary ones: a call with keywords, and images in its output.

A modular pipeline is a tree of blocks. Its keywords are the blocks' inputs, its guidance is a component, and it has no
callback: its steps are seen from within its loops (`modular_steps.py`), and it is offloaded by `modular_offload.py`.
"""

import functools
import inspect
import logging
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import diffusers

from worker.core.device import LoadPlan
from worker.core.json_text import parse_bounded
from worker.engine import modular_offload
from worker.engine.components import Component, load_component

# A block that fails logs its whole traceback, also when a job stops it; what a caller hears is the engine's to say.
logging.getLogger("diffusers.modular_pipelines").setLevel(logging.CRITICAL)
_INDEX = "modular_model_index.json"
_GUIDANCE = "guidance_scale"
_GUIDERS = ("guider", "guider_2")


def is_modular(cls: object) -> bool:
    """True for a class of diffusers' modular pipelines."""
    return isinstance(cls, type) and issubclass(cls, diffusers.ModularPipeline)


@functools.cache
def called_with_keywords(cls: type[Any]) -> type[Any]:
    """Return `cls` with a call like an ordinary pipeline's. The same class each time, so that types can be compared."""
    blocks = getattr(diffusers, cls.default_blocks_name)()
    inputs = blocks.input_names

    def call(self: Any, **arguments: Any) -> SimpleNamespace:
        guidance = arguments.pop(_GUIDANCE, None) if _GUIDANCE not in inputs else None
        with _guided(self, guidance):
            state = cls.__call__(self, **arguments)
        media = {name: state.get(name) for name in ("images", "videos")}
        return SimpleNamespace(**{name: value for name, value in media.items() if value is not None})

    call.__signature__ = _signature(blocks)  # type: ignore[attr-defined]
    members = {
        "__call__": call,
        "enable_model_cpu_offload": modular_offload.enable_model_cpu_offload,
        "enable_sequential_cpu_offload": modular_offload.enable_sequential_cpu_offload,
        "maybe_free_model_hooks": modular_offload.maybe_free_model_hooks,
    }
    return type(cls.__name__, (cls,), members)


@contextmanager
def _guided(pipe: Any, scale: float | None) -> Iterator[None]:
    """Let the guiders of `pipe` guide by `scale` for one call: a model of two denoisers has one for each."""
    named: dict[str, Any] = {name: getattr(pipe, name, None) for name in _GUIDERS}
    guiders = {name: guider for name, guider in named.items() if guider is not None and scale is not None}
    for name, guider in guiders.items():
        setattr(pipe, name, guider.new(**{_GUIDANCE: scale}, enabled=True))
    try:
        yield
    finally:
        for name, guider in guiders.items():
            setattr(pipe, name, guider)


def _signature(blocks: Any) -> inspect.Signature:
    """Return the keywords of the blocks, with the one that their guider takes."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = {
        item.name: inspect.Parameter(item.name, keyword, default=item.default, annotation=item.type_hint)
        for item in blocks.inputs
        if item.name is not None
    }
    if any(part.name == "guider" for part in blocks.expected_components):
        parameters.setdefault(_GUIDANCE, inspect.Parameter(_GUIDANCE, keyword, default=None, annotation=float))
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return inspect.Signature([itself, *parameters.values()])


def load_modular(plan: LoadPlan, cls: type[Any], dtype: Any) -> Any:
    """Load a modular repository: its parts from its own folders, its blocks from diffusers alone.

    The parts are given to the blocks, instead of letting these fetch them: an index may name any repository.
    """
    index = parse_bounded((plan.root / _INDEX).read_bytes())
    pipe = cls()
    wanted = {spec.name: index.get(spec.name) for spec in pipe.blocks.expected_components}
    components = [Component(name, *entry[:2]) for name, entry in wanted.items() if entry and entry[1]]
    parts = {part.name: load_component(part, plan.root / part.name, dtype, plan.variant) for part in components}
    settings = {spec.name: index[spec.name] for spec in pipe.blocks.expected_configs if spec.name in index}
    pipe.update_components(**parts, **settings)
    _leave_out(pipe._blocks, parts)  # pipe.blocks is a copy
    _hide_bars(pipe._blocks)
    return pipe


def _leave_out(blocks: Any, parts: Collection[str]) -> None:
    """Take the blocks away that only rewrite the prompt and lack a part for it: it is then read as it is."""
    for name, block in [*blocks.sub_blocks.items()]:
        needed = {spec.name for spec in block.expected_components if spec.default_creation_method == "from_pretrained"}
        if block.intermediate_output_names == ["prompt"] and not needed <= {*parts}:
            del blocks.sub_blocks[name]


def _hide_bars(blocks: Any) -> None:
    if isinstance(blocks, diffusers.modular_pipelines.LoopSequentialPipelineBlocks):
        blocks.set_progress_bar_config(disable=True)
    module = sys.modules[type(blocks).__module__]
    if isinstance(getattr(module, "tqdm", None), type):  # a few have bars of their own
        setattr(module, "tqdm", functools.partial(module.tqdm, disable=True))  # noqa: B010
    for block in (getattr(blocks, "sub_blocks", None) or {}).values():
        _hide_bars(block)

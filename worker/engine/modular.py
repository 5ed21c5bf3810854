"""Modular pipelines of diffusers in the shape of ordinary ones: a call with keywords, and images in its output.

A modular pipeline is a tree of blocks. Its keywords are the blocks' inputs, its guidance is a component, and it has no
callback: its steps are seen through its scheduler (`stepping.py`).
"""

import functools
import inspect
import logging
from types import SimpleNamespace
from typing import Any

import diffusers

from worker.core.device import LoadPlan
from worker.core.errors import UnsupportedModel
from worker.core.json_text import parse_bounded
from worker.engine.components import Component, load_component

# A block that fails logs its whole traceback, also when a job stops it; what a caller hears is the engine's to say.
logging.getLogger("diffusers.modular_pipelines").setLevel(logging.CRITICAL)
_INDEX = "modular_model_index.json"
_GUIDANCE = "guidance_scale"


def is_modular(cls: object) -> bool:
    """True for a class of diffusers' modular pipelines."""
    return isinstance(cls, type) and issubclass(cls, diffusers.ModularPipeline)


@functools.cache
def called_with_keywords(cls: type[Any]) -> type[Any]:
    """Return `cls` with a call like an ordinary pipeline's. The same class each time, so that types can be compared."""
    blocks = getattr(diffusers, cls.default_blocks_name)()
    inputs = blocks.input_names

    def call(self: Any, **arguments: Any) -> SimpleNamespace:
        guider: Any = getattr(self, "guider", None)
        guidance = arguments.pop(_GUIDANCE, None) if _GUIDANCE not in inputs else None
        if guidance is not None:
            self.guider = guider.new(**{_GUIDANCE: guidance}, enabled=True)
        try:
            state = cls.__call__(self, **arguments)
        finally:
            if guidance is not None:
                self.guider = guider
        images = state.get("images")
        return SimpleNamespace(images=[] if images is None else images)

    call.__signature__ = _signature(blocks)  # type: ignore[attr-defined]
    members = {"__call__": call, "maybe_free_model_hooks": lambda self: None}  # it never has hooks of offloading
    return type(cls.__name__, (cls,), members)


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
    wanted = {spec.name: spec for spec in pipe.blocks.expected_components}
    missing = [name for name, spec in wanted.items() if _is_loaded(spec) and name not in index]
    if missing:
        raise UnsupportedModel(
            f"The modular repository lists no {', '.join(missing)}, which {cls.__name__} needs; use a whole one.",
            field="model",
        )
    components = [Component(name, *index[name][:2]) for name in wanted if name in index]
    parts = {part.name: load_component(part, plan.root / part.name, dtype, plan.variant) for part in components}
    settings = {spec.name: index[spec.name] for spec in pipe.blocks.expected_configs if spec.name in index}
    pipe.update_components(**parts, **settings)
    _hide_bars(pipe._blocks)  # pipe.blocks is a copy
    return pipe


def _is_loaded(spec: Any) -> bool:
    return bool(spec.default_creation_method == "from_pretrained")


def _hide_bars(blocks: Any) -> None:
    if isinstance(blocks, diffusers.modular_pipelines.LoopSequentialPipelineBlocks):
        blocks.set_progress_bar_config(disable=True)
    for block in (getattr(blocks, "sub_blocks", None) or {}).values():
        _hide_bars(block)

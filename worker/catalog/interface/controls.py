"""Control: the rows of the classes that serve a model with ControlNets or T2I-Adapters, and how these are called."""

from collections.abc import Iterable

from worker.catalog.call import ModelCall
from worker.catalog.classes.signatures import call_parameters
from worker.catalog.pipelines.controlled import CONTROLLED, MODES, Controlled
from worker.core.adapter import ControlCall
from worker.core.model import Detection

MAX_CONTROLS = 4  # the request holds no more


def control_call(pipeline: str) -> ControlCall:
    """How `pipeline`, one of the table's, takes its controls."""
    signature = call_parameters(pipeline) or {}

    def first(*names: str) -> str | None:
        return next((name for name in names if name in signature), None)

    return ControlCall(
        images=first("control_image", "image") or "control_image",
        scale=first("controlnet_conditioning_scale", "adapter_conditioning_scale") or "controlnet_conditioning_scale",
        start=first("control_guidance_start"),
        # A T2I-Adapter for SDXL says with one factor after which share of the steps it ends.
        end=first("control_guidance_end", "adapter_conditioning_factor"),
        mode=first("control_mode"),
    )


def controlled_rows(call: ModelCall) -> tuple[Controlled, ...]:
    """The rows of the class that is called; none where it cannot be controlled."""
    return tuple(row for row in CONTROLLED if row.plain == call.pipeline)


def takes_controls(call: ModelCall) -> bool:
    """Whether a request may hold `controlnets`."""
    return bool(controlled_rows(call))


def modes_of(control: Detection) -> tuple[str, ...]:
    """What the images of a union ControlNet may show, in the order of its own numbers; empty where it is no union."""
    return MODES.get((control.component_class or "", control.variant or ""), ())


def most_controls(rows: Iterable[Controlled]) -> int:
    """How many controls one request can hold at most, with any of `rows`."""
    return max(1 if row.several == "one" else MAX_CONTROLS for row in rows)


def known_modes(rows: Iterable[Controlled]) -> tuple[str, ...]:
    """Every mode that a union ControlNet of `rows` can have."""
    components = {row.component for row in rows}
    return tuple(dict.fromkeys(mode for (name, _), modes in MODES.items() if name in components for mode in modes))

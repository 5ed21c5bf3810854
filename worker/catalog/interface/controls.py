"""Control: the rows of the classes that serve a model with ControlNets or T2I-Adapters, and the form of their calls."""

from collections.abc import Iterable

from worker.catalog.call import ModelCall
from worker.catalog.classes.signatures import call_parameters
from worker.catalog.pipelines.controlled import CONTROLLED, MODES, Controlled
from worker.core.adapter import ControlCall
from worker.core.model import Detection

MAX_CONTROLS = 4  # the request holds no more


def control_call(pipeline: str) -> ControlCall:
    """Return the parameters by which `pipeline`, one of the table's, takes its controls."""
    signature = call_parameters(pipeline) or {}

    def first(*names: str) -> str | None:
        return next((name for name in names if name in signature), None)

    return ControlCall(
        images=first("control_image", "image") or "control_image",
        scale=first("controlnet_conditioning_scale", "adapter_conditioning_scale") or "controlnet_conditioning_scale",
        start=first("control_guidance_start"),
        # A T2I-Adapter for SDXL ends after a share of the steps, which is one factor.
        end=first("control_guidance_end", "adapter_conditioning_factor"),
        mode=first("control_mode"),
    )


def controlled_rows(call: ModelCall) -> tuple[Controlled, ...]:
    """Return the rows of the class that is called; none where it cannot be controlled."""
    return tuple(row for row in CONTROLLED if row.plain == call.pipeline)


def takes_controls(call: ModelCall) -> bool:
    """True if a request may hold `controlnets`."""
    return bool(controlled_rows(call))


def modes_of(control: Detection) -> tuple[str, ...]:
    """Return the modes of a union ControlNet in the order of its own numbers; empty for any other ControlNet.

    A mode names the content of a control image.
    """
    return MODES.get((control.component_class or "", control.variant or ""), ())


def most_controls(rows: Iterable[Controlled]) -> int:
    """Return the most controls that one request can hold, with any of `rows`."""
    return max(1 if row.several == "one" else MAX_CONTROLS for row in rows)


def known_modes(rows: Iterable[Controlled]) -> tuple[str, ...]:
    """Return every mode that a union ControlNet of `rows` can have."""
    components = {row.component for row in rows}
    return tuple(dict.fromkeys(mode for (name, _), modes in MODES.items() if name in components for mode in modes))

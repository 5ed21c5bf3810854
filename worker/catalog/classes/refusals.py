"""Pipeline classes that cannot serve a request by themselves, and parameters that not every repository can take."""

from collections.abc import Mapping

from worker.catalog.classes.signatures import call_parameters
from worker.catalog.pipelines.table import pipeline_row

# Parameters of a component that not every repository has.
PART_OF: Mapping[str, str] = {
    "guidance_scale_2": "transformer_2",
    "enable_prompt_enhancement": "processor",
    "prompt_upsampling": "prompt_enhancer_head",
    "prompt_upsampling_temperature": "prompt_enhancer_head",
}
_TENSORS = ("embeds", "embeddings", "latents")


def refusal(class_name: str) -> str | None:
    """Return the reason why this class cannot be served, to stand after its name; None when it can."""
    row = pipeline_row(class_name)
    if row.refusal:
        return row.refusal
    for parameter in (call_parameters(class_name) or {}).values():
        if parameter.required and parameter.name.endswith(_TENSORS):
            return f"needs {parameter.name}, tensors that another model makes; use the combined pipeline of its family"
    return None

"""Pipeline classes of diffusers that make no picture of a request alone, each with its reason. Data, also for docs."""

from collections.abc import Mapping

from worker.catalog.calls.signatures import call_parameters

_EMBEDDINGS = "makes embeddings for another model, not a picture; use the combined pipeline of its family"
_SECOND_STAGE = "is the second stage of a family and needs the embeddings of the first; use the combined pipeline"

# Class -> why, to stand after "X ".
REFUSED: Mapping[str, str] = {
    "FluxPriorReduxPipeline": _EMBEDDINGS.replace("the combined pipeline of its family", "a FLUX.1 model"),
    "KandinskyPriorPipeline": _EMBEDDINGS,
    "KandinskyV22PriorPipeline": _EMBEDDINGS,
    "KandinskyV22PriorEmb2EmbPipeline": _EMBEDDINGS,
    "StableCascadePriorPipeline": _EMBEDDINGS,
    "WuerstchenPriorPipeline": _EMBEDDINGS,
    "StableCascadeDecoderPipeline": _SECOND_STAGE,
    "WuerstchenDecoderPipeline": _SECOND_STAGE,
    "LTX2VideoDiffusionDecodePipeline": "decodes the latents of another LTX-2 pipeline; use that one",
    "LTX2DFRTemporalRefinePipeline": "refines the latents of another LTX-2 pipeline; use that one",
    "VersatileDiffusionPipeline": "holds the parts of three pipelines; set pipeline to one of them in models.yaml",
}
_TENSORS = ("embeds", "embeddings", "latents")


def refusal(class_name: str) -> str | None:
    """Why this class cannot be served, to stand after its name; None when it can."""
    if class_name in REFUSED:
        return REFUSED[class_name]
    for parameter in (call_parameters(class_name) or {}).values():
        if parameter.required and parameter.name.endswith(_TENSORS):
            return f"needs {parameter.name}, tensors that another model makes; use the combined pipeline of its family"
    return None

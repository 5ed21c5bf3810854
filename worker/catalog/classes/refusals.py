"""Pipeline classes of diffusers that make no picture of a request alone, each with its reason. Data, also for docs."""

from collections.abc import Mapping

from worker.catalog.classes.signatures import call_parameters

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
# Parameters that a class lists and fails on, whatever is sent: measured with diffusers 0.42.1 by `make test-zoo`.
_GUESS = frozenset({"guess_mode"})  # its batch is doubled for guidance where it should not be
_CROP = frozenset({"padding_mask_crop"})  # refuses the only output type that it asks for, or its own list of pictures
_SCHEDULE = frozenset({"timesteps"})  # always goes by sigmas of its own, and takes only one of the two
UNTAKEN: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(
        (
            "AllegroPipeline",
            "BriaPipeline",
            "LTXPipeline",
            "LTXImageToVideoPipeline",
            "LTX2Pipeline",
            "LTX2ImageToVideoPipeline",
            "LTX2ConditionPipeline",
            "LTX2InContextPipeline",
            "LTX2HDRPipeline",
            "MochiPipeline",
            "MotifVideoPipeline",
            "MotifVideoImage2VideoPipeline",
            "OmniGenPipeline",
        ),
        _SCHEDULE,
    ),
    "AnimateDiffControlNetPipeline": _GUESS,
    "AnimateDiffSparseControlNetPipeline": _GUESS,
    "AnimateDiffVideoToVideoControlNetPipeline": _GUESS,
    "StableDiffusionControlNetPAGPipeline": _GUESS,
    "StableDiffusionXLControlNetUnionPipeline": _GUESS,
    "StableDiffusionXLControlNetUnionImg2ImgPipeline": _GUESS,
    "StableDiffusionXLControlNetUnionInpaintPipeline": _GUESS | _CROP,
    "StableDiffusionPAGInpaintPipeline": _CROP,
    "SanaSprintPipeline": frozenset({"timesteps"}),  # angles, in a list one longer than its steps
    "SanaSprintImg2ImgPipeline": frozenset({"timesteps"}),
    "VersatileDiffusionImageVariationPipeline": frozenset({"negative_prompt"}),  # reads no words
    "Cosmos3OmniPipeline": frozenset({"enable_sound", "mixed_precision_format", "mixed_precision_reasoner_policy"}),
    "AnyFlowFARPipeline": frozenset({"use_kv_cache"}),  # false returns too little
    "HeliosPipeline": frozenset({"sigmas", "keep_first_frame"}),  # an array's arithmetic, and one frame too few
    "HeliosPyramidPipeline": frozenset({"sigmas", "keep_first_frame"}),
    "BriaFiboPipeline": frozenset({"do_patching"}),  # for a transformer of other channels than FIBO's
    "BriaFiboEditPipeline": frozenset({"do_patching"}),
}
# Parameters of a component that not every repository has.
PART_OF: Mapping[str, str] = {
    "guidance_scale_2": "transformer_2",
    "enable_prompt_enhancement": "processor",
    "prompt_upsampling": "prompt_enhancer_head",
    "prompt_upsampling_temperature": "prompt_enhancer_head",
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

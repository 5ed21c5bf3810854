"""Rows of the classes that make images."""

from worker.core.model import Task
from worker.core.pipeline import Companion, Package, PipelineRow, Slot
from worker.core.precision import DType

_T2I, _EDIT, _INPAINT = Task.TEXT_TO_IMAGE, Task.IMAGE_EDITING, Task.INPAINTING
_IMAGE = ("image", "images")
_SEVERAL = Slot("image", _IMAGE, "images", fitted=False)
_BOUNDED = Slot("image", _IMAGE, "images", fitted=False, bounded=True)
_TRANSPARENT = Slot("image", _IMAGE, "transparent", alpha=True)
_REFERENCES = Slot("images", _IMAGE, "images", fitted=False)
_EXAMPLES = Slot("image", _IMAGE, "grid", required=True, fitted=False)

_SCHEDULE = frozenset({"timesteps"})  # always goes by sigmas of its own, and takes only one of the two
_BETWEEN = frozenset({"intermediate_timesteps"})
_CROP = frozenset({"padding_mask_crop"})  # refuses the only output type that it asks for, or its own list of images
_PATCHES = frozenset({"do_patching"})  # for a transformer of other channels than FIBO's
_NINE_CHANNELS = frozenset({"gligen_inpaint_image"})  # wants a UNet that only one deprecated checkpoint has

# Hands its image to NumPy as it is, which has no bfloat16.
_NUMPY: tuple[DType, ...] = ("float32", "float16")

_EMBEDDINGS = "makes embeddings for another model, not an image; use the combined pipeline of its family"
_SECOND_STAGE = "is the second stage of a family and needs the embeddings of the first; use the combined pipeline"
_Q_FORMER = "its Q-Former calls invert_attention_mask, which transformers 5 removed"
# Cosmos' licence asks for its guardrail, so there is no way here to run it without.
_GUARDRAIL = Package("cosmos_guardrail", "cosmos_guardrail")

_PRIOR = {"prior_num_inference_steps": 2}  # its scheduler divides by one step less
_ORIGINAL = {"original_inference_steps": 1}
_RESCALED = frozenset({"guidance_rescale"})  # asks the mean of a tuple
_SOURCE = {"source_guidance_scale": 1.01}  # reads an embedding that it makes for guidance alone
_READ = {"processing_resolution": 8}  # its VAE halves the sides three times
_UNSURE = {"output_uncertainty": Companion("ensemble_size", 3)}

# Measured with diffusers 0.42.1, by tests/zoo.
IMAGES: tuple[PipelineRow, ...] = (
    PipelineRow("BriaFibo2Pipeline", slots=(_SEVERAL,)),
    PipelineRow("BriaFiboEditPipeline", tasks=(_EDIT, _INPAINT), untaken=_PATCHES, json_prompt="edit_instruction"),
    PipelineRow("BriaFiboPipeline", untaken=_PATCHES),
    PipelineRow("BriaPipeline", untaken=_SCHEDULE),
    PipelineRow("Cosmos2TextToImagePipeline", package=_GUARDRAIL),
    PipelineRow(
        "Flux2KleinInpaintPipeline",
        slots=(
            Slot("image", _IMAGE),
            Slot("image_reference", (), fitted=False, bounded=True),
        ),
    ),
    PipelineRow("Flux2KleinKVPipeline", slots=(_BOUNDED,)),
    PipelineRow("Flux2KleinPipeline", slots=(_BOUNDED,)),
    PipelineRow("Flux2KleinBaseModularPipeline", slots=(_BOUNDED,)),
    PipelineRow("Flux2KleinModularPipeline", slots=(_BOUNDED,)),
    PipelineRow("Flux2ModularPipeline", slots=(_BOUNDED,)),
    PipelineRow("Flux2Pipeline", slots=(_BOUNDED,)),
    PipelineRow(
        "FluxKontextInpaintPipeline", tasks=(_INPAINT,), slots=(Slot("image_reference", (), fitted=False),), alone=True
    ),
    PipelineRow("GlmImagePipeline", slots=(_SEVERAL,), alone=True, preparation="fitted_images"),
    PipelineRow("Ideogram4Pipeline", preparation="constant_guidance"),
    PipelineRow("JoyImageEditPipeline", tasks=(_EDIT, _T2I)),
    PipelineRow("JoyImageEditPlusPipeline", tasks=(_EDIT, _T2I), slots=(_REFERENCES,)),
    # Reads the images' vectors under a name that it has only when a caller computed them.
    PipelineRow("KolorsPAGPipeline", image_prompts="none"),
    PipelineRow(
        "LEditsPPPipelineStableDiffusion",
        untaken=_RESCALED,
        least=_SOURCE,
        inverts=True,
        preparation="inverted_ledits",
        steps_by_scheduler=True,
    ),
    PipelineRow(
        "LEditsPPPipelineStableDiffusionXL",
        untaken=_RESCALED,
        least=_SOURCE,
        inverts=True,
        preparation="inverted_ledits",
        steps_by_scheduler=True,
        dtypes=("bfloat16", "float32"),  # of float16 it makes its VAE float32 for good, and gives it latents as before
    ),
    # Trained to one scheduler's own steps.
    PipelineRow("LatentConsistencyModelImg2ImgPipeline", own_scheduler=True, least=_ORIGINAL),
    PipelineRow("LatentConsistencyModelPipeline", own_scheduler=True, least=_ORIGINAL),
    PipelineRow("MarigoldDepthPipeline", multiples=_READ, companions=_UNSURE),
    PipelineRow("MarigoldIntrinsicsPipeline", multiples=_READ, companions=_UNSURE),
    PipelineRow("MarigoldNormalsPipeline", multiples=_READ, companions=_UNSURE),
    PipelineRow("OmniGenPipeline", untaken=_SCHEDULE),
    PipelineRow("QwenImage21Pipeline", slots=(_SEVERAL,)),
    PipelineRow("QwenImageEditInpaintPipeline", tasks=(_INPAINT,)),
    PipelineRow("QwenImageEditPlusPipeline", slots=(_SEVERAL,)),
    PipelineRow("QwenImageLayeredModularPipeline", slots=(_TRANSPARENT,)),
    PipelineRow("QwenImageLayeredPipeline", slots=(_TRANSPARENT,)),
    PipelineRow(
        "RePaintPipeline", slots=(Slot("mask_image", ("mask_image",), "unmask", required=True),), dtypes=_NUMPY
    ),
    # Angles, in a list one longer than its steps.
    PipelineRow("SanaSprintImg2ImgPipeline", untaken=_SCHEDULE, of_two_steps=_BETWEEN),
    PipelineRow("SanaSprintPipeline", untaken=_SCHEDULE, of_two_steps=_BETWEEN),
    PipelineRow(
        "SpandrelUpscalePipeline",
        tasks=(Task.UPSCALING,),
        slots=(Slot("image", _IMAGE, required=True, fitted=False, alpha=True),),
        denoises=False,
        source="engine/upscaling.py",
        package=Package("spandrel", "spandrel"),
    ),
    PipelineRow("StableCascadeCombinedPipeline", tasks=(_T2I, _EDIT), slots=(_REFERENCES,)),
    PipelineRow("StableDiffusionAttendAndExcitePipeline", weighs_prompts=False, alone=True),
    PipelineRow(
        "StableDiffusionDiffEditPipeline",
        tasks=(_EDIT, _INPAINT),
        least={"guidance_scale": 1.01},  # its mask compares a guided draft with another
        shares={"mask_encode_strength": 0.5, "inpaint_strength": 0.8},
        weighs_prompts=False,
        inverts=True,
        preparation="inverted_diffedit",
        steps_by_scheduler=True,
    ),
    PipelineRow("StableDiffusionGLIGENPipeline", tasks=(_T2I,), unused=_NINE_CHANNELS),
    PipelineRow("StableDiffusionGLIGENTextImagePipeline", tasks=(_T2I,), unused=_NINE_CHANNELS),
    PipelineRow("StableDiffusionModelEditingPipeline", tasks=(_T2I,), weighs_prompts=False),
    PipelineRow("StableDiffusionPAGInpaintPipeline", untaken=_CROP | {"guidance_rescale"}),
    PipelineRow("StableDiffusionUpscalePipeline", most={"noise_level": 350}),  # its configuration's own
    # Its callback reports windows of steps.
    PipelineRow("StableDiffusionParadigmsPipeline", steps_by_scheduler=True, untaken=frozenset({"eta"})),
    PipelineRow("StableDiffusionPix2PixZeroPipeline", tasks=(_T2I,), weighs_prompts=False),
    PipelineRow("UniDiffuserPipeline", tasks=(_T2I,), alone=True),
    # It reads no prompt.
    PipelineRow("StableUnCLIPPipeline", least=_PRIOR),
    PipelineRow("VersatileDiffusionImageVariationPipeline", untaken=frozenset({"negative_prompt"})),
    PipelineRow("VisualClozeGenerationPipeline", slots=(_EXAMPLES,)),
    PipelineRow("VisualClozePipeline", slots=(_EXAMPLES,), least={"upsampling_width": 64, "upsampling_height": 64}),
    PipelineRow("ZImageOmniPipeline", slots=(_BOUNDED,), casts_images=True),
    # Their attention takes the projected image of one adapter.
    PipelineRow("StableDiffusion3Img2ImgPipeline", image_prompts="one"),
    PipelineRow("StableDiffusion3InpaintPipeline", image_prompts="one"),
    PipelineRow("StableDiffusion3PAGImg2ImgPipeline", image_prompts="one"),
    PipelineRow("StableDiffusion3PAGPipeline", image_prompts="one"),
    PipelineRow("StableDiffusion3Pipeline", image_prompts="one"),
    # One call for several images gives other images than single calls do.
    PipelineRow("CogView4ControlPipeline", alone=True),
    PipelineRow("CycleDiffusionPipeline", alone=True),
    PipelineRow("HiDreamImagePipeline", alone=True),
    PipelineRow("HunyuanDiTPAGPipeline", least={"guidance_scale": 1.01}),  # its perturbed half is one of three
    PipelineRow("StableDiffusionPanoramaPipeline", alone=True),
    # One call gives other images where the prompts differ in length.
    PipelineRow("CogView4Pipeline", alone=True),
    PipelineRow("Kandinsky3Img2ImgPipeline", alone=True),
    PipelineRow("Kandinsky3Pipeline", alone=True),
    # One call for several images fails.
    PipelineRow("KandinskyCombinedPipeline", alone=True, size_multiple=64, least=_PRIOR),
    PipelineRow("KandinskyImg2ImgCombinedPipeline", alone=True, size_multiple=64, least=_PRIOR, swaps_sides=True),
    PipelineRow("KandinskyInpaintCombinedPipeline", alone=True, size_multiple=64, least=_PRIOR),
    PipelineRow("KandinskyV22CombinedPipeline", alone=True, least=_PRIOR),
    PipelineRow("KandinskyV22Img2ImgCombinedPipeline", alone=True, least=_PRIOR),
    PipelineRow("KandinskyV22InpaintCombinedPipeline", alone=True, least=_PRIOR),
    PipelineRow("PRXPipeline", alone=True, least={"guidance_scale": 1}),
    PipelineRow("PRXPixelPipeline", alone=True, least={"guidance_scale": 1}),
    PipelineRow("StableDiffusionInpaintPipelineLegacy", alone=True),
    PipelineRow("VQDiffusionPipeline", alone=True, dtypes=_NUMPY),
    PipelineRow("WuerstchenCombinedPipeline", alone=True),
    PipelineRow("ConsistencyModelPipeline", dtypes=_NUMPY),
    PipelineRow("DDIMPipeline", dtypes=_NUMPY),
    PipelineRow("DDPMPipeline", dtypes=_NUMPY),
    PipelineRow("KarrasVePipeline", dtypes=_NUMPY),
    PipelineRow("LDMPipeline", dtypes=_NUMPY),
    PipelineRow("LDMSuperResolutionPipeline", dtypes=_NUMPY),
    PipelineRow("LDMTextToImagePipeline", dtypes=_NUMPY),
    PipelineRow("PNDMPipeline", dtypes=_NUMPY),
    PipelineRow("ScoreSdeVePipeline", dtypes=_NUMPY),
    # Not served.
    PipelineRow(
        "FluxPriorReduxPipeline", refusal="makes embeddings for another model, not an image; use a FLUX.1 model"
    ),
    PipelineRow("KandinskyPriorPipeline", refusal=_EMBEDDINGS),
    PipelineRow("KandinskyV22PriorEmb2EmbPipeline", refusal=_EMBEDDINGS),
    PipelineRow("KandinskyV22PriorPipeline", refusal=_EMBEDDINGS),
    PipelineRow("StableCascadeDecoderPipeline", refusal=_SECOND_STAGE),
    PipelineRow("StableCascadePriorPipeline", refusal=_EMBEDDINGS),
    PipelineRow(
        "VersatileDiffusionPipeline",
        refusal="holds the parts of three pipelines; set pipeline to one of them in models.yaml",
    ),
    PipelineRow("WuerstchenDecoderPipeline", refusal=_SECOND_STAGE),
    PipelineRow("WuerstchenPriorPipeline", refusal=_EMBEDDINGS),
    # Broken with the installed libraries; a test checks that each reason still holds.
    PipelineRow("BlipDiffusionPipeline", broken=_Q_FORMER),
    PipelineRow(
        "ChromaInpaintPipeline",
        broken="it reads transformer.config.guidance_embeds, which Chroma's transformer does not have",
    ),
    PipelineRow(
        "VersatileDiffusionDualGuidedPipeline",
        broken="its DualTransformer2DModel is given arguments that it does not take",
    ),
)

"""Rows of the classes that make videos. Frame grids and frame rates, which many share, stand in `names.py`."""

from worker.core.model import Task
from worker.core.pipeline import Companion, Package, PipelineRow, Slot

_T2V, _I2V, _V2V = Task.TEXT_TO_VIDEO, Task.IMAGE_TO_VIDEO, Task.VIDEO_TO_VIDEO
_IMAGE = ("image", "images")
_VACE = (Slot("mask", ("mask_image",), "images"), Slot("reference_images", _IMAGE, "images", fitted=False))
_SCHEDULE = frozenset({"timesteps"})  # always goes by sigmas of its own, and takes only one of the two
_GUESS = frozenset({"guess_mode"})  # its batch is doubled for guidance where it should not be
_HELIOS = frozenset({"sigmas", "keep_first_frame"})  # an array's arithmetic, and one frame too few
# Sound is not delivered here; its precisions are for other kernels.
_OMNI = frozenset({"enable_sound", "mixed_precision_format", "mixed_precision_reasoner_policy"})
_REGISTERS = {"max_sequence_length": 128}  # its connectors fill what a prompt leaves with so many registers
_PADDED = {"width": 64, "height": 64}  # its VAE mirrors latents at their edges, and wants two of them a side
_STG = {"stg_scale": Companion("spatio_temporal_guidance_blocks")}
_GUIDED = {"guidance_scale": 1.01}  # joins an embedding that it makes for guidance alone
_BLOCKS = {"causal_block_size": 1}
# Cosmos' licence asks for its guardrail, so there is no way here to run it without.
_GUARDRAIL = Package("cosmos_guardrail", "cosmos_guardrail")

# Measured with diffusers 0.42.1, by tests/zoo.
VIDEOS: tuple[PipelineRow, ...] = (
    PipelineRow("AllegroPipeline", untaken=_SCHEDULE, tiled_decoding=True),
    PipelineRow("AnimateDiffControlNetPipeline", tasks=(Task.CONTROLNET,), untaken=_GUESS),
    # Of float16 it makes its VAE float32, and gives it latents as before.
    PipelineRow("AnimateDiffSDXLPipeline", dtypes=("bfloat16", "float32")),
    PipelineRow("AnimateDiffSparseControlNetPipeline", tasks=(Task.CONTROLNET,), untaken=_GUESS),
    PipelineRow("AnimateDiffVideoToVideoControlNetPipeline", untaken=_GUESS),
    # Of `video` it wants the tensor; `use_kv_cache` false returns too little.
    PipelineRow(
        "AnyFlowFARPipeline",
        unused=frozenset({"video"}),
        untaken=frozenset({"use_kv_cache", "chunk_partition"}),
        preparation="whole_chunks",
    ),
    PipelineRow("CogVideoXFunControlPipeline", tasks=(_V2V,)),
    PipelineRow("ConsisIDPipeline", package=Package("cv2", "opencv-python-headless")),
    PipelineRow("Cosmos2VideoToWorldPipeline", tasks=(_I2V, _V2V), package=_GUARDRAIL),
    PipelineRow("Cosmos2_5_PredictBasePipeline", package=_GUARDRAIL),
    PipelineRow("Cosmos2_5_TransferPipeline", tasks=(_V2V,), package=_GUARDRAIL),
    PipelineRow("Cosmos3DistilledModularPipeline", untaken=_OMNI | {"num_inference_steps", "guidance_scale"}),
    PipelineRow("Cosmos3OmniModularPipeline", untaken=_OMNI),
    PipelineRow("Cosmos3OmniPipeline", untaken=_OMNI),
    PipelineRow("CosmosTextToWorldPipeline", package=_GUARDRAIL),
    PipelineRow("CosmosVideoToWorldPipeline", tasks=(_I2V, _V2V), package=_GUARDRAIL),
    PipelineRow("HeliosPipeline", untaken=_HELIOS),
    PipelineRow("HeliosPyramidDistilledModularPipeline", size_multiple=64),
    PipelineRow("HeliosPyramidModularPipeline", size_multiple=64),
    PipelineRow("HeliosPyramidPipeline", untaken=_HELIOS, size_multiple=64),
    PipelineRow("HunyuanVideo15ModularPipeline", preparation="guided_always"),
    PipelineRow("Kandinsky6SRPipeline", tasks=(_V2V,)),
    PipelineRow("Kandinsky6TI2VAPipeline", tasks=(_T2V, _I2V)),
    PipelineRow(
        "LTX2ConditionPipeline",
        tasks=(_T2V, _I2V, _V2V),
        untaken=_SCHEDULE,
        multiples=_REGISTERS,
        companions=_STG,
    ),
    PipelineRow("LTX2DFRPipeline", tasks=(_T2V, _I2V, _V2V), size_multiple=64, multiples=_REGISTERS, companions=_STG),
    PipelineRow("LTX2HDRPipeline", untaken=_SCHEDULE, least=_PADDED, multiples=_REGISTERS, companions=_STG),
    PipelineRow("LTX2ImageToVideoPipeline", untaken=_SCHEDULE, multiples=_REGISTERS, companions=_STG),
    PipelineRow(
        "LTX2InContextPipeline",
        unused=frozenset({"conditions"}),
        untaken=_SCHEDULE,
        multiples=_REGISTERS,
        companions=_STG,
    ),
    PipelineRow("LTX2ModularPipeline", least=_PADDED, multiples=_REGISTERS),
    PipelineRow("LTX25ModularPipeline", multiples=_REGISTERS),
    PipelineRow("EchoModularPipeline", multiples=_REGISTERS),
    PipelineRow("LTXModularPipeline", preparation="guided_always"),
    PipelineRow("LTX2LatentUpsamplePipeline", tasks=(_V2V,), convolutional=True),
    PipelineRow("LTX2Pipeline", untaken=_SCHEDULE, multiples=_REGISTERS, companions=_STG),
    PipelineRow("LTXConditionPipeline", tasks=(_T2V, _I2V, _V2V), unused=frozenset({"conditions"})),
    PipelineRow("LTXI2VLongMultiPromptPipeline", tasks=(_I2V, _T2V), least={"temporal_tile_size": 16}),
    PipelineRow("LTXImageToVideoPipeline", untaken=_SCHEDULE),
    PipelineRow("LTXLatentUpsamplePipeline", tasks=(_V2V,), convolutional=True),
    PipelineRow("LTXPipeline", untaken=_SCHEDULE),
    PipelineRow("LattePipeline", preparation="whole_video"),
    PipelineRow("LucyEditPipeline", casts_images=True),
    PipelineRow("MochiPipeline", untaken=_SCHEDULE, least={"num_inference_steps": 2}),
    PipelineRow("MotifVideoImage2VideoPipeline", untaken=_SCHEDULE),
    PipelineRow("MotifVideoPipeline", untaken=_SCHEDULE),
    PipelineRow("SkyReelsV2DiffusionForcingVideoToVideoPipeline", lengthens=17, least={"overlap_history": 1} | _BLOCKS),
    PipelineRow("SanaWMPipeline", least={"max_sequence_length": 2}),
    PipelineRow("SkyReelsV2DiffusionForcingImageToVideoPipeline", least=_BLOCKS),
    PipelineRow("SkyReelsV2DiffusionForcingPipeline", least=_BLOCKS),
    # Trained on a continuous scale of noise.
    PipelineRow("StableVideoDiffusionPipeline", own_scheduler=True),
    PipelineRow("TextToVideoZeroPipeline", weighs_prompts=False, step_places=("t0", "t1"), least=_GUIDED),
    PipelineRow("TextToVideoZeroSDXLPipeline", weighs_prompts=False, step_places=("t0", "t1")),
    PipelineRow("WanAnimatePipeline", tasks=(_V2V,)),
    PipelineRow("Wan22Image2VideoModularPipeline", preparation="guided_always"),
    PipelineRow("Wan22ModularPipeline", preparation="guided_always"),
    PipelineRow("Wan22VaceModularPipeline", tasks=(_T2V, _I2V, _V2V), slots=_VACE, preparation="guided_always"),
    PipelineRow("WanImage2VideoModularPipeline", preparation="guided_always"),
    PipelineRow("WanModularPipeline", preparation="guided_always"),
    PipelineRow("WanVACEPipeline", tasks=(_T2V, _I2V, _V2V), slots=_VACE),
    # Not served.
    PipelineRow("LTX2DFRTemporalRefinePipeline", refusal="refines the latents of another LTX-2 pipeline; use that one"),
    PipelineRow(
        "LTX2VideoDiffusionDecodePipeline", refusal="decodes the latents of another LTX-2 pipeline; use that one"
    ),
    # Broken in themselves.
    PipelineRow(
        "EasyAnimateControlPipeline",
        broken="it calls its own encode_prompt with text_encoder_index, which that does not take",
    ),
    PipelineRow(
        "EasyAnimateInpaintPipeline", broken="it reads vae.config.cache_mag_vae, which its VAE class does not have"
    ),
)

"""Pipeline classes of diffusers that the zoo leaves out: they do not make images or video of text or images alone."""

from collections.abc import Mapping

_ONNX = "runs ONNX files"
_AUDIO = "makes sound"
_SOLID = "makes 3D objects"
_GIVES_EMBEDDINGS = "gives embeddings, not an image; the combined pipeline has a recipe"
_TAKES_EMBEDDINGS = "takes the embeddings of another stage; the combined pipeline has a recipe"
_UNCONDITIONAL = "takes neither text nor an image"

EXCLUDED: Mapping[str, str] = {
    "AceStepPipeline": _AUDIO,
    "AudioDiffusionPipeline": _AUDIO,
    "AudioLDM2Pipeline": _AUDIO,
    "AudioLDMPipeline": _AUDIO,
    "DanceDiffusionPipeline": _AUDIO,
    "LongCatAudioDiTPipeline": _AUDIO,
    "MusicLDMPipeline": _AUDIO,
    "SpectrogramDiffusionPipeline": _AUDIO,
    "StableAudio3AudioToAudioPipeline": _AUDIO,
    "StableAudio3InpaintPipeline": _AUDIO,
    "StableAudio3Pipeline": _AUDIO,
    "StableAudioPipeline": _AUDIO,
    "DiffusionGemmaPipeline": "writes text",
    "LLaDA2Pipeline": "writes text",
    "RFD4ProteinaPipeline": "designs proteins",
    "OnnxStableDiffusionImg2ImgPipeline": _ONNX,
    "OnnxStableDiffusionInpaintPipeline": _ONNX,
    "OnnxStableDiffusionInpaintPipelineLegacy": _ONNX,
    "OnnxStableDiffusionPipeline": _ONNX,
    "OnnxStableDiffusionUpscalePipeline": _ONNX,
    "StableDiffusionOnnxPipeline": _ONNX,
    "ConsistencyModelPipeline": _UNCONDITIONAL,
    "DDIMPipeline": _UNCONDITIONAL,
    "DDPMPipeline": _UNCONDITIONAL,
    "DiTPipeline": _UNCONDITIONAL,
    "KarrasVePipeline": _UNCONDITIONAL,
    "LDMPipeline": _UNCONDITIONAL,
    "PNDMPipeline": _UNCONDITIONAL,
    "ScoreSdeVePipeline": _UNCONDITIONAL,
    "ShapEImg2ImgPipeline": _SOLID,
    "ShapEPipeline": _SOLID,
    "FluxPriorReduxPipeline": "gives embeddings for FluxPipeline, not an image",
    "LTX2DFRTemporalRefinePipeline": "takes the latents of LTX2DFRPipeline",
    "LTX2VideoDiffusionDecodePipeline": "takes the latents of another pipeline",
    "KandinskyPriorPipeline": _GIVES_EMBEDDINGS,
    "KandinskyV22PriorEmb2EmbPipeline": _GIVES_EMBEDDINGS,
    "KandinskyV22PriorPipeline": _GIVES_EMBEDDINGS,
    "StableCascadePriorPipeline": _GIVES_EMBEDDINGS,
    "WuerstchenPriorPipeline": _GIVES_EMBEDDINGS,
    "KandinskyImg2ImgPipeline": _TAKES_EMBEDDINGS,
    "KandinskyInpaintPipeline": _TAKES_EMBEDDINGS,
    "KandinskyPipeline": _TAKES_EMBEDDINGS,
    "KandinskyV22ControlnetImg2ImgPipeline": "takes the embeddings of another stage",
    "KandinskyV22ControlnetPipeline": "takes the embeddings of another stage",
    "KandinskyV22Img2ImgPipeline": _TAKES_EMBEDDINGS,
    "KandinskyV22InpaintPipeline": _TAKES_EMBEDDINGS,
    "KandinskyV22Pipeline": _TAKES_EMBEDDINGS,
    "StableCascadeDecoderPipeline": _TAKES_EMBEDDINGS,
    "WuerstchenDecoderPipeline": _TAKES_EMBEDDINGS,
    "StableDiffusionPix2PixZeroPipeline": "takes embeddings of both ends of an edit",
    "VersatileDiffusionPipeline": "has no call of its own: it holds the parts of three pipelines that have recipes",
}

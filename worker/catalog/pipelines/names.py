"""Facts that the names of ordinary classes tell: the task, the frames, and other media that they make."""

import re

from worker.core.model import Task
from worker.core.pipeline import FrameGrid

# These classes return a video, whatever the name of their task.
_VIDEO = (
    r"^AnimateDiff|Video|T2V|I2V|^Mochi|^Allegro|^Latte|^SkyReels|^Wan|^Helios|^EasyAnimate|^LTX|^ChronoEdit|^PIA|^Lucy"
    r"|^AnyFlow|^SanaWM|^ConsisID|TI2VA|^I2VGen|World|^Cosmos(?!2TextToImage)|^Kandinsky6|^CogVideo"
)
_IS_VIDEO = re.compile(_VIDEO)
# The task of a class; the first match wins.
_TASKS: tuple[tuple[re.Pattern[str], Task], ...] = tuple(
    (re.compile(pattern), task)
    for pattern, task in (
        (r"ImageToVideo|Image2Video|I2V|VideoDiffusion|^PIA|VideoToWorld", Task.IMAGE_TO_VIDEO),
        (r"VideoToVideo|Video2Video|^LucyEdit|VACE|^WanAnimate", Task.VIDEO_TO_VIDEO),
        (r"SRPipeline", Task.UPSCALING),
        (_VIDEO, Task.TEXT_TO_VIDEO),
        (r"ControlNet|Controlnet|Control|Adapter|GLIGEN", Task.CONTROLNET),
        (r"Upscale|SuperResolution", Task.UPSCALING),
        (r"Edit|Pix2Pix|Kontext|I2IPipeline|Layered|DiffEdit|PaintByExample", Task.IMAGE_EDITING),
        (r"Inpaint|FillPipeline|RePaint", Task.INPAINTING),
        (r"Img2Img|ImageVariation|Depth2Img|Refiner|Emb2Emb|CycleDiffusion", Task.IMAGE_TO_IMAGE),
    )
)
# Classes that make other media; these are refused.
OTHER_MEDIA = (
    (re.compile(r"Audio|Music|DanceDiffusion|AceStep|Spectrogram"), "makes audio"),
    (re.compile(r"^ShapE"), "makes 3D objects"),
    (re.compile(r"Protein"), "makes proteins"),
    (re.compile(r"^(?:LLaDA|DiffusionGemma)"), "makes text"),
    (re.compile(r"^Onnx|Onnx"), "is an ONNX pipeline"),
    (re.compile(r"^Flax"), "is a Flax pipeline"),
)
# Measured with diffusers 0.42.1: a video's VAE makes one of several frames. A class refuses a number of frames off its
# grid, or rounds it either way, or fills up.
_FRAME_GRIDS: tuple[tuple[re.Pattern[str], FrameGrid], ...] = (
    (re.compile(r"^LTX2DFR"), FrameGrid(8, least=9)),
    (re.compile(r"^(LTX|SanaWM|Echo)"), FrameGrid(8)),
    (re.compile(r"^MiniMaxH3"), FrameGrid(17, least=124)),  # at least five seconds
    (re.compile(r"^Mochi"), FrameGrid(6)),
    (re.compile(r"^HunyuanVideoImageToVideo"), FrameGrid(4, least=5, lost=4)),  # the image's own
    (re.compile(r"^(ChronoEdit|SkyReelsV2DiffusionForcingImageToVideo)"), FrameGrid(4, least=5)),
    (re.compile(r"^(Wan|SkyReelsV2|HunyuanVideo|HunyuanSkyreels|Lucy|Kandinsky[56]|AnyFlow|MotifVideo)"), FrameGrid(4)),
    (re.compile(r"^(CogVideoX|ConsisID|Cosmos|EasyAnimate|Sana)"), FrameGrid(4)),
    (re.compile(r"^Allegro"), FrameGrid(least=5)),
    (re.compile(r"^StableVideoDiffusion"), FrameGrid(least=2)),
)
# Frames a second of the videos that its models were trained on.
_FPS: tuple[tuple[re.Pattern[str], float], ...] = (
    (re.compile(r"^(SkyReels|Kandinsky|LTX|HunyuanVideo15|Helios|Lucy|MiniMaxH3)"), 24),
    (re.compile(r"^Echo"), 25),
    (re.compile(r"^(Wan|Sana|AnyFlow|ChronoEdit|Cosmos|MotifVideo)"), 16),
    (re.compile(r"^Allegro"), 15),
)


def named_task(name: str) -> Task:
    """Infer a class's task from its name; text-to-image when the name says nothing."""
    return next((task for pattern, task in _TASKS if pattern.search(name)), Task.TEXT_TO_IMAGE)


def named_medium(name: str) -> str | None:
    """Return the other medium that a class makes, as the end of a sentence; None for images and videos."""
    return next((medium for pattern, medium in OTHER_MEDIA if pattern.search(name)), None)


def is_video(name: str) -> bool:
    """True if a class of this name returns videos."""
    return _IS_VIDEO.search(name) is not None


def frame_grid(name: str) -> FrameGrid | None:
    """Return the frames that a class of this name can generate; None where its name says nothing."""
    return next((grid for pattern, grid in _FRAME_GRIDS if pattern.search(name)), None)


def frames_per_second(name: str) -> float | None:
    """Return the frame rate of a class's videos; None where its name says nothing."""
    return next((fps for pattern, fps in _FPS if pattern.search(name)), None)

"""What holds an image shows no pixel of it: one `%r` of a job in a log line would be megabytes, and private."""

import pytest

from worker.core.adapter import ControlNetSpec, IPAdapterSpec
from worker.core.image import KeptRaster, Raster
from worker.core.job import Media
from worker.core.request import GenerationRequest
from worker.core.result import AnswerFile, Artifact, EncodedArtifact, Progress
from worker.transport.processes.merging import ProcessAnswer
from worker.transport.web.forms import Form

PIXELS = b"pixel" * 30_000
TEXT = PIXELS.decode()
IMAGE = Raster("RGB", 250, 200, PIXELS)
SENT = {"image": TEXT, "images": [TEXT], "mask_image": TEXT, "control_image": TEXT, "control_images": [TEXT]}


def restored() -> bytes:
    raise AssertionError("pixels were made only to be shown")


@pytest.mark.parametrize(
    "holder",
    [
        IMAGE,
        KeptRaster(IMAGE, restored, lambda: "digest"),
        Artifact("a", IMAGE, 1, frames=(IMAGE, IMAGE), fps=8.0),
        Progress("inference", 1, 2, preview=IMAGE),
        EncodedArtifact((AnswerFile("png", PIXELS),), 1, 250, 200),
        AnswerFile("png", PIXELS),
        Media("image", (IMAGE,), "image", "image"),
        GenerationRequest.model_validate({**SENT, "video": [TEXT]}),
        ControlNetSpec(model="org/control", image=TEXT),
        IPAdapterSpec(model="org/adapter", images=(TEXT,)),
        Form({}, {"image": [PIXELS]}),
        ProcessAnswer(0, 200, (), PIXELS),
    ],
    ids=lambda holder: type(holder).__name__,
)
def test_no_pixel_is_shown(holder: object) -> None:
    shown = repr(holder)
    assert "pixelpixel" not in shown
    assert len(shown) < 1_500

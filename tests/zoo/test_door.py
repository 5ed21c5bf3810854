"""Every task, three families each, through RunPod's door: what comes back depends on what was sent."""

import base64
import json
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pytest

from tests.answers import files_of
from tests.asking import on_one_loop
from tests.builders import enliven_saved
from tests.images import assert_differs, pixels
from tests.zoo import RECIPES
from tests.zoo.plain import quiet, save
from tests.zoo.recipe import Image, on_the_wire
from tests.zoo.served import ServedZoo
from worker.app.queue import build_door
from worker.media.video import decode_video

_RECIPES = {recipe.pipeline: recipe for recipe in RECIPES}
_OTHER = Image(seed=2)

# Task -> class -> what is sent instead.
_WORDS: Mapping[str, Any] = {"prompt": "a blue boat in a storm"}


def _each(names: tuple[str, ...], instead: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    return dict.fromkeys(names, instead)


DEPENDS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "text-to-image": _each(("StableDiffusionPipeline", "StableDiffusion3Pipeline", "FluxPipeline"), _WORDS),
    "image-to-image": _each(
        ("StableDiffusionImg2ImgPipeline", "StableDiffusionXLImg2ImgPipeline", "FluxImg2ImgPipeline"), {"image": _OTHER}
    ),
    "inpainting": _each(
        ("StableDiffusionInpaintPipeline", "StableDiffusionXLInpaintPipeline", "FluxInpaintPipeline"), {"image": _OTHER}
    ),
    "image-editing": _each(
        ("StableDiffusionInstructPix2PixPipeline", "FluxKontextPipeline", "Flux2KleinPipeline"), {"image": _OTHER}
    ),
    "controlnet": _each(
        ("StableDiffusionControlNetPipeline", "StableDiffusionXLControlNetPipeline", "FluxControlNetPipeline"),
        {"control_image": _OTHER},
    ),
    "upscaling": {
        "StableDiffusionUpscalePipeline": {"image": Image(16, 16, seed=2)},
        "LDMSuperResolutionPipeline": {"image": Image(32, 32, seed=2)},
        "IFSuperResolutionPipeline": {"image": Image(16, 16, seed=2)},
    },
    "text-to-video": _each(("CogVideoXPipeline", "WanPipeline", "LTXPipeline"), _WORDS),
    "image-to-video": _each(
        ("CogVideoXImageToVideoPipeline", "WanImageToVideoPipeline", "LTXImageToVideoPipeline"), {"image": _OTHER}
    ),
    "video-to-video": _each(
        ("CogVideoXVideoToVideoPipeline", "WanVideoToVideoPipeline", "AnimateDiffVideoToVideoPipeline"),
        {"video": [Image(seed=index + 3) for index in range(5)]},
    )
    | {"AnimateDiffVideoToVideoPipeline": {"video": [Image(seed=index + 3) for index in range(4)]}},
}
# In both requests: so few steps that the image is not all noise at the first one; and videos as they were drawn.
_REDRAWN = {"num_inference_steps": 4, "strength": 0.4}
_FRAMES = {"output": {"format": "png"}}
_BOTH: Mapping[str, Mapping[str, Any]] = {
    "image-to-image": _REDRAWN,
    "text-to-video": _FRAMES,
    "image-to-video": _FRAMES,
    "video-to-video": _REDRAWN | _FRAMES,
}
# Random weights of these classes hardly listen.
DULL: Mapping[str, Mapping[str, float]] = {
    **_each(("FluxKontextPipeline", "Flux2KleinPipeline", "Flux2Pipeline"), {"attention": 8.0}),
    **_each(("WanPipeline", "WanImageToVideoPipeline", "WanVideoToVideoPipeline"), {"latents": 100.0}),
    "StableCascadeCombinedPipeline": {},
}
SEVERAL = (
    "Flux2KleinPipeline",
    "Flux2Pipeline",
    "GlmImagePipeline",
    "QwenImageEditPlusPipeline",
    "StableCascadeCombinedPipeline",
    "ZImageOmniPipeline",
)


def _often(rows: Iterable[Any], each: int) -> list[Any]:
    """The first `each` of these rows for `make test`, and the rest of the table for `make test-all`."""
    return [
        pytest.param(*(row if isinstance(row, tuple) else (row,)), marks=() if at < each else pytest.mark.slow)
        for at, row in enumerate(rows)
    ]


_ROWS = [row for task, rows in DEPENDS.items() for row in _often([(task, name) for name in rows], 1)]


@pytest.fixture(autouse=True)
def silence() -> None:
    quiet()
    logging.getLogger("worker").setLevel(logging.CRITICAL)


class Doorway:
    """The worker's door, and the repositories behind it."""

    def __init__(self, zoo: ServedZoo) -> None:
        self.zoo, self.door, self.jobs = zoo, build_door(zoo.worker, concurrency=1), 0

    def ask(self, pipeline: str, **fields: Any) -> dict[str, Any]:
        """The answer to the recipe's request with `fields` instead, as the platform gets it."""
        folder = self.zoo.root / pipeline
        if not folder.exists():
            save(_RECIPES[pipeline], folder)
            if pipeline in DULL:
                enliven_saved(folder, **DULL[pipeline])
        self.jobs += 1
        payload = {"seed": 7, **_RECIPES[pipeline].fields(), **on_the_wire(fields), "model": f"file:{folder}"}
        sent = {name: value for name, value in payload.items() if value is not None}
        answer = on_one_loop(self.door.handle({"id": f"job-{self.jobs}", "input": sent}))
        assert "error" not in answer, answer
        return json.loads(json.dumps(answer, allow_nan=False))


@pytest.fixture(scope="module")
def doorway(tmp_path_factory: pytest.TempPathFactory) -> Doorway:
    return Doorway(ServedZoo(tmp_path_factory.mktemp("door")))


def seen(answer: dict[str, Any]) -> np.ndarray:
    """The images, or the frames, of an answer."""
    return np.stack([pixels(answer, index) for index in range(len(files_of(answer)))])


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize(("task", "pipeline"), _ROWS)
def test_what_is_drawn_depends_on_what_was_sent(doorway: Doorway, task: str, pipeline: str):
    both = _BOTH.get(task, {})
    first, other = doorway.ask(pipeline, **both), doorway.ask(pipeline, **both | DEPENDS[task][pipeline])
    assert first["task"] == task
    assert seen(first).std() > 0
    assert_differs(seen(first), seen(other))
    if task == "inpainting":  # the left half is not masked
        kept = np.asarray(Image().draw()).astype(int)[:, :32]
        assert np.abs(seen(first)[0][:, :32] - kept).max() <= 1


def test_three_families_for_each_task():
    assert all(len(rows) >= 3 for rows in DEPENDS.values())


@pytest.mark.parametrize("pipeline", _often(SEVERAL, 1))
def test_each_of_several_images_changes_the_edit(doorway: Doorway, pipeline: str):
    for module in _RECIPES[pipeline].needs:
        pytest.importorskip(module, reason=f"{pipeline} needs {module}")
    first, other, none = Image(), _OTHER, {"image": None}
    drawn = [
        seen(doorway.ask(pipeline, task="image-editing", **none, images=images))
        for images in ([first, first], [first, other], [other, first])
    ]
    assert_differs(drawn[0], drawn[1])
    assert_differs(drawn[0], drawn[2])


@pytest.mark.parametrize("size", [(70, 50), (30, 30), (400, 40), (33, 600)])
@pytest.mark.parametrize("pipeline", _often(("Flux2KleinPipeline", "GlmImagePipeline", "ZImageOmniPipeline"), 1))
def test_an_image_of_any_size_is_edited(doorway: Doorway, pipeline: str, size: tuple[int, int]):
    images = [[Image(*size, seed=seed), Image(64, 96, seed=1)] for seed in (0, 1)]
    first, other = (doorway.ask(pipeline, image=None, images=sent) for sent in images)
    assert pixels(first).shape == (64, 64, 3)
    assert_differs(pixels(first), pixels(other))


@pytest.mark.parametrize(
    ("sent", "drawn"), [({}, (64, 96)), ({"width": 64}, (64, 64)), ({"width": 96, "height": 64}, (64, 96))]
)
def test_an_edit_without_a_size_is_as_large_as_its_image(
    doorway: Doorway, sent: dict[str, int], drawn: tuple[int, int]
):
    size = {"width": None, "height": None, **sent}
    answer = doorway.ask("GlmImagePipeline", image=None, images=[Image(96, 64), Image(64, 96, seed=1)], **size)
    assert pixels(answer).shape == (*drawn, 3)
    assert (answer["height"], answer["width"]) == drawn


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("pipeline", ["CogVideoXPipeline", "WanPipeline", "LTXPipeline"])
def test_a_video_is_what_was_asked_for(doorway: Doorway, pipeline: str):
    asked = {"num_frames": 9, "width": 96, "height": 64, "fps": 12}
    answer = doorway.ask(pipeline, **asked)
    assert {name: answer[name] for name in asked} == asked
    video = decode_video(base64.b64decode(answer["video"]))
    assert (answer["format"], len(video.frames), video.fps) == ("mp4", 9, 12)
    assert {(frame.width, frame.height) for frame in video.frames} == {(96, 64)}


# Class -> counts that it does not draw by itself: it fills up, rounds either way, fails, or gives four fewer.
ODD_COUNTS: Mapping[str, tuple[int, ...]] = {
    "CogVideoXPipeline": (2, 5, 13),
    "WanPipeline": (6,),
    "LTXPipeline": (10,),
    "MochiPipeline": (9,),
    "HunyuanVideoImageToVideoPipeline": (2, 6),
    "SkyReelsV2DiffusionForcingImageToVideoPipeline": (3,),
    "SanaVideoPipeline": (6,),
    "LattePipeline": (3,),
    "AllegroPipeline": (2,),
    "StableVideoDiffusionPipeline": (1,),
    "AnimateDiffPipeline": (5,),
}


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("pipeline", _often(ODD_COUNTS, 3))
def test_a_video_has_exactly_the_frames_that_were_asked_for(doorway: Doorway, pipeline: str):
    own = {name: None for name in ("frames", "video_length") if name in _RECIPES[pipeline].request}
    for count in ODD_COUNTS[pipeline]:
        answer = doorway.ask(pipeline, **own, num_frames=count)
        video = decode_video(base64.b64decode(answer["video"]))
        assert (answer["format"], answer["num_frames"], len(video.frames)) == ("mp4", count, count)
        assert not [warning for warning in answer["warnings"] if "frames" in warning]


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("pipeline", ["CogVideoXVideoToVideoPipeline", "WanVideoToVideoPipeline", "WanVACEPipeline"])
def test_a_video_from_a_video_is_as_long_as_it(doorway: Doorway, pipeline: str):
    frames = [Image(seed=seed) for seed in range(6)]
    answer = doorway.ask(pipeline, num_frames=None, video=frames, mask_image=None)
    assert len(decode_video(base64.b64decode(answer["video"])).frames) == 6


def test_a_control_video_that_is_too_short_is_refused_before_anything_is_loaded(doorway: Doorway):
    folder = save(_RECIPES["AnimateDiffControlNetPipeline"], doorway.zoo.root / "AnimateDiffControlNetPipeline")
    before = doorway.zoo.worker.engine.resident_models
    sent = {**_RECIPES[folder.name].fields(), "model": f"file:{folder}", "num_frames": 9}
    answer = on_one_loop(doorway.door.handle({"id": "short", "input": sent}))
    assert (answer["code"], answer["field"]) == ("invalid_request", "conditioning_frames")
    assert "num_frames is 9" in answer["error"]
    assert doorway.zoo.worker.engine.resident_models == before


@pytest.mark.parametrize("format_", ["gif", "webp", "png", "jpeg"])
def test_a_video_comes_as_a_moving_image_or_as_frames(doorway: Doorway, format_: str):
    answer = doorway.ask("AnimateDiffPipeline", output={"format": format_})
    frames = answer["num_frames"]
    if format_ in ("png", "jpeg"):
        assert len(answer["images"]) == frames
        assert {pixels(answer, index).shape for index in range(frames)} == {(64, 64, 3)}
        return
    video = decode_video(base64.b64decode(answer["video"]))
    assert len(video.frames) == frames
    assert {(frame.width, frame.height) for frame in video.frames} == {(64, 64)}

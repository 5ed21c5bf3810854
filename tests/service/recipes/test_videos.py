"""Videos in recipes: a step makes one, takes one, or makes one frame by frame; kinds are checked before that."""

import json
from pathlib import Path

import pytest

from tests.answers import files_of
from tests.asking import perform
from tests.conftest import PROJECT
from tests.fakes.engine import make_context
from tests.fakes.web_worker import WebGateway, WebWorker
from tests.service.recipes.by_hand import decoded, done_by_hand, frames_of, moving
from worker.app.build import build_worker
from worker.app.settings import Settings
from worker.catalog.recipes.file import read_recipe
from worker.catalog.recipes.recipe import RecipeError
from worker.core.errors import InvalidRequest, ParameterOutOfRange, QuotaExceeded, UnsupportedModel
from worker.core.job import Batch
from worker.core.model import ModelFiles
from worker.service.local.provisioning import Provisioner
from worker.service.recipes.kinds import fault_of_kinds

# A video of 9 frames at 64 x 64, and each of its frames once more.
CLIP = """\
task: text-to-video
inputs:
  prompt: {type: text}
steps:
  clip:
    model: video
    prompt: ${inputs.prompt}
    width: 64
    height: 64
    num_inference_steps: 5
  finer:
    model: tiny
    prompt: ${inputs.prompt}, finer
    image: ${steps.clip.frames}
    strength: 0.4
"""
FROM_VIDEO = """\
inputs:
  video: {type: video}
steps:
  again:
    model: tiny
    prompt: an apple
    image: ${inputs.video.frames}
"""
STILL = """\
inputs:
  prompt: {type: text}
steps:
  first: {model: tiny, prompt: "${inputs.prompt}"}
  again: {model: tiny, prompt: "${inputs.prompt}", image: "${steps.first.image}"}
"""
WORK = 64 * 64 * 5


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Recipes; the shelf's video model is only declared, and its files are never looked for."""

    def provide(self, job, emit):
        return Batch((job,), ModelFiles(root=Path(), total_bytes=0))

    monkeypatch.setattr(Provisioner, "provide", provide)
    (tmp_path / "recipes").mkdir()
    for name, text in {"clip": CLIP, "again": FROM_VIDEO, "still": STILL}.items():
        (tmp_path / f"recipes/{name}.yaml").write_text(text)
    return tmp_path


@pytest.fixture
def context(folder):
    return make_context(folder)


async def test_each_frame_is_a_job_of_the_same_noise_and_a_video_comes_back(context):
    answer = await context.ask(model="clip", prompt="x", seed=5, output={"format": "png"})
    first, *frames = context.engine.ran
    assert (first.call.task, len(frames)) == ("text-to-video", 9)
    assert [job.image for job in frames] == [context.engine.pixels(first, 5 + at) for at in range(9)]
    assert {job.seeds for job in frames} == {(1005,)}
    assert [job.id.rpartition(".")[2] for job in frames] == [str(at) for at in range(9)]
    assert (answer["num_frames"], answer["fps"], len(files_of(answer))) == (9, first.video.fps, 9)
    assert (answer["task"], answer["usage"]["pixel_steps"]) == ("text-to-video", 9 * WORK + 9 * (WORK * 2 // 5))


async def test_a_video_that_is_sent_is_taken_frame_by_frame_at_its_own_pace(context):
    sent = moving(3, 64, fps=5)
    answer = await context.ask(model="again", video=sent, seed=5)
    assert [job.image.data for job in context.engine.ran] == [decoded(frame).tobytes() for frame in frames_of(sent)]
    assert (answer["num_frames"], answer["fps"], answer["task"]) == (3, 5, "video-to-video")
    with pytest.raises(InvalidRequest, match=r"^recipes/again.yaml:7: steps.again: video is") as refused:
        await context.ask(model="again", video="AAAA")
    assert refused.value.field == "video"
    assert (await context.ask(action="plan", model="again"))["pixel_steps"] == 256 * 256 * 5  # of one frame
    assert len(context.engine.ran) == 3


async def test_a_video_goes_whole_into_a_model_that_takes_one(folder):
    text = CLIP.replace("model: tiny", "model: video").replace(
        "image: ${steps.clip.frames}", "video: ${steps.clip.video}"
    )
    (folder / "recipes/clip.yaml").write_text(text)
    context = make_context(folder)
    answer = await context.ask(model="clip", prompt="x", seed=5)
    first, second = context.engine.ran
    assert second.call.task == "video-to-video"
    (media,) = second.media
    assert list(media.images) == [context.engine.pixels(first, 5 + at) for at in range(9)]
    assert (answer["fps"], second.video.fps) == (first.video.fps, first.video.fps)


async def test_parts_of_each_frame_can_be_drawn_again(folder):
    text = FROM_VIDEO.replace("model: tiny", "model: any").replace(
        "    image:", "    detail: {regions: [[0.25, 0.25, 0.75, 0.75]]}\n    width: 64\n    height: 64\n    image:"
    )
    (folder / "recipes/again.yaml").write_text(text)
    context = make_context(folder)
    answer = await context.ask(model="again", video=moving(2, 64), seed=5, output={"format": "png"})
    assert [job.call.task for job in context.engine.ran] == ["inpainting"] * 2
    before, after = frames_of(moving(2, 64)), files_of(answer)
    for old, new in zip(before, after, strict=True):
        assert decoded(new).getpixel((32, 32)) == (5, 0, 128)
        assert decoded(new).getpixel((0, 0)) == decoded(old).getpixel((0, 0))


async def test_all_frames_are_paid_before_the_first(folder):
    context = make_context(folder, quota_pixel_steps_per_day=18 * WORK)
    request = {"model": "clip", "prompt": "x"}
    await perform(context.worker, request, "one", caller="ann")
    with pytest.raises(QuotaExceeded):
        await perform(context.worker, {"model": "still", "prompt": "x"}, "two", caller="ann")
    assert len(context.engine.ran) == 10


@pytest.mark.parametrize(("model", "format_", "fit"), [("still", "mp4", "png, jpeg, webp"), ("clip", "none", "")])
async def test_a_format_that_is_not_for_what_it_makes_is_refused_before_the_first_step(context, model, format_, fit):
    with pytest.raises(ParameterOutOfRange, match=f"output.format must be one of {fit}") as refused:
        await context.ask(model=model, prompt="x", output={"format": format_})
    assert (refused.value.field, context.builder.built) == ("output", 0)


async def test_more_pixels_than_a_video_may_have_are_refused_before_the_first_step(folder, monkeypatch):
    monkeypatch.setattr("worker.service.recipes.foreseeing.MOST_PIXELS", 9 * 64 * 64 - 1)
    context = make_context(folder)
    with pytest.raises(ParameterOutOfRange, match=r"steps.clip: 9 frames of 64 x 64 are 36,864 pixels, and a video"):
        await context.ask(model="clip", prompt="x")
    assert context.builder.built == 0


# What is written in place of what; line and beginning of the refusal.
WRONG = {
    "a video as an image": ("clip.frames", "clip.image", 14, "steps.finer.image: clip makes a video; write ${steps."),
    "an image as a video": ("model: video", "model: tiny", 14, "steps.finer.image: clip makes images and no video"),
    "a video in an image's place": ("clip.frames", "clip.video", 14, "steps.finer.image takes no video, and ${steps"),
    "frames elsewhere": ("image: $", "mask_image: $", 14, "steps.finer.mask_image takes no frames, and ${steps.cl"),
    "frames in a text": ("${inputs.prompt}, f", "${steps.clip.frames}, f", 13, "steps.finer.prompt takes no frames"),
    "several images of each": ("strength: 0.4", "n: 2", 15, "steps.finer: n cannot be said of frames that each"),
    "the task of images": ("task: text-to-video\n", "", 1, "finer makes a video, and the task is text-to-image; wri"),
    "a video among others": (CLIP[-9:], CLIP[-9:] + "outputs: [clip, finer]\n", 16, "outputs: clip makes a video,"),
    "frames of no video": ("steps.clip.frames", "inputs.prompt.frames", 14, "steps.finer.image: inputs.prompt is no"),
    "a video that is called a prompt": ("{type: text}", "{type: video}", 3, "inputs.prompt must be of type text"),
}


@pytest.mark.quick_rows(5)
@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_one_is_refused_with_file_and_line(folder, fault):
    old, new, line, beginning = WRONG[fault]
    assert old in CLIP
    (folder / "recipes/clip.yaml").write_text(CLIP.replace(old, new, 1))
    with pytest.raises(RecipeError) as refused:
        make_context(folder)
    assert str(refused.value).startswith(f"recipes/clip.yaml:{line}: {beginning}")


def test_frames_of_a_video_that_need_not_be_sent_are_none(folder):
    (folder / "recipes/again.yaml").write_text(FROM_VIDEO.replace("{type: video}", "{type: video, optional: true}"))
    with pytest.raises(RecipeError, match=r":7: steps.again.image: without inputs.video there are no frames; let it"):
        make_context(folder)


def test_a_video_of_each_frame_is_none(folder):
    recipe = read_recipe(folder / "recipes/clip.yaml")
    assert fault_of_kinds(recipe, {"clip": True, "finer": False}) is None
    place, sentence = fault_of_kinds(recipe, {"clip": True, "finer": True})
    assert place == ("steps", "finer", "image")
    assert sentence == "steps.finer would make a video of each frame; give it one image."


async def test_kinds_of_a_model_that_is_known_only_later_are_refused_before_the_first_step(folder, monkeypatch):
    (folder / "recipes/clip.yaml").write_text(CLIP.replace("clip.frames", "clip.image"))
    with monkeypatch.context() as unknown:
        unknown.setattr("worker.service.accepting.acceptance.Acceptor.is_at_hand", lambda self, request: False)
        context = make_context(folder)
    with pytest.raises(
        UnsupportedModel, match=r"^recipes/clip.yaml:14: steps.finer.image: clip makes a vid"
    ) as refused:
        await context.ask(model="clip", prompt="x")
    assert (refused.value.field, context.builder.built) == ("model", 0)


@pytest.mark.slow
def test_through_a_gateway_the_frames_are_the_same(folder, tmp_path):
    served = tmp_path / "served"
    served.mkdir()
    with (
        WebWorker(served) as worker,
        WebGateway(tmp_path, {"one": {"url": worker.origin}}, recipes=folder / "recipes") as gateway,
    ):
        sent = {"model": "clip", "prompt": "x", "seed": 5, "output": {"format": "png"}}
        answer = gateway.http.post("/run", json=sent).json()
        first, *frames = worker.context.engine.ran
        assert [job.image for job in frames] == [worker.context.engine.pixels(first, 5 + at) for at in range(9)]
        assert len(files_of(answer)) == 9


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
async def test_an_image_becomes_a_video_whose_frames_are_drawn_again_as_by_hand(tmp_path):
    from tests.zoo.families.video_ltx import RECIPES  # diffusers is imported where it is needed
    from tests.zoo.plain import save

    save(next(each for each in RECIPES if each.pipeline == "LTXImageToVideoPipeline"), tmp_path / "ltx")
    models = {
        "demo": {"source": f"file:{PROJECT}/models/demo", "defaults": {"num_inference_steps": 3}},
        "ltx": {"source": "file:ltx", "defaults": {"num_inference_steps": 2}},
    }
    (tmp_path / "models.yaml").write_text(json.dumps({"models": models}))
    (tmp_path / "recipes").mkdir()
    path = tmp_path / "recipes/moved.yaml"
    path.write_text(MOVED)
    settings = {"models_yaml": tmp_path / "models.yaml", "default_model": "demo", "volume_dir": tmp_path / "volume"}
    settings["allowed_model_dirs"] = (tmp_path, PROJECT)
    worker = build_worker(Settings(**settings, device="cpu", OFFLINE=True))
    sent = {"prompt": "a red apple", "seed": 4, "output": {"format": "png"}}
    answer = await perform(worker, {"model": "moved", **sent}, "moved")
    by_hand = await done_by_hand(worker, path, sent)
    assert [decoded(file).tobytes() for file in files_of(answer)] == [decoded(file).tobytes() for file in by_hand]
    assert len(by_hand) == 9
    assert [step["task"] for step in answer["steps"]] == ["text-to-image", "image-to-video", "image-to-image"]


MOVED = """\
task: text-to-video
inputs:
  prompt: {type: text}
steps:
  start: {model: demo, prompt: "${inputs.prompt}"}
  clip: {model: ltx, prompt: it turns, image: "${steps.start.image}", num_frames: 9}
  again: {model: demo, prompt: "${inputs.prompt}", image: "${steps.clip.frames}", strength: 0.7}
"""

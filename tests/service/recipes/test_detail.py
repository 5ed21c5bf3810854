"""A step that draws parts of an image again: each a job of its own, under a mask, put back with a seam."""

import sys

import numpy as np
import pytest

from tests.asking import perform
from tests.fakes.engine import make_context
from tests.fakes.web_worker import WebGateway, WebWorker
from tests.images import encoded, gradient, pixels
from worker.catalog.recipes.recipe import RecipeError
from worker.core.errors import InvalidOutput, InvalidRequest, ParameterOutOfRange, QuotaExceeded
from worker.core.image import Raster
from worker.media.regions import Box, Cut, box_of

PARTS = """\
inputs:
  image: {type: image}
  regions: {type: regions, optional: true}
steps:
  parts:
    model: any
    prompt: a face
    image: ${inputs.image}
    detail: {regions: "${inputs.regions}", find: faces, at_most: 3}
    width: 64
    height: 64
    num_inference_steps: 5
"""
WORK = 64 * 64 * 5
REGIONS = [[0.1, 0.1, 0.3, 0.3], [0.6, 0.5, 0.8, 0.9]]


class Finder:
    """Finds what it is told to."""

    found: tuple[Box, ...] = ()

    def __init__(self, find):
        assert find == "faces"

    def boxes(self, image, at_most):
        return [*self.found][:at_most]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for module in ("checking", "detailing"):
        monkeypatch.setattr(f"worker.service.recipes.{module}.Detector", Finder)
    monkeypatch.setattr(Finder, "found", ())
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/parts.yaml").write_text(PARTS)
    return tmp_path


@pytest.fixture
def context(folder):
    return make_context(folder)


def sent(**fields):
    return {"model": "parts", "image": encoded(gradient(100, 100)), "seed": 7, **fields}


async def test_each_region_is_a_job_with_a_mask_and_a_seed_of_its_own(context):
    answer = await context.ask(**sent(regions=REGIONS))
    first, second = context.engine.ran
    assert [(job.id.rpartition(".")[2], job.seeds) for job in (first, second)] == [("0", (7,)), ("1", (8,))]
    assert {(job.image.width, job.image.height, job.call.task) for job in (first, second)} == {(64, 64, "inpainting")}
    mask = np.frombuffer(first.mask.data, np.uint8).reshape(64, 64)
    # 20 pixels with 2 of seam on each side, of 30 that are seen
    assert (mask[8:55, 8:55] == 255).all()
    assert not mask[:6].any()
    after, before = pixels(answer), gradient(100, 100)
    assert (after[10:30, 10:30] == (7, 0, 128)).all()
    assert (after[50:90, 60:80] == (8, 0, 128)).all()
    untouched = np.ones((100, 100), bool)
    untouched[8:32, 8:32] = untouched[46:94, 56:84] = False
    assert (after[untouched] == before[untouched]).all()
    (step,) = answer["steps"]
    assert step["parameters"]["regions"] == REGIONS
    assert (answer["usage"]["images"], answer["seed"]) == (1, 7)
    assert answer["usage"]["pixel_steps"] == 2 * WORK


async def test_what_is_found_is_drawn_again_and_what_was_reserved_for_more_is_given_back(folder, monkeypatch):
    context = make_context(folder, quota_pixel_steps_per_day=4 * WORK)
    monkeypatch.setattr(Finder, "found", (Box(10, 10, 40, 40),))
    assert (await perform(context.worker, sent(), "one", caller="ann"))["steps"][0]["parameters"]["regions"]
    await perform(context.worker, sent(), "two", caller="ann")  # 3 of 4 are still to be had
    with pytest.raises(QuotaExceeded, match=f"of which {2 * WORK:,} are left, and this job is {3 * WORK:,}"):
        await perform(context.worker, sent(), "three", caller="ann")
    assert len(context.engine.ran) == 2


async def test_where_nothing_is_found_the_image_comes_back_as_it_was_and_costs_nothing(context):
    answer = await context.ask(**sent())
    assert (pixels(answer) == gradient(100, 100)).all()
    assert answer["warnings"] == ["parts: faces found nothing; the image is as it was."]
    assert (answer["usage"]["pixel_steps"], context.engine.ran) == (0, [])


async def test_a_part_that_is_larger_than_it_is_drawn_loses_detail_which_is_said(context):
    answer = await context.ask(**sent(regions=[[0, 0, 1, 1]]))
    assert "Part 1 is 100 x 100 pixels with its padding, and was drawn at 64 x 64" in answer["warnings"][0]


async def test_a_part_that_fails_fails_the_step_by_name(context):
    context.engine.spoiled["a face"] = InvalidOutput("It is black.")
    with pytest.raises(InvalidOutput, match=r"^recipes/parts.yaml:6: steps.parts: It is black."):
        await context.ask(**sent(regions=REGIONS))


@pytest.mark.parametrize(
    ("regions", "said"),
    [
        ([[0.3, 0.1, 0.2, 0.3]], "detail has a region without an inside"),
        ([[0.3, 0.1, 1.2, 0.3]], "regions must be a list of 1 to 16 items, each a list of 4 items, each a number betw"),
        ([[0.3, 0.1, 0.5]], "regions must be a list"),
        ([[0, 0, 1, 1]] * 17, "regions must be a list"),
    ],
)
async def test_regions_that_are_none_are_refused_before_anything_is_run(context, regions, said):
    with pytest.raises(ParameterOutOfRange, match=said) as refused:
        await context.ask(**sent(regions=regions))
    assert (refused.value.field, context.builder.built) == ("regions", 0)


async def test_an_image_that_is_none_is_refused_by_name(context):
    with pytest.raises(InvalidRequest, match=r"^recipes/parts.yaml:8: steps.parts: image is not") as refused:
        await context.ask(**sent(image="AAAA"))
    assert (refused.value.field, context.builder.built) == ("image", 0)


async def test_its_plan_counts_the_most_parts_that_there_can_be(context):
    plan = await context.ask(action="plan", model="parts")
    assert plan["pixel_steps"] == 3 * WORK


# What is written in place of what; line and beginning of the refusal.
WRONG = {
    "no size": ("    width: 64\n", "", 9, "steps.parts needs width: of each part as it is drawn"),
    "no image": ("    image: ${inputs.image}\n", "", 8, "steps.parts needs image"),
    "no mapping": ('{regions: "${inputs.regions}", find: faces, at_most: 3}', "faces", 9, "steps.parts.detail must be"),
    "an unknown key": ("at_most", "atmost", 9, "steps.parts: detail.atmost"),
    "too many": ("at_most: 3", "at_most: 99", 9, "steps.parts: detail.at_most must be"),
    "a wide seam": ("at_most: 3", "feather: 0.5", 9, "steps.parts: detail has a feather wider than its padding"),
    "an unknown detector": ("find: faces", "find: hands", 9, "steps.parts: detail finds faces, or what a detector"),
    "a detector of the caller's": ("find: faces", "find: \"${inputs.image}\"", 9, "steps.parts.detail.find must be"),
    "nothing to find by": (", find: faces, at_most: 3", "", 9, "steps.parts, without inputs.regions: detail needs"),
    "a mask": ("    width: 64", "    mask: ${inputs.image}\n    width: 64", 10, "steps.parts: mask cannot be said of"),
    "several images": ("    width: 64", "    n: 2\n    width: 64", 10, "steps.parts: n cannot be said of parts"),
    "regions as an image": ("image: ${inputs.image}", "image: ${inputs.regions}", 8, "steps.parts.image takes no"),
    "an image as regions": ("s: \"${inputs.regions}", "s: \"${inputs.image}", 9, "steps.parts.detail.regions takes no"),
    "regions in a text": ("a face", "a ${inputs.regions}", 7, "steps.parts.prompt takes no regions, and ${inputs.regi"),
    "a model without masks": ("model: any", "model: tiny", 5, "steps.parts: task inpainting is not one of"),
    "a size that no model has": ("width: 64", "width: 65", 10, "steps.parts: width must be a multiple of 8"),
}  # fmt: skip


@pytest.mark.quick_rows(5)
@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_one_is_refused_with_file_and_line(folder, fault):
    old, new, line, beginning = WRONG[fault]
    assert old in PARTS
    (folder / "recipes/parts.yaml").write_text(PARTS.replace(old, new, 1))
    with pytest.raises(RecipeError) as refused:
        make_context(folder)
    assert str(refused.value).startswith(f"recipes/parts.yaml:{line}: {beginning}")


@pytest.mark.parametrize(
    ("find", "said"),
    [
        ("faces", "finding faces needs scikit-image, which is not installed; install it, name a YuNet by find: file:N"),
        ("file:none.onnx", "there is no detector none.onnx; put the file there, or give regions by hand"),
        ("file:other.xml", "finding by other.xml needs scikit-image"),
        ("file:other.onnx", "other.onnx is no YuNet that OpenCV reads; name another file"),
    ],
)
def test_a_detector_that_cannot_be_used_stops_the_start_with_the_fix(tmp_path, monkeypatch, find, said):
    for name in ("skimage", "skimage.data", "skimage.feature"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "recipes").mkdir()
    for name in ("other.xml", "other.onnx"):
        (tmp_path / f"recipes/{name}").write_text("<xml/>")
    (tmp_path / "recipes/parts.yaml").write_text(PARTS.replace("faces", find))
    with pytest.raises(RecipeError) as refused:
        make_context(tmp_path)
    assert str(refused.value).startswith(f"recipes/parts.yaml:9: steps.parts: {said}")


@pytest.mark.parametrize(
    ("region", "around"),
    [
        ((0.4, 0.4, 0.6, 0.6), (30, 30, 70, 70)),
        ((0, 0, 0.2, 0.2), (0, 0, 40, 40)),
        ((0.9, 0.9, 1, 1), (80, 80, 100, 100)),
    ],
)
def test_a_part_keeps_its_shape_and_stays_within_its_image(region, around):
    image = Raster("RGB", 100, 100, bytes(30_000))
    cut = Cut.of(box_of(region, image), image, (64, 64), padding=0.5, feather=0)
    assert (cut.around.left, cut.around.top, cut.around.right, cut.around.bottom) == around
    wide = Cut.of(box_of(region, image), image, (128, 64), padding=0.5, feather=0).around
    assert wide.width == 2 * wide.height
    part, _ = cut.taken(image, around[2] - around[0], around[3] - around[1])
    assert cut.put_back(part, image) == image


@pytest.mark.slow
def test_through_a_gateway_the_pixels_are_the_same(folder, tmp_path):
    served = tmp_path / "served"
    served.mkdir()
    with (
        WebWorker(served) as worker,
        WebGateway(tmp_path, {"one": {"url": worker.origin}}, recipes=folder / "recipes") as gateway,
    ):
        answer = gateway.http.post("/run", json=sent(regions=REGIONS)).json()
        assert [job.seeds for job in worker.context.engine.ran] == [(7,), (8,)]
        after = pixels(answer)
        assert (after[10:30, 10:30] == (7, 0, 128)).all()
        assert (after[:8] == gradient(100, 100)[:8]).all()

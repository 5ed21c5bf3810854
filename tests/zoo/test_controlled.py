"""Every class that draws with a control, reached by `controlnets` of a model without: diffusers' own numbers."""

import itertools
import logging

import numpy as np
import pytest

from tests.asking import on_one_loop, perform
from tests.controls import ROW, apart
from tests.images import assert_differs, encoded, gradient, pixels
from tests.zoo.plain import quiet
from tests.zoo.served import zoo_worker
from worker.catalog.classes.signatures import call_parameters

# One of each way in which a class takes its controls.
OFTEN = (
    "StableDiffusionControlNetImg2ImgPipeline",
    "StableDiffusionXLControlNetUnionPipeline",
    "FluxControlNetInpaintPipeline",
    "StableDiffusion3ControlNetInpaintingPipeline",
)
_ids = itertools.count()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    quiet()
    logging.getLogger("worker").setLevel(logging.CRITICAL)
    return tmp_path_factory.mktemp("controlled")


@pytest.fixture(scope="module")
def worker(root):
    return zoo_worker(root)


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("pipeline", OFTEN)
def test_a_control_beside_a_model_draws_what_diffusers_draws(pipeline, root, worker):
    _compare(pipeline, root, worker)


@pytest.mark.zoo
@pytest.mark.slow
@pytest.mark.parametrize("pipeline", [name for name in ROW if name not in OFTEN])
def test_all_other_classes_too(pipeline, root, worker):
    _compare(pipeline, root, worker)


def test_every_row_names_classes_that_diffusers_has():
    for row in ROW.values():
        assert call_parameters(row.plain) is not None, row
        assert call_parameters(row.pipeline) is not None, row


def _compare(pipeline, root, worker):
    pair = apart(pipeline, root)
    answer = on_one_loop(perform(worker, pair.request(), f"controlled-{next(_ids)}", lambda progress: None))
    scale = "adapter_conditioning_scale" if pair.row.component == "T2IAdapter" else "controlnet_conditioning_scale"
    expected = pair.drawn_by_diffusers(answer["parameters"], **{scale: 1.0})
    got = pixels(answer)
    # Outside a mask the worker keeps the image that was sent.
    inside = slice(32, None) if answer["task"] == "inpainting" else slice(None)
    assert np.array_equal(got[:, inside], expected[:, inside])
    assert answer["adapters"][0]["model"] == f"file:{pair.control}"


@pytest.mark.zoo
@pytest.mark.slow
@pytest.mark.parametrize("pipeline", [name for name, row in ROW.items() if row.several != "one"])
def test_two_images_are_both_followed(pipeline, root, worker):
    pair = apart(pipeline, root / "two")
    request = pair.request()
    first = request["controlnets"][0]
    second = first | {"image": encoded(255 - gradient(64, 64)[::-1]), "scale": 2.0}
    images = [_drawn(worker, request | {"controlnets": sent}) for sent in ([first], [second], [first, second])]
    for one, other in itertools.combinations(images, 2):
        assert_differs(one, other)


def _drawn(worker, request):
    return pixels(on_one_loop(perform(worker, request, f"controlled-{next(_ids)}", lambda progress: None)))

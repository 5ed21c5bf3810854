"""Our own worker, asked by our own client: RunPod's API with ids that are drawn once, and two more of its doors."""

import asyncio
import io
from collections import Counter

import pytest
from PIL import Image as PillowImage

from image_client import ClientOptions, ImageClient
from image_client.client import request_of
from image_client.errors import AuthenticationFailed, RequestRefused
from tests.contract.test_standalone import start, until_ready
from tests.fakes.web_worker import WebWorker

KEY = "a-key-of-our-own"
DOORS = {"selfhosted": "", "modal": "", "openai": "/v1"}


@pytest.fixture
def served(tmp_path):
    with WebWorker(tmp_path, api_keys=KEY) as worker:
        yield worker


def png(colour, size=(64, 64)):
    file = io.BytesIO()
    PillowImage.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def client_of(name, worker, **options):
    return ImageClient(name, api_token=KEY, base_url=worker.origin + DOORS[name], options=ClientOptions(**options))


@pytest.mark.parametrize("name", DOORS)
async def test_each_door_draws_what_is_asked(served, name):
    async with client_of(name, served) as images:
        image = await images.generate("a red apple", model="tiny", width=64, height=80, seed=5)
    assert image.seed == 5
    assert PillowImage.open(io.BytesIO(image.data)).size == (64, 80)
    (job,) = served.context.engine.ran
    assert (job.prompt, job.seeds) == ("a red apple", (5,))


async def test_images_of_one_request_come_in_order_with_model_and_id(served):
    async with client_of("selfhosted", served) as images:
        request = {"negative_prompt": "fog", "num_inference_steps": 2, "guidance_scale": 3.0, "output_format": "webp"}
        found = await images.send_many(request_of("generate", {"prompt": "a", "n": 3, "seed": 7} | request))
        edited = await images.edit(png("red"), "b", strength=0.5, seed=1)
    assert [image.seed for image in found] == [7, 8, 9]
    assert {(image.media_type, image.model, image.job_id) for image in found} == {
        ("image/webp", "tiny", found[0].job_id)
    }
    assert found[0].raw["status"] == "COMPLETED" and not {"image", "images"} & found[0].raw["output"].keys()
    assert edited.media_type == "image/png"
    assert [job.call.task for job in served.context.engine.ran] == ["text-to-image", "image-to-image"]


@pytest.mark.parametrize("name", ["selfhosted", "modal"])
async def test_one_id_is_drawn_once_whoever_sends_it_again(served, name):
    async with client_of(name, served) as images, client_of(name, served) as others:
        asked = [client.generate("a", model="tiny", request_id="mine") for client in (images, others, images)]
        found = await asyncio.gather(*asked)
    assert len({image.data for image in found}) == 1
    assert len(served.context.engine.ran) == 1


async def test_what_the_worker_refuses_is_refused_with_its_sentence(served):
    async with client_of("selfhosted", served) as images:
        with pytest.raises(RequestRefused, match="width must be a multiple of 8"):
            await images.generate("a", width=1001, height=64)
        with pytest.raises(RequestRefused, match="nowhere"):
            await images.generate("a", model="nowhere")
    assert served.context.engine.ran == []
    async with ImageClient("selfhosted", api_token="wrong", base_url=served.origin) as images:
        with pytest.raises(AuthenticationFailed):
            await images.generate("a")


async def test_a_busy_worker_is_waited_for(tmp_path):
    told = []
    with WebWorker(tmp_path, max_concurrent_jobs=2, max_queued_jobs=1) as worker:
        options = {"on_attempt": told.append, "attempts": 20}
        async with ImageClient("selfhosted", base_url=worker.origin, options=ClientOptions(**options)) as images:
            found = await asyncio.gather(*(images.generate("a", seed=index) for index in range(5)))
    assert [image.seed for image in found] == list(range(5))
    assert Counter(job.seeds[0] for job in worker.context.engine.ran) == Counter(range(5))
    assert {attempt.outcome for attempt in told} >= {"accepted"}


@pytest.mark.slow
async def test_the_model_in_the_box_draws_for_the_client(tmp_path):
    with start(tmp_path) as worker:
        until_ready(worker)
        async with ImageClient("selfhosted", base_url=worker.origin) as images:
            fields = {"seed": 7, "num_inference_steps": 4}
            asked = [images.generate("a green frog", request_id="frog", **fields) for _ in range(2)]
            one, other = await asyncio.gather(*asked)
            changed = await images.edit(one.data, "a red apple", **fields)
            redrawn = await images.inpaint(one.data, png("white", (256, 256)), "a red apple", **fields)
            larger = await images.upscale(png("red"), model="demo-upscaler")
    assert (one.data, one.seed, one.model) == (other.data, 7, "demo")
    assert redrawn.pil().size == (256, 256) and redrawn.data != one.data
    assert larger.pil().size > (64, 64)
    assert one.pil().size == (256, 256)
    assert changed.data != one.data

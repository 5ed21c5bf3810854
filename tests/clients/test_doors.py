"""Other people's clients at the doors of our own server, which draws with the model in the box."""

import asyncio
import base64
import io
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import litellm
import pytest
import replicate
import replicate.pagination
import webuiapi
from langchain_community.utilities.dalle_image_generator import DallEAPIWrapper
from PIL import Image
from replicate.exceptions import ModelError, ReplicateError
from replicate.webhook import Webhooks, WebhookSigningSecret

from tests.clients.ours import KEY, SECRET, our_server, webhooks

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # litellm fetches its table of prices otherwise
os.environ["REPLICATE_POLL_INTERVAL"] = "0.1"
SMALL = {"prompt": "a red apple", "seed": 7, "num_inference_steps": 3, "width": 64, "height": 64}


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with our_server(tmp_path_factory.mktemp("ours")) as address:
        yield address


@pytest.fixture
def client(ours: str) -> replicate.Client:
    return replicate.Client(api_token=KEY, base_url=ours)


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


class TestReplicate:
    def test_run(self, client: replicate.Client) -> None:
        files = client.run("local/demo", input=SMALL | {"num_outputs": 2, "output_format": "webp"})
        images = [opened(file.read()) for file in files]
        assert [(image.size, image.format) for image in images] == [((64, 64), "WEBP")] * 2
        version = client.models.get("local/demo").latest_version
        assert version is not None
        again = client.run(f"local/demo:{version.id}", input=SMALL)
        assert opened(again[0].read()).size == (64, 64)

    def test_async_run(self, ours: str) -> None:
        async def run() -> bytes:
            client = replicate.Client(api_token=KEY, base_url=ours)
            (file,) = await client.async_run("local/demo", input=SMALL)
            return await file.aread()

        assert opened(asyncio.run(run())).size == (64, 64)

    def test_a_prediction_is_waited_for(self, client: replicate.Client) -> None:
        prediction = client.models.predictions.create(("local", "demo"), SMALL, wait=True)
        assert prediction.status == "succeeded" and prediction.output
        later = client.predictions.create(version="local/demo", input=SMALL)
        later.wait()
        assert later.status == "succeeded" and later.progress is not None and later.progress.percentage == 1.0
        assert later.output == prediction.output  # the same seed

    def test_predictions_are_listed_page_by_page(self, client: replicate.Client) -> None:
        ids = [client.models.predictions.create(("local", "demo"), SMALL, wait=True).id for _ in range(2)]
        found = [item for page in replicate.pagination.paginate(client.predictions.list) for item in page]
        assert [item.id for item in found[:2]] == ids[::-1] and found[0].status == "succeeded"
        assert client.accounts.current().type == "user"
        assert [item.sku for item in client.hardware.list()] == ["cpu"]
        assert client.files.list() == []
        assert [each.id for each in client.models.get("local/demo").versions.list()] == [found[0].version]

    def test_a_prediction_is_cancelled(self, client: replicate.Client) -> None:
        # While this draws, the one to be cancelled waits.
        first = client.models.predictions.create(
            ("local", "demo"), SMALL | {"num_inference_steps": 100, "num_outputs": 4}
        )
        prediction = client.models.predictions.create(("local", "demo"), SMALL | {"num_inference_steps": 100})
        prediction.cancel()
        assert prediction.status == "canceled"
        first.cancel()
        prediction.wait()
        assert prediction.output is None

    def test_a_webhook_is_verified_by_its_own_code(self, client: replicate.Client) -> None:
        with webhooks() as (url, found):
            client.models.predictions.create(
                ("local", "demo"), SMALL, webhook=url, webhook_events_filter=["start", "completed"]
            )
            ends = time.monotonic() + 60
            while len(found) < 2 and time.monotonic() < ends:
                time.sleep(0.05)
            time.sleep(0.2)
        secret = WebhookSigningSecret(key=SECRET)
        for headers, body in found:
            Webhooks.validate(headers=headers, body=body, secret=secret, tolerance=60)
            with pytest.raises(ValueError, match="signature is invalid"):
                Webhooks.validate(headers=headers, body=body + " ", secret=secret)
        assert {json.loads(body)["status"] for _, body in found} == {"starting", "succeeded"}

    def test_a_file_is_uploaded_and_drawn_over(self, client: replicate.Client, tmp_path: Path) -> None:
        path = tmp_path / "blue.png"
        Image.new("RGB", (64, 64), (0, 0, 255)).save(path)
        with path.open("rb") as file:
            (drawn,) = client.run("local/demo", input=SMALL | {"image": file, "prompt_strength": 0.34})
        red, _, blue = opened(drawn.read()).getpixel((2, 2))  # white where nothing but words is drawn from
        assert red < 180 and blue > 90

    def test_a_stream(self, client: replicate.Client) -> None:
        events = [*client.stream("local/demo", input=SMALL)]
        assert events[-1].event.value == "done"
        (output,) = [event.data for event in events if event.event.value == "output"]
        assert opened(output.read()).size == (64, 64)

    def test_what_cannot_be_is_an_error(self, client: replicate.Client, ours: str) -> None:
        with pytest.raises(ModelError, match="num_inference_steps must be"):
            client.run("local/demo", input=SMALL | {"num_inference_steps": 1_000})
        with pytest.raises(ReplicateError) as failure:
            replicate.Client(api_token="nobody's key at all", base_url=ours).run("local/demo", input=SMALL)
        assert failure.value.status == 401 and failure.value.detail


class TestWebUiApi:
    """webuiapi, a client of AUTOMATIC1111's API."""

    @pytest.fixture
    def web_ui(self, ours: str) -> webuiapi.WebUIApi:
        api = webuiapi.WebUIApi(baseurl=f"{ours}/sdapi/v1", sampler="Euler a", steps=3)
        api.set_auth("anybody", KEY)
        return api

    def test_words_to_images(self, web_ui: webuiapi.WebUIApi) -> None:
        result = web_ui.txt2img(prompt="a red apple", seed=7, width=64, height=64, batch_size=2, cfg_scale=3)
        assert [image.size for image in result.images] == [(64, 64)] * 2
        assert result.info["all_seeds"] == [7, 8] and result.parameters["steps"] == 3
        assert "a red apple" in web_ui.png_info(result.image).info

    def test_an_image_and_a_mask(self, web_ui: webuiapi.WebUIApi) -> None:
        blue, mask = Image.new("RGB", (64, 64), (0, 0, 255)), Image.new("L", (64, 64), 0)
        mask.paste(255, (0, 0, 32, 64))
        options = {"mask_blur": 0, "inpainting_fill": 1, "inpaint_full_res": False, "denoising_strength": 0.9}
        result = web_ui.img2img(
            [blue], mask_image=mask, prompt="a red apple", width=64, height=64, cfg_scale=3, **options
        )
        assert result.image.getpixel((60, 32))[2] > 250  # what the mask keeps

    def test_hires_fix_and_extras(self, web_ui: webuiapi.WebUIApi) -> None:
        result = web_ui.txt2img(prompt="a red apple", width=64, height=64, enable_hr=True, hr_scale=2, cfg_scale=3,
                                hr_upscaler="demo-upscaler", denoising_strength=0.4)  # fmt: skip
        assert result.image.size == (128, 128)
        larger = web_ui.extra_single_image(result.image, upscaler_1="demo-upscaler", upscaling_resize=2)
        assert larger.image.size == (256, 256)

    def test_lists_settings_and_progress(self, web_ui: webuiapi.WebUIApi) -> None:
        assert "demo" in web_ui.util_get_model_names()
        assert "DPM++ 2M" in web_ui.util_get_sampler_names() and "karras" in web_ui.util_get_scheduler_names()
        web_ui.set_options({"sd_model_checkpoint": "demo"})
        assert web_ui.util_get_current_model() == "demo"
        assert web_ui.get_progress()["progress"] == 0.0
        assert [entry["name"] for entry in web_ui.get_upscalers()] == ["demo-upscaler"]
        web_ui.interrupt()

    def test_what_is_not_served_is_named(self, web_ui: webuiapi.WebUIApi) -> None:
        with pytest.raises(RuntimeError, match="restore_faces"):
            web_ui.txt2img(prompt="x", restore_faces=True)


def test_langchain(ours: str) -> None:
    """LangChain's tool for OpenAI's images, which answers with an address."""
    tool = DallEAPIWrapper(api_key=KEY, base_url=f"{ours}/v1", size="64x64")  # dall-e-2
    address = tool.run("a red apple")
    assert opened(httpx.get(address).content).size == (64, 64)


def test_litellm(ours: str) -> None:
    answer = litellm.image_generation(
        prompt="a red apple", model="openai/demo", api_base=f"{ours}/v1", api_key=KEY, size="64x64"
    )
    assert opened(base64.b64decode(answer.data[0].b64_json)).size == (64, 64)

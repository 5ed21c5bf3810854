"""Each provider's translator against a server that speaks its API: what is sent, what comes back, what is refused."""

import asyncio
import base64
import io

import aiohttp
import pytest
from PIL import Image as PillowImage

from image_client import ClientOptions, ImageClient, ImageRequest
from image_client.drawing import drawn, size_of_png
from image_client.errors import (
    AuthenticationFailed,
    ContentFiltered,
    ContentRefused,
    GenerationFailed,
    NotFinished,
    PaymentRequired,
    RequestRefused,
    ResultLost,
    Unsupported,
)
from image_client.providers.table import PROVIDERS
from tests.fakes.runpod_platform import RunPodPlatform
from tests.image_client import fake_providers as fakes

SERVERS = {
    "replicate": fakes.Replicate,
    "stability": fakes.Stability,
    "openai": fakes.OpenAI,
    "huggingface": fakes.HuggingFace,
    "fal": fakes.Fal,
}
QUICK = ClientOptions(attempts=1)
PHOTO = drawn("a photo", 64, 64, 1)


def client_of(name, server, **arguments):
    base = server.origin + ("/v1" if name == "openai" else "")
    return ImageClient(name, api_token=fakes.TOKEN, base_url=base, **{"options": QUICK} | arguments)


@pytest.fixture(params=SERVERS)
def provider(request):
    with SERVERS[request.param]() as server:
        yield request.param, server


async def test_an_image_comes_back_with_its_lineage(provider):
    name, server = provider
    async with client_of(name, server) as images:
        image = await images.generate("a red apple", seed=7)
    assert image.data == drawn("a red apple", 64, 64, 7)
    assert (image.media_type, image.provider, image.seed) == ("image/png", name, 7)
    assert image.model == PROVIDERS[name].default_model
    assert len(image.request_id) == 32 and image.seconds > 0 and image.adapted == ()
    assert len(server.jobs) == 1


async def test_the_token_goes_to_the_provider_and_to_no_link(provider):
    name, server = provider
    async with client_of(name, server) as images:
        await images.generate("a red apple")
    told = {seen.path.startswith("/files/"): seen.headers.get("authorization") for seen in server.requests}
    assert told[False] == f"{server.scheme} {fakes.TOKEN}"
    assert told.get(True) is None


@pytest.mark.quick_rows(6)
@pytest.mark.parametrize(
    ("status", "kind"), [(401, AuthenticationFailed), (402, PaymentRequired), (422, RequestRefused)]
)
async def test_a_refusal_is_one_error_with_the_providers_words(provider, status, kind):
    name, server = provider
    server.failures.append(status)
    async with client_of(name, server) as images:
        with pytest.raises(kind, match="as the test wants") as failure:
            await images.generate("a red apple", request_id="mine")
    assert (failure.value.provider, failure.value.request_id, failure.value.status) == (name, "mine", status)
    assert server.jobs == {}


async def test_a_wrong_token_is_told():
    with fakes.Replicate() as server:
        async with ImageClient("replicate", api_token="wrong", base_url=server.origin) as images:
            with pytest.raises(AuthenticationFailed, match="Unauthenticated"):
                await images.generate("a red apple")


async def test_an_edit_starts_from_the_image_that_is_sent():
    models = {"replicate": "black-forest-labs/flux-dev", "fal": "fal-ai/flux/dev/image-to-image"}
    for name, kind in SERVERS.items():
        with kind() as server:
            async with client_of(name, server, model=models.get(name)) as images:
                image = await images.edit(PHOTO, "made of glass", seed=3, strength=0.5)
            assert size_of_png(image.data) == (64, 64)
            assert b"iVBORw0KGgo" in server.requests[0].body or PHOTO in server.requests[0].body, name


async def test_what_replicate_is_sent():
    with fakes.Replicate() as server:
        async with client_of("replicate", server) as images:
            request = ImageRequest(prompt="a", width=1344, height=768, num_inference_steps=4, n=2, output_format="jpeg")
            found = await images.send_many(request.model_copy(update={"seed": 5}), request_id="r")
            assert [image.seed for image in found] == [5, 6]
            assert [image.data for image in found] == [drawn("a", 64, 64, 5), drawn("a", 64, 64, 6)]
        fields = {"aspect_ratio": "16:9", "num_outputs": 2, "num_inference_steps": 4, "output_format": "jpg"}
        assert server.asked("POST", "flux-schnell") == [{"input": {"prompt": "a", "seed": 5} | fields}]
        async with client_of("replicate", server, model="someone/something:abc") as images:
            image = await images.generate("b", seed=5, width=640, height=480, extra={"go_fast": True})
        sent = {"prompt": "b", "seed": 5, "width": 640, "height": 480, "go_fast": True}
        assert server.asked("POST", "/v1/predictions")[-1] == {"version": "abc", "input": sent}
        assert (image.version, image.model) == ("abc", "someone/something")


async def test_what_stability_is_sent():
    with fakes.Stability() as server:
        async with client_of("stability", server, model="core") as images:
            await images.generate("a", width=1536, height=640, seed=4294967294)
            await images.upscale(PHOTO)
            await images.inpaint(PHOTO, PHOTO, "b")
    first, second, third = server.jobs.values()
    assert (first["service"], first["aspect_ratio"], first["seed"]) == ("generate/core", "21:9", "4294967294")
    assert (second["service"], set(second)) == ("upscale/fast", {"service", "image"})
    assert third["service"] == "edit/inpaint" and third["mask"] == PHOTO


async def test_stabilitys_moderation_is_free_before_and_charged_after():
    with fakes.Stability() as server:
        async with client_of("stability", server) as images:
            with pytest.raises(ContentRefused):
                await images.generate("moderated")
            with pytest.raises(ContentFiltered):
                await images.generate("filtered")


async def test_openais_mask_is_transparent_where_ours_is_white():
    mask = PillowImage.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    file = io.BytesIO()
    mask.save(file, "PNG")
    with fakes.OpenAI() as server:
        async with client_of("openai", server, model="links") as images:
            image = await images.inpaint(PHOTO, file.getvalue(), "a hat", seed=2, negative_prompt="fog")
    (sent,) = server.jobs.values()
    turned = PillowImage.open(io.BytesIO(sent["mask"]))
    assert (turned.getpixel((5, 5))[3], turned.getpixel((60, 5))[3]) == (0, 255)
    assert (sent["negative_prompt"], sent["seed"]) == ("fog", "2")
    assert image.data == drawn("a hat", 64, 64, 2)
    assert image.job_id == "o1"


async def test_what_hugging_face_is_sent():
    with fakes.HuggingFace() as server:
        async with client_of("huggingface", server) as images:
            await images.generate("a", width=128, height=64, seed=1)
            image = await images.edit(PHOTO, "b", width=96, height=64)
    first, second = server.jobs.values()
    assert first == {"inputs": "a", "parameters": {"width": 128, "height": 64, "seed": 1}}
    assert second["parameters"]["target_size"] == {"width": 96, "height": 64}
    assert size_of_png(image.data) == (96, 64)
    assert server.requests[0].path == "/models/black-forest-labs/FLUX.1-schnell"


async def test_a_job_that_fails_says_so_and_is_not_sent_again():
    with fakes.Fal() as server, fakes.Replicate() as other:
        async with client_of("fal", server, options=ClientOptions()) as images:
            with pytest.raises(GenerationFailed, match="the model failed") as failure:
                await images.generate("fails")
        assert failure.value.job.job_id == "f1" and len(server.jobs) == 1
        async with client_of("replicate", other, options=ClientOptions()) as images:
            with pytest.raises(ContentFiltered, match="NSFW"):
                await images.generate("nsfw")
        assert len(other.jobs) == 1


async def test_a_job_is_told_as_it_is_taken_and_can_be_collected_by_another_client():
    taken = []
    with fakes.Replicate() as server:
        options = ClientOptions(deadline=0.2, on_accepted=taken.append)  # the first look comes after that
        async with client_of("replicate", server, options=options) as images:
            with pytest.raises(NotFinished) as failure:
                await images.generate("a red apple", seed=7)
        assert failure.value.job == taken[0]
        assert fakes.TOKEN not in taken[0].model_dump_json()
        async with client_of("replicate", server, options=ClientOptions()) as images:
            (image,) = await images.collect(type(taken[0]).model_validate_json(taken[0].model_dump_json()))
        assert image.data == drawn("a red apple", 64, 64, 7) and image.seed == 7
        assert len(server.jobs) == 1


async def test_a_token_is_not_sent_where_a_written_down_job_points():
    with fakes.Replicate() as server, fakes.Replicate() as stranger:
        taken = []
        async with client_of("replicate", server, options=ClientOptions(on_accepted=taken.append)) as images:
            await images.generate("a")
            with pytest.raises(NotFinished.__mro__[2], match="poll_url"):
                await images.collect(taken[0].model_copy(update={"poll_url": f"{stranger.origin}/v1/predictions/p1"}))
        assert stranger.requests == []


async def test_a_job_that_is_forgotten_is_lost():
    with fakes.Replicate() as server:
        taken = []
        async with client_of("replicate", server, options=ClientOptions(on_accepted=taken.append)) as images:
            await images.generate("a")
            server.jobs.clear()
            with pytest.raises(ResultLost, match="no longer knows the job"):
                await images.collect(taken[0])


async def play_worker(platform, answer):
    """Take one job from RunPod's platform and finish it, as a worker does."""
    base, headers = f"{platform.url}/ep", {"Authorization": platform.api_key}
    async with aiohttp.ClientSession(headers=headers) as session:
        async with session.get(f"{base}/job-take/pod") as taken:
            job = await taken.json()
        async with session.post(f"{base}/job-done/pod/{job['id']}", json=answer) as done:
            assert done.status == 200
    return job


async def test_an_endpoint_of_runpod_draws_and_fails():
    output = {"images": [base64.b64encode(PHOTO).decode()], "seeds": [9], "model": "demo", "revision": "r1"}
    output["usage"] = {"cost_usd": 0.0012}
    with RunPodPlatform() as platform:
        arguments = {"api_token": platform.api_key, "base_url": f"{platform.url}/ep"}
        async with ImageClient("runpod", **arguments, options=QUICK) as images:
            job, image = await asyncio.gather(
                play_worker(platform, {"output": output}), images.edit(PHOTO, "a", seed=9, guidance_scale=2)
            )
            fields = {"prompt": "a", "seed": 9, "guidance_scale": 2, "image": base64.b64encode(PHOTO).decode()}
            assert job["input"] == fields
            assert (image.data, image.seed, image.model, image.version) == (PHOTO, 9, "demo", "r1")
            assert str(image.cost) == "0.0012" and image.job_id == job["id"]
            for code, kind in (("model_not_found", RequestRefused), ("gpu_oom", GenerationFailed)):
                failed = {"error": "No.", "output": {"code": code}}
                with pytest.raises(kind, match="No"):
                    await asyncio.gather(play_worker(platform, failed), images.generate("b"))
        with pytest.raises(AuthenticationFailed, match="RUNPOD_API_KEY"):
            ImageClient("runpod", base_url="abc123")


async def test_strict_refuses_before_the_call_and_nearest_adapts_and_says_how():
    asked = ImageRequest(prompt="a", width=1000, height=560, negative_prompt="fog", num_inference_steps=20)
    with fakes.Replicate() as server:
        async with client_of("replicate", server) as images:
            for field in ("negative_prompt", "num_inference_steps", "width"):
                with pytest.raises(Unsupported) as failure:
                    await images.send(asked)
                assert failure.value.field == field
                asked = asked.model_copy(update={field: None, "height": None} if field == "width" else {field: None})
            with pytest.raises(Unsupported, match="replicate cannot edit"):
                await images.edit(PHOTO, "a")
        assert server.requests == []
        options = ClientOptions(fit="nearest")
        async with client_of("replicate", server, options=options) as images:
            image = await images.generate(
                "a", width=1000, height=560, negative_prompt="fog", num_inference_steps=20, seed=1
            )
        assert server.asked("POST", "flux") == [
            {"input": {"prompt": "a", "aspect_ratio": "16:9", "num_inference_steps": 4, "seed": 1}}
        ]
        assert image.adapted == (
            "replicate takes no negative_prompt here: it is left out.",
            "replicate takes num_inference_steps from 1 to 4; 20 was asked for: it is 4.",
            "replicate does not draw 1000x560 (nearest: 1344x768): the image is 1344x768.",
        )

"""The fakes of tests/image_client, asked by the providers' own clients and by litellm; and Cog's own server."""

import asyncio
import base64
import hashlib
import hmac
import os
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import fal_client
import fal_client.client
import httpx
import pytest
from aiohttp import web
from replicate import Client
from replicate.exceptions import ReplicateError
from replicate.webhook import Webhooks, WebhookSigningSecret

from image_client import ClientOptions, ImageClient, verify_webhook
from image_client.drawing import drawn
from image_client.errors import GenerationFailed
from tests.image_client import fake_providers as fakes
from tests.ports import free_port

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # litellm fetches its table of prices otherwise

import litellm

MODEL = "black-forest-labs/flux-schnell"
ROOT = Path(__file__).parents[2]


def replicate_client(server):
    return Client(api_token=fakes.TOKEN, base_url=server.origin)


def test_replicates_own_client_runs_lists_and_polls():
    with fakes.Replicate() as server:
        client = replicate_client(server)
        (link,) = client.run(MODEL, input={"prompt": "a", "seed": 3})
        assert httpx.get(str(link)).content == drawn("a", 64, 64, 3)
        prediction = client.models.predictions.create(MODEL, input={"prompt": "b", "num_outputs": 2})
        assert prediction.status == "starting"
        prediction.wait()
        assert (prediction.status, len(prediction.output)) == ("succeeded", 2)
        listed = client.predictions.list().results
        assert [item.input["prompt"] for item in listed] == ["b", "a"]
        versioned = client.predictions.create(version="abc", input={"prompt": "nsfw"})
        versioned.wait()
        assert versioned.status == "failed" and "NSFW" in versioned.error


def test_replicates_own_client_reads_the_fakes_refusals():
    with fakes.Replicate([402]) as server:
        with pytest.raises(ReplicateError) as failure:
            replicate_client(server).run(MODEL, input={"prompt": "a"})
        assert (failure.value.status, failure.value.detail) == (402, "as the test wants")
        with pytest.raises(ReplicateError) as failure:
            Client(api_token="wrong", base_url=server.origin).run(MODEL, input={"prompt": "a"})
        assert failure.value.status == 401


def test_a_webhook_that_replicates_own_validator_takes_is_one_that_we_take():
    secret, body, now = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", '{"id": "p1"}', str(int(time.time()))
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signature = base64.b64encode(hmac.digest(key, f"msg.{now}.{body}".encode(), hashlib.sha256)).decode()
    headers = {"webhook-id": "msg", "webhook-timestamp": now, "webhook-signature": f"v1,{signature}"}
    Webhooks.validate(headers=headers, body=body, secret=WebhookSigningSecret(key=secret))
    verify_webhook(body.encode(), headers, secret)
    with pytest.raises(Exception, match=r"(?i)signature"):
        Webhooks.validate(headers=headers, body=body + " ", secret=WebhookSigningSecret(key=secret))
    with pytest.raises(ValueError, match="signature"):
        verify_webhook(body.encode() + b" ", headers, secret)


def test_fals_own_client_submits_polls_and_fetches(monkeypatch):
    with fakes.Fal() as server:
        monkeypatch.setattr(fal_client.client, "QUEUE_URL_FORMAT", f"{server.origin}/")
        client = fal_client.SyncClient(key=fakes.TOKEN)
        arguments = {"prompt": "a", "seed": 3, "image_size": {"width": 96, "height": 64}}
        result = client.subscribe("fal-ai/flux/schnell", arguments)
        assert httpx.get(result["images"][0]["url"]).content == drawn("a", 96, 64, 3)
        handle = client.submit("fal-ai/flux/schnell", {"prompt": "fails"})
        with pytest.raises(fal_client.client.FalClientHTTPError, match="the model failed"):
            handle.get()


def test_litellm_asks_stability():
    with fakes.Stability() as server:
        answer = litellm.image_generation(
            "a red apple", model="stability/sd3.5-large", api_key=fakes.TOKEN, api_base=server.origin
        )
        assert base64.b64decode(answer.data[0].b64_json) == drawn("a red apple", 64, 64, 1)
        assert server.jobs["1"]["service"] == "generate/sd3"
        server.failures.append(402)
        with pytest.raises(litellm.exceptions.PaymentRequiredError, match="as the test wants"):
            litellm.image_generation("a", model="stability/sd3.5-large", api_key=fakes.TOKEN, api_base=server.origin)


def test_litellm_asks_openai():
    with fakes.OpenAI() as server:
        answer = litellm.image_generation(
            "a", model="openai/gpt-image-2", n=2, api_key=fakes.TOKEN, api_base=f"{server.origin}/v1"
        )
        assert [base64.b64decode(item.b64_json) for item in answer.data] == [
            drawn("a", 64, 64, seed) for seed in (0, 1)
        ]


@pytest.fixture
def cog(tmp_path):
    """Cog's HTTP server with a model of ours."""
    port = free_port()
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "COG_PREDICT_TYPE_STUB": f"{ROOT}/tests/clients/cog_predictor.py:Predictor",
        "PORT": str(port),
        "HOME": str(tmp_path),
    }
    words = [sys.executable, "-m", "cog.server.http", "--host", "127.0.0.1"]
    process = subprocess.Popen(words, env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL)
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"{url}/health-check").json()["status"] == "READY":
                    break
            except httpx.HTTPError:
                pass
            time.sleep(0.1)
        else:
            raise TimeoutError("Cog does not start.")
        yield url
    finally:
        process.kill()
        process.wait()


class CogCloud(fakes.Replicate):
    """Replicate's addresses in front of a real Cog: what it answers is Cog's, with the cloud's links around it."""

    def __init__(self, cog):
        super().__init__()
        self.cog = cog

    async def create(self, request):
        body = await request.json()
        asked = {"input": body["input"]}
        job = await self._predicted(asked)
        while "At capacity" in str(job.get("error")):  # its slot is free a moment after its answer
            await asyncio.sleep(0.05)
            job = await self._predicted(asked)
        job_id = job["id"] = job.get("id") or f"c{next(self.numbers)}"
        self.jobs[job_id] = job
        return web.json_response(job, status=201)

    async def _predicted(self, asked):
        async with aiohttp.ClientSession() as session, session.post(f"{self.cog}/predictions", json=asked) as answer:
            return await answer.json()


async def test_cogs_own_server_draws_for_our_client(cog):
    with CogCloud(cog) as server:
        one = ClientOptions(concurrency=1)  # it has one slot, and the cloud's queue is not here
        async with ImageClient("replicate", api_token=fakes.TOKEN, base_url=server.origin, options=one) as images:
            asked = [images.generate(f"number {index}", seed=index) for index in range(3)]
            found = await asyncio.gather(*asked)
            assert [image.data for image in found] == [drawn(f"number {index}", 64, 64, index) for index in range(3)]
            with pytest.raises(GenerationFailed, match="The model failed"):  # which Cog answers with 200
                await images.generate("fails")


def test_a_prediction_of_the_fake_has_what_one_of_cog_has(cog):
    told = httpx.post(f"{cog}/predictions", json={"input": {"prompt": "a", "seed": 1}}).json()
    with fakes.Replicate() as server:
        headers = {"Authorization": f"Bearer {fakes.TOKEN}", "Prefer": "wait"}
        url = f"{server.origin}/v1/models/{MODEL}/predictions"
        fake = httpx.post(url, json={"input": {"prompt": "a", "seed": 1}}, headers=headers).json()
    common = {"id", "status", "output", "logs", "metrics"}
    assert common <= told.keys() and common <= fake.keys()
    assert told["status"] == fake["status"] == "succeeded"
    assert told["metrics"].keys() >= fake["metrics"].keys() == {"predict_time"}

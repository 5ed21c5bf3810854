"""The fakes of OpenAI and Hugging Face, asked by these providers' own clients; the others' are in tests/clients."""

import base64
import io

import openai
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from image_client.drawing import drawn
from tests.image_client import fake_providers as fakes

PHOTO = drawn("a photo", 64, 64, 1)


def test_openais_own_client():
    with fakes.OpenAI() as server:
        client = openai.OpenAI(base_url=f"{server.origin}/v1", api_key=fakes.TOKEN, max_retries=0)
        answer = client.images.generate(model="m", prompt="a", n=2, size="1024x1024", extra_body={"seed": 4})
        assert [base64.b64decode(item.b64_json) for item in answer.data] == [
            drawn("a", 64, 64, seed) for seed in (4, 5)
        ]
        edited = client.images.edit(
            model="m", image=("a.png", io.BytesIO(PHOTO)), mask=("m.png", io.BytesIO(PHOTO)), prompt="b"
        )
        assert base64.b64decode(edited.data[0].b64_json) == drawn("b", 64, 64, 0)
        assert server.jobs["2"]["image"] == server.jobs["2"]["mask"] == PHOTO
        server.failures.append(429)
        with pytest.raises(openai.RateLimitError, match="as the test wants"):
            client.images.generate(prompt="a")
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{server.origin}/v1", api_key="wrong").images.generate(prompt="a")


def test_hugging_faces_own_client():
    with fakes.HuggingFace() as server:
        client = InferenceClient(model=f"{server.origin}/models/org/name", token=fakes.TOKEN)
        assert client.text_to_image("a", width=96, height=64, seed=2).size == (96, 64)
        assert client.image_to_image(PHOTO, prompt="b", target_size={"width": 64, "height": 96}).size == (64, 96)
        server.failures.append(503)
        with pytest.raises(HfHubHTTPError, match="as the test wants"):
            client.text_to_image("a")

"""Translators alone, without a server: whatever a provider answers is images, a job or one of our errors."""

import base64
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from image_client.drawing import drawn
from image_client.errors import (
    AuthenticationFailed,
    ImageClientError,
    PaymentRequired,
    ProviderUnavailable,
    RateLimited,
    RequestRefused,
    UnknownOutcome,
    Unsupported,
)
from image_client.providers.answers import refusal
from image_client.providers.fitting import fitted
from image_client.providers.provider import Call, Finished, HttpAnswer, Running
from image_client.providers.table import PROVIDERS
from image_client.request import ImageRequest

PNG = base64.b64encode(drawn("a", 16, 16, 1)).decode()
WORDS = (
    *("id", "status", "output", "images", "image", "data", "b64_json", "url", "error", "seed", "seeds", "request_id"),
    *(
        "response_url",
        "model",
        "version",
        "usage",
        "cost_usd",
        "detail",
        "code",
        "has_nsfw_concepts",
        "results",
        "input",
    ),
)
LEAVES = some.one_of(
    some.none(),
    some.booleans(),
    some.integers(),
    some.floats(),
    some.text(max_size=8),
    some.sampled_from(["COMPLETED", "FAILED", "IN_QUEUE", "succeeded", "failed", "https://x.example/a", PNG, "data:,"]),
)
ANSWERS = some.recursive(
    LEAVES,
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.sampled_from(WORDS), inner, max_size=6),
    max_leaves=12,
)
HEADERS = some.dictionaries(
    some.sampled_from(["content-type", "retry-after", "retry-after-ms", "seed", "x-seed", "finish-reason"]),
    some.sampled_from(["", "7", "-1", "nan", "Mon, 30 Nov 2026 12:00:00 GMT", "text/plain", "SUCCESS"]),
)


def call_of(provider, **fields):
    request = ImageRequest(prompt="a", **fields)
    base = provider.base_url or "http://worker.example/v2/x"
    return Call(request, provider.default_model or "m", base, "token", "id", Running("j", f"{base}/j/status"))


@pytest.mark.quick_rows(4)
@pytest.mark.parametrize("name", PROVIDERS)
@settings(max_examples=40)
@given(value=ANSWERS, status=some.sampled_from([200, 201, 302, 400, 429, 500, 503]), headers=HEADERS)
def test_any_answer_is_images_a_job_or_one_of_our_errors(name, value, status, headers):
    provider = PROVIDERS[name]
    answer = HttpAnswer(status, headers, json.dumps(value).encode())
    for ask in (lambda: provider.parse(answer, call_of(provider)), lambda: search(provider, answer)):
        try:
            outcome = ask()
        except ImageClientError as error:
            assert str(error) and "\n" not in str(error)
            continue
        if isinstance(outcome, Finished):
            assert outcome.files and status < 300
        if isinstance(outcome, Running):
            assert outcome.job_id and outcome.poll_url.startswith(("http://worker.example/", provider.base_url or "-"))


def search(provider, answer):
    return provider.found(answer, call_of(provider), frozenset()) if provider.found else None


@pytest.mark.quick_rows(4)
@pytest.mark.parametrize("name", PROVIDERS)
@given(
    fields=some.fixed_dictionaries(
        {"width": some.integers(1, 5000), "height": some.integers(1, 5000)},
        optional={
            "negative_prompt": some.just("fog"),
            "seed": some.integers(0, 2**53 - 1),
            "num_inference_steps": some.integers(1, 1000),
            "guidance_scale": some.floats(0, 100),
            "output_format": some.sampled_from(["png", "jpeg", "webp"]),
        },
    )
)
def test_what_was_adapted_is_taken_strictly_and_said_once_a_field(name, fields):
    provider = PROVIDERS[name]
    can = provider.abilities(provider.default_model, provider.base_url or "")
    asked = ImageRequest(prompt="a", **fields)
    near, said = fitted(asked, can, name, "nearest")
    assert fitted(near, can, name, "strict") == (near, ())
    changed = [key for key, value in fields.items() if getattr(near, key) != value and key != "height"]
    assert len(said) >= len(changed)
    if said:
        with pytest.raises(Unsupported):
            fitted(asked, can, name, "strict")
    else:
        assert near == asked


@pytest.mark.parametrize(
    ("status", "kind", "retryable"),
    [
        (400, RequestRefused, False),
        (401, AuthenticationFailed, False),
        (402, PaymentRequired, False),
        (403, AuthenticationFailed, False),
        (408, UnknownOutcome, False),
        (429, RateLimited, True),
        (500, UnknownOutcome, False),
        (502, UnknownOutcome, False),
        (503, ProviderUnavailable, True),
        (504, UnknownOutcome, False),
        (307, RequestRefused, False),
    ],
)
def test_a_status_says_whether_the_job_can_have_run(status, kind, retryable):
    error = refusal(HttpAnswer(status, {"retry-after": "9"}, b'{"errors": ["one", {"message": "two"}]}'))
    assert type(error) is kind and error.retryable is retryable
    if status != 307:
        assert "one; two" in str(error)
    assert getattr(error, "retry_after", 9.0) == 9.0


def test_what_providers_say_only_in_words():
    detail = b'{"detail": "Request was throttled. Your rate limit resets in ~30s."}'
    loading = b'{"error": "Model is loading", "estimated_time": 20.5}'
    quota = b'{"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}'
    for name, status, body, kind, wait in (
        ("replicate", 429, detail, RateLimited, 30),
        ("huggingface", 503, loading, ProviderUnavailable, 20.5),
        ("openai", 429, quota, PaymentRequired, None),
    ):
        with pytest.raises(kind) as failure:
            PROVIDERS[name].parse(HttpAnswer(status, {}, body), call_of(PROVIDERS[name]))
        assert getattr(failure.value, "retry_after", None) == wait


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_token_stands_in_headers_only_and_in_no_repr(name):
    provider = PROVIDERS[name]
    call = Call(ImageRequest(prompt="a"), provider.default_model or "m", provider.base_url or "x", "s3cret", "id")
    request = provider.prepare(call)
    assert "s3cret" not in request.url + json.dumps(request.json) + repr(request) + repr(call) + repr(request.form)
    assert name == "mock" or request.headers["Authorization"] == f"{provider.scheme} s3cret"

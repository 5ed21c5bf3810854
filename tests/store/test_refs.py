"""Every form of a model reference, and what is refused as none."""

import pytest

from worker.core.errors import InvalidRequest, UnsupportedModel, WorkerError
from worker.core.model import ModelSource
from worker.store.refs import parse_reference

COMMIT = "0123456789abcdef0123456789abcdef01234567"

FORMS = {
    "org/repo": ("org/repo", None, None),
    "  org/repo\n": ("org/repo", None, None),
    "hf:org/repo": ("org/repo", None, None),
    "HF:org/repo": ("org/repo", None, None),
    "hf://org/repo@v1": ("org/repo", "v1", None),
    "org/repo@main": ("org/repo", "main", None),
    f"org/repo@{COMMIT}": ("org/repo", COMMIT, None),
    "org/repo@refs/pr/3": ("org/repo", "refs/pr/3", None),
    "org/repo#a.safetensors": ("org/repo", None, "a.safetensors"),
    "org/repo@v1#sub/a b.safetensors": ("org/repo", "v1", "sub/a b.safetensors"),
    "black-forest-labs/FLUX.1-dev": ("black-forest-labs/FLUX.1-dev", None, None),
    "a/b": ("a/b", None, None),
    "https://huggingface.co/org/repo": ("org/repo", None, None),
    "https://huggingface.co/org/repo/": ("org/repo", None, None),
    "https://hf.co/org/repo?library=diffusers": ("org/repo", None, None),
    "https://HuggingFace.co/org/repo": ("org/repo", None, None),
    "https://huggingface.co/org/repo/tree/v1": ("org/repo", "v1", None),
    "https://huggingface.co/org/repo/blob/main/x.safetensors": ("org/repo", "main", "x.safetensors"),
    "https://huggingface.co/org/repo/resolve/main/d/x.safetensors?download=true": (
        "org/repo",
        "main",
        "d/x.safetensors",
    ),
    "https://huggingface.co/org/repo/tree/refs%2Fpr%2F3": ("org/repo", "refs/pr/3", None),
    "https://huggingface.co/org/repo/blob/refs/pr/3/x.safetensors": ("org/repo", "refs/pr/3", "x.safetensors"),
    "https://huggingface.co/org/repo/blob/main/a%20b.safetensors": ("org/repo", "main", "a b.safetensors"),
}


@pytest.mark.parametrize(("text", "expected"), FORMS.items())
def test_a_hub_reference_is_read(text, expected):
    source = parse_reference(text)
    assert (source.scheme, source.locator, source.revision, source.filename) == ("hf", *expected)


@pytest.mark.parametrize("text", FORMS)
def test_the_canonical_text_of_a_source_reads_back_as_the_same_source(text):
    source = parse_reference(text)
    assert parse_reference(source.reference) == source


@pytest.mark.parametrize(
    ("text", "path", "filename"),
    [
        ("file:/models/x", "/models/x", None),
        ("file:///models/x", "/models/x", None),
        ("FILE:/models/x", "/models/x", None),
        ("/models/x.safetensors", "/models/x.safetensors", None),
        ("file:models/demo", "models/demo", None),
        ("file:/models/x#unet/a.safetensors", "/models/x", "unet/a.safetensors"),
    ],
)
def test_a_path_is_read(text, path, filename):
    assert parse_reference(text) == ModelSource(scheme="file", locator=path, filename=filename)


REFUSED = [
    "",
    "   ",
    "sdxl",
    "org/",
    "a/b/c",
    "org/repo/unet",
    "../etc",
    "org/..",
    "org/re..po",
    "org/re--po",
    "-org/repo",
    "org/-repo",
    "org/repo.",
    "org/repo.git",
    "org/" + "x" * 97,
    "örg/repo",
    "org/repo name",
    "org/repo@../../etc/passwd",
    "org/repo@/etc/passwd",
    "org/repo@a//b",
    "org/repo@-x",
    "org/repo@a b",
    "org/repo@é",
    "org/repo#../x.safetensors",
    "org/repo#/etc/x.safetensors",
    "org/repo#a\\b.safetensors",
    "org/repo#a/../../b.safetensors",
    "org/re\x00po",
    "org/repo#a\x7f.safetensors",
    "org/repo#\ud800.safetensors",
    "org/repo#a\nb.safetensors",
    "file:",
    "file:/x#../../y",
    "x" * 513,
    "https://huggingface.co/",
    "https://huggingface.co/org",
    "https://huggingface.co/org/repo/commit/abc",
    "https://huggingface.co/datasets/org",
    "https://huggingface.co/spaces/org/space",
    "https://huggingface.co/org/repo/blob/main/..%2F..%2Fx",
    "https://[::1",
    "https://[huggingface.co]/org/repo",
]


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_no_reference_is_refused_with_the_forms_that_are(text):
    with pytest.raises(InvalidRequest) as caught:
        parse_reference(text)
    assert caught.value.field == "model"
    assert "org/repo@revision" in caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        "civitai:123@456",
        "urn:air:sdxl:lora:civitai:123@456",
        "air:sdxl:lora:civitai:1@2",
        "https://civitai.com/models/123",
        "https://example.com/x.safetensors",
        "https://huggingface.co.evil.com/org/repo",
        "https://huggingface.co@evil.com/org/repo",
        "http:///org/repo",
    ],
)
def test_a_source_that_is_not_served_here_is_unsupported_and_says_what_to_do(text):
    with pytest.raises(UnsupportedModel) as caught:
        parse_reference(text)
    assert "file:/path" in caught.value.message


def test_a_refusal_never_repeats_a_password_or_token_of_an_url():
    with pytest.raises(WorkerError) as caught:
        parse_reference("https://user:secret-word@host.example/x.safetensors?token=secret-word")
    assert "secret-word" not in caught.value.message

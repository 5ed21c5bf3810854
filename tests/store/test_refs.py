"""Every form of a model reference, and what is refused as none."""

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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
    "org/repo#" + "x" * 2_048,
    "org/repo#a//b",
    "org/repo#./x.safetensors",
    "https://huggingface.co/org/repo/blob/main/LICENSE",
    "https://huggingface.co/org/repo/blob/main/a%23sha256=b.safetensors",
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


SHA = "0123456789abcdef" * 4
DIRECT = "https://host.example/dir/x.safetensors"


@pytest.mark.parametrize(
    ("text", "subfolder", "filename"),
    [
        ("org/repo#unet", "unet", None),
        ("org/repo#v1.5", "v1.5", None),
        ("org/repo@main#sub/FLUX.1-dev/", "sub/FLUX.1-dev", None),
        ("https://huggingface.co/org/repo/tree/main/sub/vae", "sub/vae", None),
        ("org/repo#sub/vae/x.gguf", None, "sub/vae/x.gguf"),
        ("org/repo#x.ckpt", None, "x.ckpt"),
        ("file:/models/x#sub", "sub", None),
    ],
)
def test_what_stands_behind_the_hash_is_a_file_by_its_suffix_and_else_a_folder(text, subfolder, filename):
    source = parse_reference(text)
    assert (source.subfolder, source.filename) == (subfolder, filename)


def civitai(model="", version=None, filename=None, choice=None) -> ModelSource:
    return ModelSource(scheme="civitai", locator=model, revision=version, filename=filename, choice=choice)


CIVITAI = {
    "civitai:123": civitai("123"),
    "civitai:123@456": civitai("123", "456"),
    "CivitAI://123@456": civitai("123", "456"),
    "civitai:@456": civitai("", "456"),
    "civitai:123@456#789": civitai("123", "456", "789"),
    "civitai:123#my model [v1].safetensors": civitai("123", None, "my model [v1].safetensors"),
    "civitai:123@456?fp=fp16&format=SafeTensor": civitai("123", "456", None, "format=SafeTensor&fp=fp16"),
    "https://civitai.com/models/123": civitai("123"),
    "https://civitai.com/models/123/a-slug-é": civitai("123"),
    "https://www.civitai.com/models/123?modelVersionId=456": civitai("123", "456"),
    "https://civitai.green/models/123/slug?modelVersionId=456&x=y#comments": civitai("123", "456"),
    "http://civitai.red/models/123": civitai("123"),
    "https://civitai.com/api/v1/models/123": civitai("123"),
    "https://civitai.com/api/v1/model-versions/456": civitai("", "456"),
    "https://civitai.com/model-versions/456": civitai("", "456"),
    "https://civitai.com/api/download/models/456": civitai("", "456"),
    "https://civitai.com/api/download/models/456?fileId=789": civitai("", "456", "789"),
    "https://civitai.com/api/download/models/456?type=Pruned%20Model&format=SafeTensor&size=pruned&fp=fp16": civitai(
        "", "456", None, "type=Pruned Model&format=SafeTensor&size=pruned&fp=fp16"
    ),
    "urn:air:sdxl:lora:civitai:123@456": civitai("123", "456"),
    "air:sdxl:lora:civitai:123@456": civitai("123", "456"),
    "sdxl:lora:civitai:123@456": civitai("123", "456"),
    "urn:air:sdxl:checkpoint:civitai:123": civitai("123"),
    "urn:air:sdxl:checkpoint:civitai:123@456+789.safetensors": civitai("123", "456", "789"),
    "URN:AIR:flux1:checkpoint:CivitAI:123@456.gguf": civitai("123", "456", None, "format=GGUF"),
}


@pytest.mark.parametrize(("text", "expected"), CIVITAI.items())
def test_a_civitai_reference_is_read(text, expected):
    assert parse_reference(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("urn:air:flux1:checkpoint:huggingface:black-forest-labs/FLUX.1-dev", "black-forest-labs/FLUX.1-dev"),
        ("air:sd1:lora:huggingface:org/repo@v1+sub/x.safetensors", "org/repo@v1#sub/x.safetensors"),
    ],
)
def test_an_air_of_hugging_face_is_a_hub_reference(text, expected):
    assert parse_reference(text) == parse_reference(expected)


@pytest.mark.parametrize("source", ["orchestrator", "civitai-r2", "leonardo"])
def test_an_air_of_another_source_is_refused_by_its_name(source):
    with pytest.raises(UnsupportedModel, match=source):
        parse_reference(f"urn:air:sdxl:lora:{source}:123@456")


@pytest.mark.parametrize(
    ("text", "locator"),
    [
        (DIRECT, DIRECT),
        ("HTTPS://Host.Example/dir/x.safetensors#part", DIRECT),
        ("https://host.example:8443/x.gguf?X-Sig=a%2Fb&y=", "https://host.example:8443/x.gguf?X-Sig=a%2Fb&y="),
        ("https://Host.Example./x.gguf", "https://host.example/x.gguf"),
        ("Host.example/x.safetensors", "https://host.example/x.safetensors"),
        ("a.host.example:8443/d/e/x.GGUF?X-Sig=a", "https://a.host.example:8443/d/e/x.GGUF?X-Sig=a"),
        ("https://host。example/x.gguf", "https://host.example/x.gguf"),
        ("https://[2606:2800::1]:8443/x.gguf", "https://[2606:2800::1]:8443/x.gguf"),
        ("https://huggingface.co.evil.com/org/repo", "https://huggingface.co.evil.com/org/repo"),
        ("https://notcivitai.com/models/123", "https://notcivitai.com/models/123"),
    ],
)
def test_any_other_url_is_a_file_of_its_own(text, locator):
    assert parse_reference(text) == ModelSource(scheme="url", locator=locator)


@pytest.mark.parametrize(
    ("pinned", "plain"),
    [
        (f"org/repo#x.safetensors?sha256={SHA}", "org/repo#x.safetensors"),
        (f"org/repo#x.safetensors#sha256={SHA.upper()}", "org/repo#x.safetensors"),
        (f"civitai:123@456&SHA256={SHA}", "civitai:123@456"),
        (f"civitai:123@456?fp=fp16&sha256={SHA}", "civitai:123@456?fp=fp16"),
        (f"{DIRECT}?sha256={SHA}", DIRECT),
        (f"{DIRECT}?a=b&sha256={SHA}", f"{DIRECT}?a=b"),
        (f"{DIRECT}?sha256={SHA}&a=b", f"{DIRECT}?a=b"),
        (f"{DIRECT}?a=b#sha256={SHA}", f"{DIRECT}?a=b"),
        (f"https://huggingface.co/org/repo/blob/main/x.safetensors?download=true&sha256={SHA}",
         "org/repo@main#x.safetensors"),
        (f"urn:air:sdxl:lora:civitai:123@456?sha256={SHA}", "civitai:123@456"),
        (f"file:/models/x.safetensors?sha256={SHA}", "file:/models/x.safetensors"),
    ],
)  # fmt: skip
def test_any_reference_can_be_pinned_to_a_digest(pinned, plain):
    assert parse_reference(pinned) == parse_reference(plain).model_copy(update={"sha256": SHA})


@pytest.mark.parametrize("pin", ["sha256=abc", f"sha256={SHA}0", "sha256=", f"sha256={SHA}&sha256={SHA}"])
def test_a_pin_that_is_no_digest_is_refused(pin):
    with pytest.raises(InvalidRequest, match="64 hexadecimal"):
        parse_reference(f"org/repo?{pin}")


@pytest.mark.parametrize(
    "text",
    [
        "civitai:",
        "civitai:@",
        "civitai:0",
        "civitai:abc",
        "civitai:123@",
        "civitai:123@x",
        f"civitai:{2**31}",
        "civitai:99999999999",
        "civitai:١٢٣",
        "civitai:123#../x.safetensors",
        "civitai:123?size=a/b",
        "civitai:123?sise=full",
        "https://civitai.com/",
        "https://civitai.com/models",
        "https://civitai.com/models/abc",
        "https://civitai.com/models/123?modelVersionId=@1",
        "https://civitai.com/user/somebody",
        "https://civitai.com/images/123",
        "https://civitai.com/api/download/models/456?fileId=../7",
        "urn:air:sdxl:lora:civitai:abc@456",
        "urn:air:sdxl:lora:civitai",
        "air:",
        "https://host.example/",
        "https://host.example",
        "https:///x.safetensors",
        "http:///org/repo",
        "https://host.example\\@evil.example/x",
        "https://host.example/a b.safetensors",
        "https://host.example:port/x",
        "https://.../x.safetensors",
        f"https://{'a' * 64}.example/x",
    ],
)
def test_what_looks_like_a_reference_and_is_none_is_refused_in_one_sentence(text):
    with pytest.raises(InvalidRequest) as caught:
        parse_reference(text)
    assert caught.value.field == "model"
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("https://user:secret-word@host.example/x.safetensors", "needs none"),
        ("https://huggingface.co:secret-word@evil.com/org/repo", "needs none"),
        ("https://host.example/x.safetensors?access_token=secret-word", "needs none"),
        ("https://civitai.com/api/download/models/456?token=secret-word", "CIVITAI_TOKEN"),
        ("https://civitai.com/api/download/models/456?fileId=7&Token=secret-word", "CIVITAI_TOKEN"),
        ("https://civitai.com/models/456?%74oken=secret-word", "CIVITAI_TOKEN"),
        ("civitai:123@456?token=secret-word", "CIVITAI_TOKEN"),
        ("https://huggingface.co/org/repo/resolve/main/x.safetensors?token=secret-word", "HF_TOKEN"),
        ("org/repo?token=secret-word", "reference"),
    ],
)
def test_a_password_or_token_in_a_reference_is_refused_and_never_repeated(text, fix):
    with pytest.raises(WorkerError) as caught:
        parse_reference(text)
    assert "secret-word" not in caught.value.message
    assert fix in caught.value.message


EVERY_FORM = [*FORMS, *CIVITAI, "file:/models/x#unet/a.safetensors", "/models/x", "org/repo#v1.5", DIRECT]


@pytest.mark.parametrize("pin", ["", f"?sha256={SHA}"])
@pytest.mark.parametrize("text", EVERY_FORM)
def test_the_canonical_text_of_a_source_reads_back_as_the_same_source(text, pin):
    source = parse_reference(text.strip() + pin)
    assert parse_reference(source.reference) == source


def test_every_form_that_the_documentation_shows_is_read():
    section = (Path(__file__).parents[2] / "docs/api.md").read_text().split("### Model references")[1].split("\n#")[0]
    shown = [form for form in re.findall(r"`([^`]+)`", section) if re.match(r"org/|civitai:|urn:|https:|file:|/", form)]
    assert len(shown) >= 12
    for form in shown:
        text = form.replace("MODEL", "123").replace("VERSION", "456").replace("FILE", "789")
        assert parse_reference(text).reference


PIECES = st.sampled_from([
    *("org/repo", "hf:", "civitai:", "file:", "https://", "host.example", "huggingface.co", "civitai.com", "urn:air:"),
    *("/models/123", "/tree/main/", "/blob/main/", "/api/download/models/4", "sdxl:lora:civitai:", "huggingface:"),
    *("@", "#", "?", "&", "/", "//", ":", "+", ".", "..", " ", "%20", "%23", "%2F", "%00", "[", "]", "\\", "é", "١"),
    *("123", "x.safetensors", ".gguf", "fp=fp16", "fileId=7", "sha256=", f"sha256={SHA}", "token=", "modelVersionId=5"),
])  # fmt: skip


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(PIECES, min_size=1, max_size=9).map("".join) | st.text(max_size=60))
def test_any_text_is_a_source_that_reads_back_or_is_refused_in_one_sentence(text):
    try:
        source = parse_reference(text)
    except InvalidRequest as error:
        assert error.field == "model"
        assert error.message.isprintable()
        return
    assert parse_reference(source.reference) == source


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("org/repo/x.safetensors", "org/repo#x.safetensors"),
        ("org/repo/deep/x.SFT", "org/repo#deep/x.SFT"),
        ("huggingface.co/org/repo", "org/repo"),
        ("hf.co/org/repo/blob/main/x.gguf", "org/repo@main#x.gguf"),
        ("www.civitai.com/models/12?modelVersionId=34", "civitai:12@34"),
    ],
)
def test_what_people_leave_out_of_a_reference_is_understood(text, reference):
    assert parse_reference(text).reference == reference

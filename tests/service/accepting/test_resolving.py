"""Which models a caller may name, and what a name means."""

import json
from dataclasses import replace

import pytest

from tests.catalog.corpus import sparse_file, stored
from tests.fakes.engine import make_context
from worker.core.errors import AccessDenied, InvalidRequest, ModelNotFound, UnsupportedModel, WorkerError


def resolved(context, name):
    return context.worker.resolver.resolve(name)


@pytest.mark.parametrize("name", ["tiny", "TINY", "small", " Small ", None])
def test_ids_and_aliases_in_any_case_and_the_default(context, name):
    assert resolved(context, name).id == "tiny"


async def test_an_unregistered_model_is_refused_naming_the_switch(context):
    with pytest.raises(ModelNotFound, match="ALLOW_UNREGISTERED_MODELS=true") as failure:
        await context.draw(model="other/model")
    assert failure.value.field == "model"
    assert "'other/model' is not in models.yaml" in failure.value.message
    assert context.builder.built == 0


@pytest.mark.parametrize(("name", "near"), [("sdlx", "org/sdxl"), ("tinny", "tiny"), ("org/sdxl2", "org/sdxl")])
def test_a_close_miss_is_answered_with_the_nearest_ids(context, name, near):
    with pytest.raises(ModelNotFound, match=f"did you mean.*{near}"):
        resolved(context, name)


def test_what_is_near_nothing_is_answered_with_the_way_to_the_list(context):
    with pytest.raises(ModelNotFound, match='"action": "models"'):
        resolved(context, "zzzzzzzzzzzz")


def test_an_allowed_reference_is_read(tmp_path):
    context = make_context(tmp_path, allow_unregistered_models=True)
    spec = resolved(context, "Other/Model@main#a/b.safetensors")
    assert (spec.source.locator, spec.source.revision, spec.source.filename) == (
        "Other/Model",
        "main",
        "a/b.safetensors",
    )
    assert resolved(context, "https://huggingface.co/other/model").source.locator == "other/model"


@pytest.mark.parametrize(
    "name", ["org/../x", "a b", "no-slash", "org/x@../y", "org/x#../../y", "\x01", "file:", "x" * 300]
)
def test_what_is_no_reference_is_refused(tmp_path, name):
    with pytest.raises(InvalidRequest) as failure:
        resolved(make_context(tmp_path, allow_unregistered_models=True), name)
    assert failure.value.field == "model"


ELSEWHERE = ["civitai:123", "urn:air:sdxl:lora:civitai:1@2", "https://files.example.com/a.safetensors?X-Sig=canary"]


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_model_from_anywhere_needs_the_operators_leave(context, tmp_path, name):
    with pytest.raises(ModelNotFound, match="ALLOW_UNREGISTERED_MODELS=true") as failure:
        resolved(context, name)
    assert "canary" not in failure.value.message
    assert resolved(make_context(tmp_path / "open", allow_unregistered_models=True), name).source.scheme != "hf"


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_list_of_organisations_closes_every_other_place(tmp_path, name):
    context = make_context(tmp_path, allow_unregistered_models=True, allowed_orgs=("good",))
    with pytest.raises(ModelNotFound, match="takes models of good"):
        resolved(context, name)


def test_only_the_allowed_hosts(tmp_path):
    context = make_context(
        tmp_path, allow_unregistered_models=True, allowed_hosts=("Example.com",), allowed_orgs=("good",)
    )
    assert resolved(context, "https://files.example.com/a.safetensors").source.scheme == "url"
    assert resolved(context, "good/model").source.scheme == "hf"
    for name in ("https://badexample.com/a.gguf", "https://example.com.evil.com/a.gguf", "civitai:123", "other/model"):
        with pytest.raises(ModelNotFound, match=r"takes models of good, Example\.com"):
            resolved(context, name)


def test_a_denied_host_is_refused_however_it_is_spelled(tmp_path):
    context = make_context(tmp_path, allow_unregistered_models=True, denied_hosts=("civitai.com", "evil.example"))
    names = (
        "civitai:1",
        "https://civitai.red/models/1",
        "https://a.EVIL.example/x.gguf",
        "https://evil.example./x.gguf",
    )
    for name in names:
        with pytest.raises(ModelNotFound, match="not allowed on this worker"):
            resolved(context, name)


@pytest.mark.parametrize(
    "name",
    ["https://civitai.com/models/1?token=canary", "https://u:canary@host.example/x.gguf", "civitai:1?token=canary"],
)
def test_a_reference_with_a_token_is_told_so_and_not_repeated(context, name):
    with pytest.raises(InvalidRequest, match="carries a token") as failure:
        resolved(context, name)
    assert "canary" not in failure.value.message


def test_only_the_allowed_organisations(tmp_path):
    context = make_context(tmp_path, allow_unregistered_models=True, allowed_orgs=("Good",))
    assert resolved(context, "good/model").id == "good/model"
    with pytest.raises(ModelNotFound, match="takes models of Good"):
        resolved(context, "other/model")
    assert resolved(context, "org/sdxl").id == "org/sdxl"  # the registry needs no leave


def test_a_denied_organisation_is_refused_whatever_else_is_allowed(tmp_path):
    context = make_context(tmp_path, allow_unregistered_models=True, allowed_orgs=("bad",), denied_orgs=("Bad",))
    with pytest.raises(ModelNotFound, match="not allowed on this worker"):
        resolved(context, "BAD/model")


async def test_a_lora_is_under_the_same_rules(context, tmp_path):
    with pytest.raises(ModelNotFound, match="ALLOW_UNREGISTERED_MODELS") as failure:
        await context.draw(loras=["org/style"])
    assert failure.value.field == "loras"
    assert context.builder.built == 0
    denying = make_context(tmp_path / "b", allow_unregistered_models=True, denied_orgs=("bad",))
    with pytest.raises(ModelNotFound, match="loras: bad/style is not allowed"):
        await denying.draw(loras=["bad/style"])


async def test_the_operators_own_lora_needs_no_leave(context):
    with pytest.raises(WorkerError) as failure:
        await context.draw(model="fast")  # its Lightning LoRA: allowed, but the worker is offline
    assert failure.value.code == "source_unavailable"


@pytest.mark.parametrize("model", ["/etc", "file:/etc/passwd", "file:../../../etc", "/proc/self/environ"])
async def test_a_path_outside_the_operators_folders_is_refused(context, model):
    with pytest.raises(AccessDenied) as failure:
        await context.draw(model=model)
    assert "etc" not in failure.value.message
    assert context.builder.built == 0


async def test_a_file_that_is_no_model_is_refused_for_what_it_is(context, tmp_path):
    lora = sparse_file(tmp_path / "models/lora.safetensors", stored("lora-sd1-kohya"))
    with pytest.raises(UnsupportedModel, match="is a lora") as failure:
        await context.draw(model=f"file:{lora}")
    assert failure.value.details["evidence"]
    assert context.builder.built == 0


async def test_a_declaration_that_the_files_contradict_is_refused(context, tmp_path):
    registry = json.loads((tmp_path / "models.yaml").read_text())
    registry["models"]["wrong"] = {"source": "file:models/sd1", "architecture": "sdxl"}
    path = tmp_path / "other.yaml"
    path.write_text(json.dumps(registry))
    with pytest.raises(UnsupportedModel, match=r"declared as sdxl .* but its files say sd1"):
        await make_context(tmp_path / "x", models_yaml=path).draw(model="wrong")


@pytest.mark.parametrize(
    ("title", "scheduler"),
    [
        ("Apples Lightning", "EulerDiscreteScheduler"),
        ("Apples Turbo", "EulerAncestralDiscreteScheduler"),
        ("Apples", None),
    ],
)
def test_a_file_of_few_steps_is_sampled_as_its_family_says(context, tmp_path, title, scheduler):
    titled = replace(stored("sd1-no-vae"), metadata={"modelspec.title": title})
    path = sparse_file(tmp_path / "models/apples.safetensors", titled)
    found = context.worker.resolver.detect(resolved(context, f"file:{path}"))
    assert found.architecture == "sd1"
    assert (found.few_steps.cls if found.few_steps else None) == scheduler

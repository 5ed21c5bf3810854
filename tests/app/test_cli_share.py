"""A recipe is handed on as one file without weights, and whoever takes it has the same models, or is told so."""

import json
import re
import shutil

import pytest
import yaml

from tests.app.commands import failed, invoke, said, use_volume
from tests.conftest import PROJECT
from tests.fakes.hub import FakeHub
from tests.service.recipes.by_hand import SHIPPED
from tests.store.conftest import write_pipeline
from worker.catalog.recipes.shared import read_share, write_share

REGISTRY = """
models:
  org/model: {architecture: sd1, tasks: [text-to-image], tier: null}
"""


def write_vae(folder):
    """Write what is a VAE by its config, which is all that is looked at."""
    (folder / "own-vae").mkdir()
    (folder / "own-vae/config.json").write_text('{"_class_name": "AutoencoderKL"}')
    (folder / "own-vae/diffusion_pytorch_model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")


RECIPE = """\
inputs:
  prompt: {type: text}
steps:
  one: {model: org/model, prompt: "a ${inputs.prompt}"}
"""


@pytest.fixture
def hub(tmp_path):
    with FakeHub() as server:
        write_pipeline(tmp_path / "served")
        server.commit = server.add_repo("org/model", tmp_path / "served")
        yield server


@pytest.fixture
def shared(hub, tmp_path, monkeypatch):
    """A recipe as its author hands it on."""
    author = tmp_path / "author"
    (author / "recipes").mkdir(parents=True)
    use_volume(monkeypatch, author, REGISTRY, hub.endpoint)
    (author / "recipes/single.yaml").write_text(RECIPE)
    said(invoke("share", "export", author / "recipes/single.yaml", tmp_path / "single.share"))
    assert hub.count("safetensors", "GET") == 0
    return tmp_path / "single.share"


@pytest.fixture
def taker(hub, shared, tmp_path, monkeypatch):
    """The folder of another operator, whose registry lacks the model."""
    folder = tmp_path / "taker"
    folder.mkdir()
    use_volume(monkeypatch, folder, "# mine\nmodels:\n  org/other: {}\n", hub.endpoint)
    monkeypatch.setenv("DEFAULT_MODEL", "org/other")
    return folder


def test_it_is_one_file_with_revisions_and_digests_and_reads_as_yaml(shared, hub):
    content = yaml.safe_load(shared.read_text())
    assert content["recipe"] == RECIPE
    assert content["models"]["org/model"]["entry"]["source"] == f"org/model@{hub.commit}"
    (source,) = content["models"]["org/model"]["sources"]
    assert source["revision"] == hub.commit
    assert all(len(file["sha256"]) == 64 for file in source["files"].values())


def test_it_is_taken_with_its_model_at_the_same_revision_and_files(shared, taker, hub):
    assert "org/model is not in models.yaml; --add writes" in failed(invoke("share", "import", shared))
    assert {path.name for path in taker.iterdir()} <= {"models.yaml", "volume"}
    assert "recipes/single.yaml: single" in said(invoke("share", "import", shared, "--add"))
    assert (taker / "recipes/single.yaml").read_text() == RECIPE
    registry = (taker / "models.yaml").read_text()
    assert registry.startswith("# mine\nmodels:\n  org/other: {}\n")
    assert yaml.safe_load(registry)["models"]["org/model"]["source"].endswith(hub.commit)
    locked = json.loads((taker / "models.lock").read_text())["models"]
    assert [entry["revision"] for entry in locked.values()] == [hub.commit]
    assert "recipes/single.yaml: right" in said(invoke("recipe", "check", taker / "recipes/single.yaml"))
    said(invoke("share", "import", shared))  # again: nothing to do
    assert (taker / "models.yaml").read_text() == registry
    assert {path.name for path in taker.iterdir()} <= {"models.yaml", "models.lock", "recipes", "volume"}
    lock = (taker / "models.lock").read_text()
    (taker / "models.lock").write_text(re.sub(r'"sha256": "\w{64}"', f'"sha256": "{"0" * 64}"', lock, count=1))
    assert "models.lock has" in failed(invoke("share", "import", shared))


@pytest.mark.parametrize(
    "damage", ["cut", "edited", "another file", "another revision", "a source more", "local", "operator's"]
)
def test_a_wrong_one_is_refused_and_nothing_is_written(shared, taker, damage):
    text = shared.read_text()
    share = read_share(shared)
    model = share.models["org/model"].model_dump(mode="json")
    expected = "single.share:"
    match damage:
        case "cut":
            text = text[: text.index("digest:")]
            expected = "single.share:1: digest is missing"
        case "edited":
            text = text.replace("a ${inputs.prompt}", "b ${inputs.prompt}")
            expected = "digest is of another content"
        case "another file":
            name = next(name for name in model["sources"][0]["files"] if name.endswith(".safetensors"))
            model["sources"][0]["files"][name]["sha256"] = "0" * 64
            expected = f"org/model is not the model that was shared: {name} is another file here"
        case "another revision":
            model["sources"][0]["revision"] = "f" * 40
            expected = f"and was shared at {'f' * 40}"
        case "a source more":
            model["sources"] *= 2
            expected = "org/model has 1 sources here and had 2 where it was shared"
        case "local":
            model["entry"]["vae"] = "file:/etc/passwd"
            expected = "names a file of another machine"
        case "operator's":
            model["entry"]["tier"] = "L40S"
            expected = "tier of org/model is an operator's own"
    if damage not in ("cut", "edited"):
        models = {"org/model": type(share.models["org/model"]).model_validate_json(json.dumps(model))}
        text = write_share(share.name, share.recipe, models)
    shared.write_text(text)
    assert expected in failed(invoke("share", "import", shared, "--add"))
    assert {path.name for path in taker.iterdir()} <= {"models.yaml", "volume"}


def test_it_takes_no_other_recipes_place_and_no_single_file(shared, taker, monkeypatch):
    (taker / "recipes").mkdir()
    (taker / "recipes/single.yaml").write_text(RECIPE + "# mine\n")
    assert "single.yaml is another recipe; rename it" in failed(invoke("share", "import", shared, "--add"))
    assert (taker / "recipes/single.yaml").read_text() == RECIPE + "# mine\n"
    monkeypatch.setenv("RECIPES", str(taker / "recipes/single.yaml"))
    assert "RECIPES names a single file" in failed(invoke("share", "import", shared, "--add"))
    assert not (taker / "models.lock").exists()


def test_a_file_that_is_silent_of_a_model_is_no_whole_one(shared, taker):
    (taker / "models.yaml").write_text(REGISTRY + "  org/other: {}\n")
    shared.write_text(write_share("single", RECIPE, {}))
    assert "The file says nothing of org/model, which single needs" in failed(invoke("share", "import", shared))
    assert not (taker / "recipes").exists()


def test_a_model_with_a_part_of_this_machine_is_not_handed_on(shared, tmp_path, monkeypatch):
    author = tmp_path / "author"
    monkeypatch.setenv("ALLOWED_MODEL_DIRS", str(author))
    write_vae(author)
    (author / "models.yaml").write_text(REGISTRY.replace("tier: null", "tier: null, vae: file:own-vae"))
    refusal = failed(invoke("share", "export", author / "recipes/single.yaml", tmp_path / "other.share"))
    assert "org/model has a part that lies on this machine" in refusal
    assert not (tmp_path / "other.share").exists()


@pytest.mark.slow  # huggingface_hub takes a second to import
def test_it_is_published_with_a_card_and_taken_from_there(shared, hub, tmp_path, monkeypatch):
    recipe = tmp_path / "author/recipes/single.yaml"
    assert "HF_TOKEN is not set" in failed(invoke("share", "publish", recipe, "org/single"))
    monkeypatch.setenv("HF_TOKEN", hub.token)
    url = said(invoke("share", "publish", recipe, "org/single", "--private")).strip()
    repo = hub.repos["org/single"]
    assert url.endswith(f"/org/single/commit/{repo.branches['main']}")
    assert repo.private
    files = {path: file.source.read_text() for path, file in repo.commits[repo.branches["main"]].items()}
    assert files["single.share.yaml"] == shared.read_text()
    assert files["single.yaml"] == RECIPE
    head = yaml.safe_load(files["README.md"].split("---")[1])
    assert head == {"pipeline_tag": "text-to-image", "tags": ["imgworker-recipe"], "base_model": ["org/model"]}
    assert "| `prompt` | text | required |" in files["README.md"]
    recipe.write_text(RECIPE.replace("a $", "one $"))
    said(invoke("share", "publish", recipe, "org/single"))
    assert len(repo.commits) == 3  # the empty one, too
    assert "org/model holds something else" in failed(invoke("share", "publish", recipe, "org/model"))
    monkeypatch.setenv("HF_TOKEN", hub.stranger)
    assert "does not take it (403)" in failed(invoke("share", "publish", recipe, "org/another"))
    assert hub.token not in shared.read_text()


def test_a_model_of_local_files_is_the_same_files_or_another_model(tmp_path, monkeypatch):
    monkeypatch.setenv("VOLUME_DIR", str(tmp_path / "volume"))
    monkeypatch.setenv("RECIPES", str(tmp_path / "mine"))
    shared = tmp_path / "poster.share"
    said(invoke("share", "export", SHIPPED / "poster.yaml", shared))
    said(invoke("share", "import", shared))
    assert (tmp_path / "mine/poster.yaml").read_text() == (SHIPPED / "poster.yaml").read_text()
    refusal = failed(invoke("share", "export", SHIPPED / "greyed.yaml", tmp_path / "grey.share"))
    assert "grey-style-lora.safetensors is not in models.yaml; add it there" in refusal
    found = tmp_path / "mine/found.yaml"
    found.write_text(
        (SHIPPED / "detailed.yaml").read_text().replace('regions: "${inputs.regions}"', "find: file:own.onnx")
    )
    found.write_text(re.sub(r"  regions:\n(    .*\n){3}", "", found.read_text()))
    (tmp_path / "mine/own.onnx").touch()
    monkeypatch.setattr("worker.service.recipes.checking.Detector", lambda find: None)
    refusal = failed(invoke("share", "export", found, tmp_path / "found.share"))
    assert "found finds parts by own.onnx, which lies on this machine alone" in refusal
    found.unlink()
    (tmp_path / "none").mkdir()
    (tmp_path / "none/models.yaml").write_text("models:\n  org/other: {}\n")
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("MODELS_YAML", str(tmp_path / "none/models.yaml"))
        elsewhere.setenv("DEFAULT_MODEL", "org/other")
        refusal = failed(invoke("share", "import", shared, "--add"))
    assert "was a model of local files, and models.yaml has none of this name" in refusal
    other = tmp_path / "other"
    shutil.copytree(PROJECT / "models", other / "models")
    shutil.copy(PROJECT / "models.yaml", other)
    config = other / "models/demo/scheduler/scheduler_config.json"
    config.write_text(config.read_text() + " ")
    monkeypatch.setenv("MODELS_YAML", str(other / "models.yaml"))
    monkeypatch.setenv("RECIPES", str(other / "recipes"))
    refusal = failed(invoke("share", "import", shared))
    assert "demo is not the model that was shared: scheduler/scheduler_config.json is another file here" in refusal
    assert {path.name for path in other.iterdir()} == {"models", "models.yaml"}

"""`python -m worker discover`: a search, and the find that goes into models.yaml."""

import json
import re
import shlex

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.app.commands import failed, invoke, said, use_volume
from tests.conftest import PROJECT
from tests.fakes.civitai import FakeCivitai
from tests.fakes.hub import FakeHub
from tests.service.discovery.conftest import patience as patience
from tests.service.discovery.pages import fill_civitai, fill_hub, hollow, repository
from worker.app.cli.updates import _apply
from worker.core.discovery import Update

REGISTRY = """# what we serve
models:
  org/model: {aliases: [sdxl], architecture: sdxl, tasks: [text-to-image]}   # the first one
"""


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    with FakeCivitai() as site, FakeHub() as hub:
        fill_civitai(site)
        fill_hub(hub, tmp_path_factory.mktemp("hub"))
        yield site, hub


@pytest.fixture
def run(sites, tmp_path, monkeypatch):
    """Runs a command on an empty volume, with both sites."""
    site, hub = sites
    use_volume(monkeypatch, tmp_path, REGISTRY, hub.endpoint)
    for name, value in {"CIVITAI_ENDPOINT": site.origin, "ALLOW_PRIVATE_URLS": "true", "DEVICE": "cpu"}.items():
        monkeypatch.setenv(name, value)
    return invoke


def test_a_search_is_a_table_and_says_what_cannot_be_had(run, monkeypatch):
    monkeypatch.setenv("DISCOVERY_KEYS", "somebody")  # callers; the terminal is the operator's
    text = said(run("discover", "anime", "lora", "--base", "sdxl"))
    assert "civitai:20@200" in text
    assert "commercial use: Image, Rent; credit needed" in text
    models = said(run("discover", "anime"))
    assert "org/anime-gated" in models
    assert "HF_TOKEN" in models
    found = json.loads(said(run("discover", "anime", "--for", "org/model", "--kind", "lora", "--json")))
    assert [item["model"] for item in found["finds"]] == ["civitai:20@200"], found
    assert "limit" in failed(run("discover", "anime", "--limit", "99"))


def test_one_command_adds_the_find_to_models_yaml(run, tmp_path):
    said(run("discover", "anime lora", "--add", "lines"))
    lines = (tmp_path / "models.yaml").read_text().splitlines()
    assert lines[:3] == REGISTRY.splitlines()
    assert lines[3].startswith("  lines:  # discovered 20")
    assert "licence: commercial use: Image, Rent; credit needed" in lines[3]
    assert lines[4:] == [
        '    source: "civitai:20@200"',
        '    description: "Anime Lines v1.0. Trigger words: lines style."',
    ]
    assert "lines" in said(run("models"))
    again = json.loads(said(run("discover", "anime lora", "--json")))
    assert [item["registered"] for item in again["finds"] if item["model"] == "civitai:20@200"] == ["lines"]
    assert "already" in failed(run("discover", "anime lora", "--add", "lines"))
    assert "--pick" in failed(run("discover", "anime lora", "--add", "more", "--pick", "9"))


def test_a_find_can_wait_for_a_review(run, tmp_path, monkeypatch):
    review = tmp_path / "review.yaml"
    monkeypatch.setenv("MODELS_REVIEW", str(review))
    assert "--accept xl" in said(run("discover", "org/anime-xl", "--add", "xl"))
    assert (tmp_path / "models.yaml").read_text() == REGISTRY
    review.write_text(review.read_text() + "    defaults: {num_inference_steps: 12}\n")
    said(run("discover", "--accept", "xl"))
    text = (tmp_path / "models.yaml").read_text()
    assert text.startswith(REGISTRY)
    assert "defaults: {num_inference_steps: 12}" in text
    assert "xl" not in review.read_text()
    assert "no model xl" in failed(run("discover", "--accept", "xl"))


def test_an_image_says_what_it_was_made_with(run, sites, tmp_path):
    site, _ = sites
    model, lora = (site.versions[number]["files"][0]["hashes"]["AutoV2"] for number in (100, 200))
    notes = PngInfo()
    notes.add_text(
        "parameters",
        "an anime fox, secretword\nNegative prompt: blurry\n"
        f'Steps: 20, Sampler: Euler a, Seed: 1, Size: 64x64, Model hash: {model}, Model: x, Lora hashes: "l: {lora}"',
    )
    Image.new("RGB", (64, 64)).save(tmp_path / "fox.png", pnginfo=notes)
    before = len(site.requests)
    found = json.loads(said(run("discover", "--image", tmp_path / "fox.png", "--json")))
    # The model is gigabytes: whether they fit is this machine's affair.
    assert {"civitai:10@100", "civitai:20@200"} <= {item["model"] for item in found["finds"] + found["withheld"]}
    assert "civitai:20@200" in [item["model"] for item in found["finds"][:2]]
    assert not any("secretword" in f"{seen.path}{seen.query}" for seen in site.requests[before:])
    Image.new("RGB", (64, 64)).save(tmp_path / "bare.png")
    assert "says nothing" in failed(run("discover", "--image", tmp_path / "bare.png"))
    assert "cannot be read" in failed(run("discover", "--image", tmp_path / "absent.png"))


def test_the_commands_of_the_page_do_what_it_says(run, sites, tmp_path, monkeypatch):
    """Against both sites in miniature, which have what the page names."""
    site, _ = sites
    site.add_model(123456, "Ink", "VAE")
    site.add_version(123456, 654321)
    site.add_file(654321, 99, hollow("vae-4"), "ink.safetensors")
    notes = PngInfo()
    notes.add_text("parameters", "an anime fox\nSteps: 20, Model hash: 0123456789")
    Image.new("RGB", (64, 64)).save(tmp_path / "fox.png", pnginfo=notes)
    monkeypatch.chdir(tmp_path)
    page = (PROJECT / "docs/discovery.md").read_text()
    lines = [line for block in re.findall(r"```bash\n(.*?)```", page, re.S) for line in block.splitlines()]
    outputs = {line: said(run(*shlex.split(line, comments=True)[1:])) for line in lines}
    assert len(outputs) == 10
    shown = [output for line, output in outputs.items() if "civitai:123456" in line]
    assert "vae" in shown[0]
    assert "Nothing is newer" in outputs["imgworker updates sdxl       # of one"]
    assert "lines:" in (tmp_path / "models.yaml").read_text()


def test_an_update_becomes_the_candidate_and_requests_get_what_they_got(run, sites, tmp_path):
    _, hub = sites
    first = repository(tmp_path / "first", "StableDiffusionXLPipeline")
    old = hub.add_repo("org/moving", first)
    path = tmp_path / "models.yaml"
    path.write_text(REGISTRY + f"  moving: {{source: org/moving@{old}}}\n")
    second = repository(tmp_path / "second", "StableDiffusionXLPipeline")
    (second / "scheduler/scheduler_config.json").write_text('{"_class_name": "DDIMScheduler"}')
    new = hub.add_repo("org/moving", second)
    shown = said(run("updates", "moving"))
    assert old[:12] in shown
    assert new[:12] in shown
    assert not (tmp_path / "volume/versions").exists(), "to look changes nothing"
    assert f"moving@candidate is v2 now: org/moving@{new}" in said(run("updates", "moving", "--apply"))
    (listed,) = json.loads(said(run("versions", "list", "moving", "--json")))["models"]
    aliases = {alias: each["revision"] for each in listed["versions"] for alias in each["aliases"]}
    assert aliases == {"stable": old, "candidate": new}
    assert "the newest is v2 already" in said(run("updates", "moving", "--apply"))
    told = json.loads(said(run("updates", "moving", "--json")))["updates"][0]
    assert (told["old"], told["version"]) == (f"org/moving@{old}", "v2")


def test_what_does_not_run_here_is_not_applied():
    update = Update("sdxl", "org/xl@1", "org/xl@2", 1, 1, obstacle="it is gated")
    assert _apply(None, update, None) == "sdxl stays as it is: it is gated"

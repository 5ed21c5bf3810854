"""The pages for users: links lead somewhere, commands are taken, requests are accepted, tables name what there is."""

import json
import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from tests.conftest import PROJECT
from tests.contract.test_docs import blocks, rows
from tools.parameters_page import fields_of_requests
from tools.walk_docs import commands
from worker.app.build import build_worker
from worker.app.cli.commands import parser_of
from worker.app.settings import Settings
from worker.catalog.registry import load_registry
from worker.core.job_input import ACTIONS
from worker.store.refs import parse_reference
from worker.wire.request import ALIASES, decode_envelope, decode_generation

RECIPES = (PROJECT / "docs/recipes.md").read_text()
MIGRATING = (PROJECT / "docs/migrating.md").read_text()
PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", PROJECT / "SECURITY.md", *(PROJECT / "docs").glob("*.md")]
COMMANDS = [line for language in ("bash", "console") for block in blocks(RECIPES, language) for line in commands(block)]
REGISTRY = load_registry(PROJECT / "models.yaml", parse_source=parse_reference)


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    volume = tmp_path_factory.mktemp("volume")
    return build_worker(Settings(volume_dir=volume, allow_unregistered_models=True, OFFLINE=True))


def anchors(page: Path) -> set[str]:
    text = page.read_text()
    named = set(re.findall(r'<a id="([^"]+)"', text))
    for title in re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M):
        named.add(re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-"))
    return named


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_into_the_project_leads_somewhere(page):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path), target


def test_the_index_has_every_page():
    index = (PROJECT / "docs/README.md").read_text()
    pages = {path.name for path in (PROJECT / "docs").glob("*.md")} - {"README.md"}
    linked = re.findall(r"\]\(([\w.-]+\.md)\)", index)
    assert sorted(linked) == sorted(pages)
    users, contributors = index.split("## To change it")
    assert "tour.md" in contributors
    assert "tour.md" not in users


def words_of(command: str) -> tuple[dict[str, str], list[str]]:
    """Return a command's variables and its words, without its comment."""
    words = shlex.split(command, comments=True)
    variables = {}
    while re.match(r"[A-Z_]+=", words[0]):
        name, _, value = words.pop(0).partition("=")
        variables[name] = value
    return variables, words


def names_a_setting(name: str) -> bool:
    settings = {field.upper() for field in Settings.model_fields}
    return name in settings | {str(field.alias or field.validation_alias) for field in Settings.model_fields.values()}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_recipes_is_taken(command):
    variables, words = words_of(command)
    for name in variables:
        assert names_a_setting(name), name
    program = words[0]
    if program == ".venv/bin/imgworker":
        arguments = parser_of("imgworker").parse_args(words[1:])
        model = getattr(arguments, "model", None)
        assert model is None or REGISTRY.find(model) or (PROJECT / model).exists(), model
    elif program == "make":
        assert re.search(rf"^{words[1]}:", (PROJECT / "Makefile").read_text(), re.M)
    elif program == "docker":
        dockerfile = (PROJECT / "Dockerfile").read_text()
        for option, value in pairwise(words):
            if option == "--build-arg":
                assert re.search(rf"^ARG {value.partition('=')[0]}\b", dockerfile, re.M), value
            if option == "--secret":
                assert re.match(r"id=(\w+)", value)[1] in dockerfile
    else:
        assert program == "kill"


def test_commands_that_are_not_run_are_marked_so():
    ran = [line for block in blocks(RECIPES, "bash") for line in commands(block)]
    assert [words_of(line)[1][:2] for line in ran] == [
        ["make", "run"],
        [".venv/bin/imgworker", "inspect"],
        [".venv/bin/imgworker", "run"],
        [".venv/bin/imgworker", "plan"],
    ]
    assert not re.findall(r"```(?:sh|shell)\b", RECIPES)


def test_models_fit_the_memory_that_the_recipe_says():
    said = {
        name: int(row[1].split()[0])
        for row in rows(RECIPES, "## Choose a GPU")
        for name in re.findall(r"`([^`]+)`", row[0])
    }
    assert len(said) >= 10
    for name, gigabytes in said.items():
        assert (REGISTRY.find(name).min_vram_gb or 0) <= gigabytes
    needy = {id for id, spec in REGISTRY.models.items() if spec.min_vram_gb}
    assert needy - said.keys() == set()


def test_every_entry_of_models_yaml_that_is_shown_is_one(tmp_path):
    for text in blocks(RECIPES, "yaml"):
        path = tmp_path / "models.yaml"
        path.write_text(text)
        assert [*load_registry(path, parse_source=parse_reference).models]


@pytest.mark.parametrize(
    "text", [text for page in (RECIPES, MIGRATING) for text in blocks(page, "json")], ids=lambda text: text[:60]
)
async def test_a_request_of_the_pages_is_accepted(text, worker):
    sent = json.loads(text)
    sent = sent.get("input", sent)
    if action := sent.get("action"):
        assert action in ACTIONS
        assert REGISTRY.find(sent["model"])
        return
    await worker.operations.generation.accept(decode_generation(decode_envelope(sent).fields), "x")


def test_the_fields_that_others_call_otherwise_are_fields_here():
    listed = re.findall(r"^\| `(\w+)`", (PROJECT / "docs/parameters.md").read_text(), re.M)
    known = fields_of_requests() | set(listed) | set(ALIASES)
    found = set()
    for heading in ("From worker-sdxl", "From worker-comfyui", "From AUTOMATIC1111's API"):
        for row in rows(MIGRATING, f"## {heading}"):
            column = row[0] if row[1] == "the same" else row[1]
            found |= set(re.findall(r"`([a-z_]+)`", column))
    found -= {"scale", "start", "end"}  # of a ControlNet
    assert len(found) > 20
    assert found <= known


async def test_the_scheduler_names_of_worker_sdxl_are_taken(worker):
    (row,) = [row for row in rows(MIGRATING, "## From worker-sdxl") if row[0] == "`scheduler`"]
    names = re.findall(r"`([^`]+)`", row[2])
    assert len(names) == 7
    for name in names:
        fields = decode_envelope({"model": "sdxl", "prompt": "x", "scheduler": name}).fields
        await worker.operations.generation.accept(decode_generation(fields), "x")

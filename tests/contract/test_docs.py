"""The documents say what the code does: commands run, examples are accepted, tables equal the code."""

import json
import re

import pytest

from tests.conftest import PROJECT
from worker.app.build import build_worker
from worker.app.settings import Settings
from worker.catalog.interface.request_fields import common_fields
from worker.core import errors
from worker.core.job_input import ACTIONS
from worker.wire.request import ALIASES

README = (PROJECT / "README.md").read_text()
API = (PROJECT / "docs/api.md").read_text()
TOUR = (PROJECT / "docs/tour.md").read_text()


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def rows(text, heading):
    table = text.split(heading, 1)[1]
    found = []
    for line in table.splitlines():
        if line.startswith("|"):
            found.append([cell.strip() for cell in line.strip("|").split("|")])
        elif found:
            break
    return found[2:]


COMMANDS = [
    line.split("#")[0].strip() for block in blocks(README, "bash") for line in block.splitlines() if line.strip()
]


@pytest.mark.parametrize("target", re.findall(r"^make ([\w-]+)", "\n".join(COMMANDS), re.M))
def test_a_make_target_of_the_readme_exists(target):
    assert re.search(rf"^{target}\b.*:", (PROJECT / "Makefile").read_text(), re.M)


def example_inputs():
    for text in blocks(README, "json"):
        try:
            value = json.loads(text)
        except ValueError:
            continue
        if "input" in value:
            yield value["input"]


async def test_the_readmes_requests_are_accepted_and_its_error_is_the_real_one(tmp_path):
    worker = build_worker(Settings(volume_dir=tmp_path))
    inputs = list(example_inputs())
    assert len(inputs) == 2
    from worker.wire.request import decode_envelope, decode_generation

    accept = worker.operations.generation.accept
    job = await accept(decode_generation(decode_envelope(inputs[0]).fields), "x")
    assert job.seeds == (42, 43)
    with pytest.raises(errors.ParameterOutOfRange) as failure:
        await accept(decode_generation(decode_envelope(inputs[1]).fields), "x")
    assert json.dumps(failure.value.message)[1:-1] in README


def test_the_action_table_is_the_codes():
    assert [row[0].strip("`") for row in rows(API, "## Actions")] == list(ACTIONS)


def test_the_alias_table_is_the_codes():
    said = {
        alias: row[1].strip("`") for row in rows(API, "### Other names") for alias in re.findall(r"`(\w+)`", row[0])
    }
    assert said == dict(ALIASES)


def test_every_file_that_the_tour_names_exists():
    named = set(re.findall(r"`?((?:worker|tests|docs)/[\w/]+\.(?:py|md|yaml))`?", TOUR + README))
    short = set(re.findall(r"\b((?:transport|service|catalog|store|engine|media)/\w+\.py)", TOUR))
    assert named and short
    missing = [name for name in named if not (PROJECT / name).exists()]
    missing += [name for name in short if not (PROJECT / "worker" / name).exists()]
    assert not missing


def test_the_tour_is_walked_in_ten_minutes():
    assert len(TOUR.splitlines()) <= 150, "what is decided otherwise than expected belongs into docs/decisions.md"
    prose = re.sub(r"^[|#!].*$", "", re.sub(r"```.*?```", "", TOUR, flags=re.S), flags=re.M)
    blocks = re.split(r"\n\s*\n|\n(?=[-\d])", prose)
    sentences = [item.split() for block in blocks for item in re.split(r"(?<=[.!?:])\s+(?=[A-Z`*])", block)]
    assert len(sentences) > 70
    assert [" ".join(words) for words in sentences if len(words) > 35] == []


def test_every_room_of_the_tour_is_a_room():
    said = {name for row in rows(TOUR, "## The rooms") for name in re.findall(r"`(\w+)`", row[0])}
    real = {path.name for path in (PROJECT / "worker").iterdir() if (path / "__init__.py").exists()}
    assert said == real


def test_the_page_of_models_is_what_the_tables_say() -> None:
    from tools.models_page import PAGE, page

    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m tools.models_page"


def test_the_page_of_schedulers_is_what_the_tables_say() -> None:
    from tools.schedulers_page import PAGE, page

    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m tools.schedulers_page"


def test_every_field_that_a_schema_lists_has_a_row_and_a_meaning() -> None:
    from tools.parameters_page import PAGE, fields_of_requests, listed_parameters, page

    text = PAGE.read_text(encoding="utf-8")
    assert text == page(), "run python -m tools.parameters_page"
    described = rows(text, "have no row in")
    assert [row for row in described if not all(row)] == []
    told = {name for row in rows(API, "## Fields of a generation") for name in re.findall(r"`(\w+)`", row[0])}
    assert told == fields_of_requests()
    told |= {row[0].strip("`") for row in described}
    assert {*listed_parameters(), *common_fields()} - told == set()
    assert len(listed_parameters()) > 200


def test_the_image_of_the_rooms_is_that_of_the_code():
    from tools.rooms_page import IMAGE, floors, image, reduced

    names = {path.parent.name for path in (PROJECT / "worker").glob("*/__init__.py")}
    assert {name for floor in floors() for name in floor} == names
    assert IMAGE.read_text(encoding="utf-8") == image(), "run make rooms"
    assert reduced([("a", "b"), ("b", "c"), ("a", "c")]) == {("a", "b"), ("b", "c")}


CROWDED = sorted(
    folder
    for folder in (PROJECT / "worker").rglob("*")
    if folder.is_dir() and len([file for file in folder.glob("*.py") if file.name != "__init__.py"]) > 10
)


@pytest.mark.parametrize("folder", CROWDED, ids=lambda folder: folder.name)
def test_a_room_of_many_files_says_what_each_is_for(folder):
    text = (folder / "README.md").read_text()
    assert len(text.splitlines()) <= 40
    named = set(re.findall(r"`(\w+\.py)`", text))
    real = {file.name for file in folder.glob("*.py") if file.name != "__init__.py"}
    assert named == real


def test_the_page_of_the_terminal_names_every_command_and_every_option_of_run():
    from worker.app.cli.commands import parser_of

    def options(parser):
        return {text for action in parser._actions for text in action.option_strings} - {"-h", "--help"}

    page = (PROJECT / "docs/terminal.md").read_text()
    commands, *sections = page.split("\n## ")
    (choices,) = [action.choices for action in parser_of("x")._actions if isinstance(action.choices, dict)]
    assert re.findall(r"^\| `(\w+)`", commands, re.M) == [*choices]
    rows = re.findall(r"^\| (`-.*?) \|", sections[0], re.M)
    assert {text for row in rows for text in re.findall(r"`(-[\w-]+)`", row)} == options(choices["run"])

"""Recipes that the operator writes from afar: nothing stands in the folder that did not pass every check."""

import pytest

from tests.fakes.web_worker import WebWorker
from tests.service.recipes.test_refusals import RIGHT
from tests.transport.web.test_admin import ADMIN, ANNA, bearer

DETAIL = """\
inputs:
  image: {type: image}
steps:
  parts:
    model: any
    image: ${inputs.image}
    detail: {find: "file:/etc/hosts.onnx"}
    width: 64
    height: 64
"""


@pytest.fixture
def served(tmp_path):
    with WebWorker(tmp_path, api_keys=ANNA, admin_keys=ADMIN) as worker:
        worker.folder = tmp_path / "recipes"
        yield worker


def post(served, path, name="closer", text=RIGHT, key=ADMIN, **more):
    sent = {"name": name, "text": text, **more}
    return served.http.post(f"/admin/recipes/{path}", json=sent, headers=bearer(key))


def test_what_is_right_is_saved_and_served_at_once(served):
    assert post(served, "check").json() == {
        **{"right": True, "steps": 2, "models": ["tiny"]},
        **{"saved": False, "served": False},
    }
    assert not served.folder.exists()
    assert post(served, "save").json()["served"] is True
    assert (served.folder / "closer.yaml").read_text() == RIGHT
    assert served.http.get("/admin/recipes/closer", headers=bearer(ADMIN)).json() == {"name": "closer", "text": RIGHT}
    sent = {"model": "closer", "prompt": "x", "seed": 5}
    assert served.http.post("/run", json=sent, headers=bearer(ANNA)).json()["model"] == "closer"
    changed = RIGHT.replace("closer\n", "nearer\n")
    refused = post(served, "save", text=changed).json()
    assert (refused["field"], refused["error"][:33]) == ("name", "There is a recipe closer already;")
    assert (served.folder / "closer.yaml").read_text() == RIGHT
    assert post(served, "save", text=changed, replace=True).json()["served"] is True
    assert dict(served.context.worker.registry.recipes["closer"].steps[1].fields)["prompt"].endswith("nearer")
    assert [path.name for path in served.folder.iterdir()] == ["closer.yaml"]


@pytest.mark.quick_rows(3)
@pytest.mark.parametrize(
    ("name", "text", "line", "problem"),
    [
        ("closer", RIGHT.replace("strength: $", "strenght: $"), 13, "steps.again: strenght is not a parameter"),
        ("closer", "steps: {", 1, "is not valid YAML"),
        ("closer", "\0", 1, "is not valid YAML"),
        (
            "closer",
            RIGHT.replace("model: tiny\n    prompt: a", "model: org/unseen\n    prompt: a"),
            10,
            "steps.again: mod",
        ),
        ("tiny", RIGHT, 1, "tiny already names the model tiny; rename the file."),
        ("parts", DETAIL, 7, "a detector of a recipe from afar must lie in the folder of recipes."),
    ],
)
def test_what_is_wrong_is_told_with_its_line_and_nothing_is_written(served, name, text, line, problem):
    for path in ("check", "save"):
        told = post(served, path, name, text).json()
        assert (told["right"], told["line"], told["problem"][: len(problem)]) == (False, line, problem)
    assert not served.folder.exists()
    assert served.context.builder.built == 0


@pytest.mark.quick_rows(3)
@pytest.mark.parametrize("name", ["../closer", "a/b", "", "Closer", ".closer", "closer.yaml", "a" * 65])
def test_a_name_that_could_be_another_place_is_refused(served, name, tmp_path):
    before = {*tmp_path.rglob("*.yaml")}
    for path in ("check", "save"):
        answer = post(served, path, name)
        assert (answer.status_code, answer.json()["field"]) == (400, "name")
    assert {*tmp_path.rglob("*.yaml")} == before


def test_it_is_for_the_operator_alone(served):
    assert [post(served, path, key=ANNA).status_code for path in ("check", "save")] == [403, 403]
    assert served.http.get("/admin/recipes/closer", headers=bearer(ANNA)).status_code == 403
    assert served.http.get("/admin/recipes/none", headers=bearer(ADMIN)).json()["code"] == "model_not_found"
    assert not served.folder.exists()


def test_a_single_file_is_no_place_for_a_further_one(tmp_path):
    (tmp_path / "one.yaml").write_text(RIGHT)
    with WebWorker(tmp_path, admin_keys=ADMIN, recipes=tmp_path / "one.yaml") as worker:
        assert "RECIPES names a single file" in post(worker, "save", "other").json()["error"]

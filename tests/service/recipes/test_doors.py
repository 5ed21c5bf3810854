"""A recipe is a model at every door, and behind a gateway: callers cannot tell it from one."""

import pytest

from tests.fakes.web_worker import WebGateway, WebWorker
from tests.service.recipes.test_refusals import RIGHT
from tests.transport.web.doors import DOORS

SIZED = RIGHT.replace(
    "inputs:\n", "inputs:\n  width: {type: integer, minimum: 32}\n  height: {type: integer, default: 64}\n"
).replace(
    "    prompt: ${inputs.prompt}\n",
    "    prompt: ${inputs.prompt}\n    width: ${inputs.width}\n    height: ${inputs.height}\n",
)
FROM_IMAGE = RIGHT.replace("inputs:\n", "inputs:\n  image: {type: image}\n").replace(
    "    prompt: ${inputs.prompt}\n", "    prompt: ${inputs.prompt}\n    image: ${inputs.image}\n"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("doors")
    (root / "recipes").mkdir()
    (root / "recipes/closer.yaml").write_text(SIZED)
    (root / "recipes/changed.yaml").write_text(FROM_IMAGE)
    return root


@pytest.fixture(scope="module")
def served(folder):
    with WebWorker(folder) as worker:
        yield worker


@pytest.mark.quick_rows(5)
@pytest.mark.parametrize("door", DOORS)
def test_every_door_draws_with_it(served, door):
    ran = len(served.context.engine.ran)
    assert DOORS[door](served, {"model": "changed" if "edit" in door else "closer"}, {}).code is None
    assert [job.id.rpartition(".")[2] for job in served.context.engine.ran[ran:]] == ["base", "again"]


def test_lists_and_schemas_have_it(served):
    for path in ("/models", "/v1/models", "/diffusers/models", "/sdapi/v1/sd-models"):
        assert "closer" in served.http.get(path).text, path
    assert served.http.get("/models/closer").json()["source"] == "recipe"
    assert served.http.get("/models/closer/schema").json()["required"] == ["width", "prompt"]
    assert len(served.http.post("/plan", json={"model": "closer"}).json()["steps"]) == 2


@pytest.mark.slow
def test_a_gateway_sends_each_step_to_a_worker_and_the_pixels_are_the_same(served, folder, tmp_path):
    with WebGateway(tmp_path, {"one": {"url": served.origin}}, recipes=folder / "recipes") as gateway:
        sent = {"model": "closer", "prompt": "x", "width": 64, "height": 64, "seed": 5}
        by_gateway = gateway.http.post("/run", json=sent).json()
        assert by_gateway["image"] == served.http.post("/run", json=sent).json()["image"]
        assert [step["model"] for step in by_gateway["steps"]] == ["tiny", "tiny"]
        assert by_gateway["placement"]["replica"] == "one"
        first, second = (job.image for job in served.context.engine.ran[-4:-2])
        assert (first, second.data) == (None, served.context.engine.pixels(served.context.engine.ran[-4], 5).data)

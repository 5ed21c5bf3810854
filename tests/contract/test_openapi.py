"""The HTTP server is what its OpenAPI document says: whatever is asked, nothing fails and no answer is undocumented."""

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from tests.fakes.web_worker import WebWorker

# Left out are the two checks that ask for a schema to say everything: which fields a model takes is in its own schema
# (GET /models/{id}/schema), and a job that is handed in is judged when it runs.
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,unsupported_method"
)


@pytest.mark.slow
def test_schemathesis_finds_no_failure_and_no_undocumented_answer(tmp_path):
    tool = Path(sys.executable).with_name("schemathesis")
    # Of models that are there: one that cannot be fetched is a 502, and the tool finds every id that is listed.
    models = {name: {"source": "file:models/sd1"} for name in ("tiny", "org/other")}
    (tmp_path / "here.yaml").write_text(json.dumps({"models": models}))
    # Discovery of a worker that is offline is one, too.
    with WebWorker(tmp_path, models_yaml=tmp_path / "here.yaml", edit_model="tiny", discovery=False) as served:
        command = [tool, "run", f"{served.origin}/openapi.json", "--checks", CHECKS, "--max-examples", "5"]
        command += ["--seed", "1", "--generation-database", "none", "--request-timeout", "20", "--no-color"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    with WebWorker(tmp_path_factory.mktemp("document")) as served:
        yield served.http.get("/openapi.json").json()


def test_every_route_says_what_it_does_and_its_examples_fit_its_schema(document):
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert operation["summary"], path
            assert "422" not in operation["responses"]
            body = operation.get("requestBody", {}).get("content", {}).get("application/json")
            for example in (body or {}).get("examples", {}).values():
                schema = {**body["schema"], "components": document["components"]}
                jsonschema.validate(example["value"], schema)


def test_a_generation_is_described_by_the_fields_that_the_wire_takes(document):
    from worker.catalog.interface.request_fields import request_fields

    described = document["components"]["schemas"]["Generation"]["properties"].keys()
    assert described == request_fields().model_fields.keys() - {"params"} | {"action"}

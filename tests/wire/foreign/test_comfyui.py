"""A ComfyUI workflow is refused with the request that says the same."""

import json

import pytest

from tests.wire.foreign.workflows import WORKFLOWS
from worker.core.errors import InvalidRequest
from worker.wire.request import decode_envelope, decode_generation, decode_input


@pytest.mark.parametrize("name", WORKFLOWS)
@pytest.mark.parametrize("key", ["workflow", "prompt", None])
def test_a_workflow_is_answered_with_the_request_that_it_amounts_to(name, key):
    workflow, expected = WORKFLOWS[name]
    refusal = decode_input({key: workflow} if key else workflow).request
    assert isinstance(refusal, InvalidRequest) and refusal.field == "workflow"
    said = refusal.details["request"]["input"]
    assert {key: value for key, value in said.items() if key != "vae"} == expected
    assert json.dumps({"input": said}, ensure_ascii=False) in refusal.message  # ready to be copied
    assert expected["model"] in refusal.message and "a house" in refusal.message
    assert decode_generation(decode_envelope(said).fields).prompt == "a house"  # it can be sent


def test_a_workflow_that_is_not_understood_is_refused_all_the_same():
    for workflow in ({}, [], {"1": {"class_type": "Note", "inputs": {}}}, {"nodes": [], "links": []}, "{}"):
        refusal = decode_input({"workflow": workflow}).request
        assert isinstance(refusal, InvalidRequest) and "ComfyUI" in refusal.message, workflow


def test_a_graph_that_leads_in_a_circle_ends():
    looped = {
        "1": {"class_type": "KSampler", "inputs": {"positive": ["2", 0], "latent_image": ["3", 0], "model": ["1", 0]}},
        "2": {"class_type": "ConditioningCombine", "inputs": {"conditioning_1": ["2", 0], "text": ["2", 0]}},
        "3": {"class_type": "Reroute", "inputs": {"": ["3", 0]}},
    }
    assert isinstance(decode_input({"workflow": looped}).request, InvalidRequest)

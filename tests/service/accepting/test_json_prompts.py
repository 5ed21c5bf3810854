"""A class whose prompt is JSON takes plain words too, and says what it made of them."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from worker.catalog.pipelines.table import pipeline_row
from worker.service.accepting.rules import prompt_in_its_form


def call(pipeline: str) -> Any:
    return SimpleNamespace(row=pipeline_row(pipeline), spec=SimpleNamespace(id="org/fibo-edit"))


@pytest.mark.parametrize("words", ["make it blue", 'a "quoted" word', "[1, 2]", '{"other": 1}', "{", "édit"])
def test_plain_words_become_the_json_that_the_class_reads(words):
    prompt, (note,) = prompt_in_its_form(words, call("BriaFiboEditPipeline"))
    assert json.loads(prompt) == {"edit_instruction": words}
    assert "edit_instruction" in note


def test_what_is_that_json_already_and_prompts_of_other_classes_stay():
    own = '{"edit_instruction": "make it blue", "style": "photo"}'
    assert prompt_in_its_form(own, call("BriaFiboEditPipeline")) == (own, ())
    assert prompt_in_its_form("make it blue", call("BriaFiboPipeline")) == ("make it blue", ())

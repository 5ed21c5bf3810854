"""diffusers' own tables of which class serves which task, read without importing it."""

import importlib

import pytest

from worker.catalog.classes.auto_pipelines import _TABLES, auto_pipelines
from worker.core.model import Task


@pytest.mark.parametrize(("table", "task"), _TABLES.items())
def test_what_is_read_is_what_diffusers_has(table, task):
    module = importlib.import_module("diffusers.pipelines.auto_pipeline")
    listed = {cls.__name__ for cls in getattr(module, table).values()}
    assert listed
    assert [name for name in listed if name not in auto_pipelines(name).values()] == []


def test_the_other_tasks_of_a_family_without_a_row():
    found = auto_pipelines("IFPipeline")
    assert found[Task.IMAGE_TO_IMAGE] == "IFImg2ImgPipeline"
    assert found[Task.INPAINTING] == "IFInpaintingPipeline"


@pytest.mark.parametrize("name", ["NoSuchPipeline", "", None])
def test_an_unknown_class_has_none(name):
    assert auto_pipelines(name) == {}

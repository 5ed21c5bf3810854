"""Half precision, as a GPU has it: a class is generated in what its schema offers, and refused in what it does not."""

from dataclasses import replace

import pytest

from tests.asking import on_one_loop, perform
from tests.zoo import RECIPES
from tests.zoo.plain import quiet
from tests.zoo.served import ServedZoo

_RECIPES = {recipe.pipeline: recipe for recipe in RECIPES}
_NUMPYS = ("RePaintPipeline", "LDMTextToImagePipeline", "LDMSuperResolutionPipeline", "VQDiffusionPipeline")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> ServedZoo:
    return ServedZoo(tmp_path_factory.mktemp("half"))


@pytest.mark.parametrize("name", _NUMPYS)
@pytest.mark.quick_rows(1)
def test_a_class_that_hands_its_image_to_numpy_is_refused_in_bfloat16_and_runs_in_float16(zoo: ServedZoo, name: str):
    quiet()
    recipe, folder = _RECIPES[name], zoo.root / name
    refused = zoo.run(replace(recipe, request={**recipe.request, "precision": "bf16"}), folder)
    assert name in refused.error and "cannot compute in bfloat16" in refused.error and "(precision)" in refused.error
    assert zoo.worker.engine.resident_models == []
    schema = on_one_loop(perform(zoo.worker, {"action": "schema", "model": f"file:{folder}"}, f"schema-{name}"))
    assert "bf16" not in schema["properties"]["precision"]["enum"]
    assert zoo.run(replace(recipe, request={**recipe.request, "precision": "fp16"}), folder).error == ""
    on_one_loop(perform(zoo.worker, {"action": "unload", "model": f"file:{folder}"}, f"unload-{name}"))


def test_ledits_of_sdxl_is_refused_in_float16_and_runs_in_bfloat16(zoo: ServedZoo):
    quiet()
    recipe = _RECIPES["LEditsPPPipelineStableDiffusionXL"]
    half = [replace(recipe, request={**recipe.request, "precision": each}) for each in ("fp16", "bf16")]
    refused, ran = (zoo.run(each, zoo.root / recipe.pipeline).error for each in half)
    assert "cannot compute in float16; send bf16 or fp32" in refused
    assert ran == ""


@pytest.mark.slow
def test_a_video_is_given_to_lucys_vae_in_its_own_dtype(zoo: ServedZoo):
    quiet()
    recipe = _RECIPES["LucyEditPipeline"]
    half = replace(recipe, request={**recipe.request, "precision": "bf16"})
    assert zoo.run(half, zoo.root / recipe.pipeline).error == ""

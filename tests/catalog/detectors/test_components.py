import json
import random
import sys
from pathlib import Path

import pytest

from tests.catalog.corpus import index, stored
from tests.counting import calls_of
from worker.catalog.detector import detect_header
from worker.catalog.detectors.components import component_classes, normalised, resemble, resemble_names
from worker.core.model import Kind

CLASSES = component_classes()
KINDS = ("denoiser", "vae", "controlnet", "t2i-adapter", "motion-module")
# written from the installed diffusers again and compared; small ones, so that the test stays short
REGENERATED = ("AutoencoderTiny", "T2IAdapter", "CogView4Transformer2DModel", "MotionAdapter", "AutoencoderKLWan")


def concrete(pattern: str) -> str:
    return pattern.replace("#", "0")


def test_the_table_covers_every_kind():
    assert {row.kind.value for row in CLASSES.values()} == set(KINDS)
    assert len(CLASSES) > 110
    users = [row for row in CLASSES.values() if row.pipelines]
    assert len(users) > 100
    assert CLASSES["FluxTransformer2DModel"].pipelines[0] == "FluxPipeline"


def test_every_class_is_found_with_a_fifth_of_its_names_gone():
    chance = random.Random(3)
    right = asked = 0
    for row in CLASSES.values():
        names = sorted(concrete(pattern) for pattern in row.names)
        for _ in range(5):
            kept = chance.sample(names, round(len(names) * 0.8)) if len(names) > 9 else names
            found = resemble_names(kept)
            assert found is not None, row.name
            asked += 1
            right += row.name in {other.name for other in found.classes}
            # what is left may be all that a plainer class has, and then nothing can tell them apart
            plainer = any(normalised(name) not in other.names for other in found.classes for name in kept)
            assert row in found.classes or not plainer, row.name
    assert asked == 5 * len(CLASSES)
    assert right / asked > 0.99


def test_a_tie_lists_every_class_with_the_same_names():
    found = resemble_names(concrete(pattern) for pattern in CLASSES["WanTransformer3DModel"].names)
    assert [row.name for row in found.classes] == [
        "ChronoEditTransformer3DModel", "SkyReelsV2Transformer3DModel", "WanTransformer3DModel",
    ]  # fmt: skip
    assert detect_header(stored("wan-t2v-diffusers")).confidence == "medium"
    assert detect_header(stored("qwen-image")).confidence == "high"


def test_a_class_without_a_row_is_named_with_its_pipeline():
    found = detect_header(stored("cosmos-diffusers"))
    assert (found.kind, found.architecture, found.component_class) == (Kind.DENOISER, None, "CosmosTransformer3DModel")
    assert found.pipeline == "CosmosTextToWorldPipeline"
    assert "diffusers' CosmosTransformer3DModel (100%)" in found.evidence[-1]


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "transformer."])
def test_prefixes_of_tools_are_taken_off(prefix):
    names = {prefix + concrete(pattern): (8, 8) for pattern in CLASSES["ErnieImageTransformer2DModel"].names}
    assert detect_header(index(names)).architecture == "ernie-image"


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("blocks.12.attn.0.weight", "blocks.#.attn.#.weight"),
        ("linear_1.norm2.weight", "linear_1.norm2.weight"),
        ("all_x_embedder.2-1.weight", "all_x_embedder.#-#.weight"),
    ],
)
def test_only_numbers_that_stand_alone_are_dropped(name, wanted):
    assert normalised(name) == wanted


def test_nothing_is_resembled_by_chance():
    assert resemble(index({f"layer.{at}.weight": (8, 8) for at in range(50)})) is None
    assert resemble(index({"weight": (1,), "bias": (1,)})) is None
    assert resemble(index({})) is None


def test_a_file_is_compared_in_a_few_calls_for_each_name():
    source = stored("sdxl")
    resemble(source)  # reads the table
    assert calls_of(lambda: resemble(source)) < 20 * len(source.tensors)


def test_the_table_is_what_the_installed_diffusers_gives():
    sys.path.insert(0, str(Path(__file__).parents[3]))
    from tools.component_signatures import kind_of, signature_of

    for name in REGENERATED:
        assert frozenset(signature_of(name)) == CLASSES[name].names
        assert kind_of(name) == CLASSES[name].kind


def test_the_table_was_made_by_the_pinned_diffusers():
    import gzip

    from worker.catalog.detectors.components import FILE

    version = json.loads(gzip.decompress(FILE.read_bytes()))["diffusers"]
    pins = (Path(__file__).parents[3] / "requirements.txt").read_text()
    assert f"diffusers=={version}" in pins, "run `make signatures` after a new diffusers is pinned"

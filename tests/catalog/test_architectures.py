import subprocess
import sys

import pytest

from tests.catalog.corpus import NAMES, stored
from tests.catalog.expected import EXPECTED
from worker.catalog import architectures
from worker.catalog.architectures import ARCHITECTURES, architecture, by_class, fits, siblings, variant_defaults
from worker.catalog.classes.tasks import class_tasks
from worker.catalog.detectors.companions import COMPANIONS
from worker.catalog.detectors.controlnets import CONTROLNETS
from worker.catalog.detectors.encoders import TEXT_ENCODERS, VAES
from worker.core.errors import ModelNotFound
from worker.core.model import Kind, Task

MODELS = [name for name in EXPECTED if EXPECTED[name][0] in (Kind.CHECKPOINT, Kind.DENOISER)]
# rows without a header of their own: what is left when no base shows, and rare siblings of rows that have one
UNMET = {
    "a ControlNet-XS", "a ControlNet for Cosmos", "a ControlNet for Hunyuan-DiT", "the image encoder clip-vit-g",
    "an upscaler of the kind DAT", "an upscaler of the kind SPAN", "a face restorer (GFPGAN or CodeFormer)",
    "kl-8", "kl-32", "t5-xl", "byt5-small", "gemma-3-12b", "qwen2-1.5b",
}  # fmt: skip
WANTED = (
    "sd1 sd2 sdxl sdxl-refiner sd3 flux1 flux1-schnell flux1-fill flux1-kontext flux1-control flux2 chroma qwen-image "
    "qwen-image-edit z-image glm-image lumina2 sana pixart-sigma pixart-alpha kolors hunyuan-dit auraflow cogview4 "
    "hidream stable-cascade cogvideox wan ltx"
)


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_header_matches_at_most_its_own_row(name):
    index = stored(name)
    rows = [row.id for row in ARCHITECTURES if any(part and part(index) for part in (row.checkpoint, row.denoiser))]
    unread = {row.id for row in ARCHITECTURES if row.unread and row.unread(index)}  # and refused by that row's name
    assert len(rows) <= 1
    # a row may have no condition for files that diffusers saved: those are known by their model class
    assert set(rows) <= ({EXPECTED[name][1]} if name in MODELS else unread)


@pytest.mark.parametrize("name", [name for name in EXPECTED if EXPECTED[name][0] is not Kind.CHECKPOINT])
def test_a_stored_header_matches_the_tables_of_one_kind(name):
    index, kind = stored(name), EXPECTED[name][0]
    kinds = {row.kind for row in (*COMPANIONS, *VAES, *TEXT_ENCODERS) if row.condition(index)}
    kinds |= {Kind.CONTROLNET for row in CONTROLNETS if row.condition(index)}
    assert kinds <= {kind}


def test_every_row_has_a_stored_header():
    covered = {architecture for _, architecture in EXPECTED.values()} | {row.twin for row in ARCHITECTURES}
    twins = {row.id for row in ARCHITECTURES if row.twin}
    # a folder of several models, of which no single file is the model; and two whose class many families share
    folders = {"kandinsky-2.2", "animatediff", "sd-latent-upscaler", "dreamlite", "omnigen"}
    assert {row.id for row in ARCHITECTURES} - covered - twins - folders == set()


@pytest.mark.parametrize("row", ARCHITECTURES, ids=lambda row: row.id)
def test_a_family_names_every_task_that_its_classes_serve(row):
    served = {task for name in row.pipelines.values() for task in class_tasks(name)}
    assert served <= set(row.pipelines)


def test_every_condition_has_a_stored_header():
    met = {row.id for row in ARCHITECTURES for name in NAMES if row.denoiser and row.denoiser(stored(name))}
    assert {row.id for row in ARCHITECTURES if row.denoiser} == met


@pytest.mark.parametrize("table", [COMPANIONS, CONTROLNETS, (*VAES, *TEXT_ENCODERS)])
def test_every_row_beside_the_models_is_met_or_is_the_last_resort(table):
    met = {id(row) for row in table for name in NAMES if row.condition(stored(name))}
    unmet = {getattr(row, "what", None) or row.variant for row in table if id(row) not in met}
    assert unmet <= UNMET


def test_a_checkpoint_condition_wants_more_than_the_denoiser():
    for row in ARCHITECTURES:
        if row.checkpoint is not None:
            assert row.denoiser is not None
            for name in MODELS:
                if EXPECTED[name] == (Kind.DENOISER, row.id):
                    assert not row.checkpoint(stored(name)), name


def test_the_families_are_there():
    assert set(WANTED.split()) <= {row.id for row in ARCHITECTURES}


@pytest.fixture(scope="module")
def diffusers_names():
    """What the installed diffusers exports, from its lazy import structure: no model code is loaded."""
    import diffusers

    return {name for part in diffusers._import_structure.values() for name in part}


def test_every_named_class_exists_in_the_installed_diffusers(diffusers_names):
    named = {name for row in ARCHITECTURES for name in (*row.pipelines.values(), *row.classes)}
    assert len(named) > 100
    assert named - diffusers_names == set()


@pytest.mark.parametrize("row", ARCHITECTURES, ids=lambda row: row.id)
def test_a_row_is_coherent(row):
    assert row.pipelines
    assert row.native_size % row.size_multiple == 0 or row.pipelines.keys().isdisjoint({Task.TEXT_TO_IMAGE})
    assert row.native_size**2 <= row.max_pixels or not row.pipelines.keys() & {Task.TEXT_TO_IMAGE}
    assert row.activation_gb_per_mp > 0
    steps = row.defaults.get("num_inference_steps")
    assert isinstance(steps, int)
    assert 1 <= steps <= row.max_steps
    assert row.family in ("", *(other.id for other in ARCHITECTURES))
    assert row.sibling in (None, *(other.id for other in ARCHITECTURES))
    assert (row.repository is None) == (row.sibling is None)
    assert row.twin in (None, *(other.id for other in ARCHITECTURES))
    for defaults in row.variants.values():
        assert set(defaults) <= {"num_inference_steps", "guidance_scale", "true_cfg_scale"}


def test_a_duplicate_id_or_class_fails():
    with pytest.raises(ValueError, match="sd1 stands in the table twice"):
        architectures._by_id((*ARCHITECTURES, ARCHITECTURES[0]))
    with pytest.raises(ValueError, match="StableDiffusionPipeline is claimed by sd1 and sd1"):
        architectures._by_class((*ARCHITECTURES, ARCHITECTURES[0]))


def test_rows_are_found():
    assert architecture("sdxl").title == "Stable Diffusion XL"
    with pytest.raises(ModelNotFound, match="did you mean"):
        architecture("sdxxl")
    row = by_class("QwenImageEditPlusPipeline")
    assert row is not None
    assert row.id == "qwen-image-edit-plus"
    assert by_class("NoSuchPipeline") is None
    assert {row.id for row in siblings(architecture("sdxl"))} == {"sdxl-refiner", "ssd-1b", "segmind-vega"}


def test_variants_have_their_own_defaults():
    assert variant_defaults("sdxl", "lightning") == {"num_inference_steps": 8, "guidance_scale": 1.0}
    assert variant_defaults("z-image", "base") == {"num_inference_steps": 50, "guidance_scale": 4.0}
    assert variant_defaults("z-image", "turbo") == {}
    assert variant_defaults("sdxl", None) == variant_defaults("sdxl", "nonsense") == variant_defaults(None, "x") == {}


@pytest.mark.parametrize(
    ("adapter", "model", "answer"),
    [
        ("flux1", "flux1-kontext", True),
        ("flux1", "chroma", True),
        ("qwen-image", "qwen-image-edit-plus", True),
        ("sdxl", "sd1", False),
        ("sd1", "sd2", False),
        ("sdxl", "sdxl-refiner", False),
        ("anima", "wan", False),
        (None, "sdxl", True),
        ("sdxl", None, True),
    ],
)
def test_an_adapter_fits_its_family(adapter, model, answer):
    assert fits(adapter, model) is answer


def test_the_catalog_imports_neither_torch_nor_the_network():
    code = (
        "import sys; import worker.catalog.detector, worker.catalog.formats.headers;"
        "bad = {'torch', 'diffusers', 'transformers', 'requests', 'httpx', 'huggingface_hub'} & set(sys.modules);"
        "sys.exit(', '.join(sorted(bad)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr

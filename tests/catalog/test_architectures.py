import subprocess
import sys

import pytest

from tests.catalog.corpus import NAMES, stored
from tests.catalog.test_detector import EXPECTED
from worker.catalog import architectures
from worker.catalog.architectures import ARCHITECTURES, architecture, by_class, fits, siblings
from worker.core.errors import ModelNotFound
from worker.core.model import Kind, Task

MODELS = [name for name in NAMES if EXPECTED[name][0] in (Kind.CHECKPOINT, Kind.DENOISER)]
WANTED = (
    "sd1 sd2 sdxl sdxl-refiner sd3 flux1 flux1-schnell flux1-fill flux1-kontext flux1-control flux2 chroma qwen-image "
    "qwen-image-edit z-image glm-image lumina2 sana pixart-sigma pixart-alpha kolors hunyuan-dit auraflow cogview4 "
    "hidream stable-cascade cogvideox wan ltx"
)


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_header_matches_exactly_one_row(name):
    index = stored(name)
    rows = [row.id for row in ARCHITECTURES if any(part and part(index) for part in (row.checkpoint, row.denoiser))]
    assert rows == ([EXPECTED[name][1]] if name in MODELS else [])


def test_every_condition_has_a_stored_header():
    covered = {EXPECTED[name][1] for name in MODELS}
    # these need an original-layout header that diffusers' classes cannot give
    missing = {"krea2", "pixart-sigma", "hunyuan-dit", "ltx2", "mochi"}
    assert {row.id for row in ARCHITECTURES if row.denoiser} - covered == missing


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
    pytest.importorskip("torch").set_num_threads(1)
    diffusers = pytest.importorskip("diffusers")
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
        "import sys; import worker.catalog.detector, worker.catalog.headers;"
        "bad = {'torch', 'diffusers', 'transformers', 'requests', 'httpx', 'huggingface_hub'} & set(sys.modules);"
        "sys.exit(', '.join(sorted(bad)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr

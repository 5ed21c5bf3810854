"""What a single file lacks, and where it comes from; refused before anything is fetched when nothing has it."""

import json

import pytest

from tests.catalog.corpus import stored
from worker.catalog.call import Model
from worker.catalog.detector import detect_header
from worker.core.errors import AccessDenied, SourceUnavailable, UnsupportedModel
from worker.core.model import Detection, Kind, ModelFiles, ModelSource, ModelSpec, Outline
from worker.core.turn import StopSignal
from worker.service.local.completing import completion
from worker.service.local.provisioning import Provisioner
from worker.store.store import Store

FILE = ModelSource(scheme="hf", locator="someone/tune", filename="tune.safetensors")


def spec(**changes):
    return ModelSpec(id="tune", source=FILE, **changes)


def found(kind, architecture, *parts, encoders=None):
    """A detection; the text encoders among its parts are CLIPs unless `encoders` says."""
    clips = ("clip",) * sum(part.startswith("text_encoder") for part in parts)
    return Detection(kind, "safetensors", architecture, parts=parts, encoders=clips if encoders is None else encoders)


@pytest.mark.parametrize(("encoder", "missing"), [("llm", False), ("clip", True)])
def test_a_files_text_encoder_counts_where_it_is_of_the_kind_that_its_family_has(encoder, missing):
    parts = ("denoiser", "vae", "text_encoder")
    done = completion(Model(spec(), found(Kind.CHECKPOINT, "z-image", *parts, encoders=(encoder,))))
    assert ("text_encoder" in done.missing) is missing
    assert "vae" not in done.missing


@pytest.mark.parametrize(
    ("header", "base"),
    [
        ("wan-ti2v-5b-diffusers", "Wan-AI/Wan2.2-TI2V-5B-Diffusers"),
        ("wan-t2v-diffusers", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"),
        ("wan-i2v-diffusers", "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers"),
    ],
)
def test_a_denoiser_is_completed_from_the_base_of_its_own_latents(header, base):
    assert completion(Model(spec(), detect_header(stored(header)))).base == base


def test_a_whole_checkpoint_of_a_bundled_family_needs_nothing():
    done = completion(
        Model(spec(), found(Kind.CHECKPOINT, "sdxl", "denoiser", "vae", "text_encoder", "text_encoder_2"))
    )
    assert (done.base, done.missing) == (None, ())
    assert done.config.name == "sdxl"


def test_the_refiners_only_text_encoder_is_its_pipelines_second():
    done = completion(Model(spec(), found(Kind.CHECKPOINT, "sdxl-refiner", "denoiser", "vae", "text_encoder")))
    assert (done.base, done.missing) == (None, ())


def test_an_all_in_one_flux_takes_its_tokenizer_alone():
    done = completion(
        Model(
            spec(),
            found(
                Kind.CHECKPOINT, "flux1", "denoiser", "vae", "text_encoder", "text_encoder_2", encoders=("clip", "t5")
            ),
        )
    )
    assert (done.base, done.missing) == ("black-forest-labs/FLUX.1-dev", ("tokenizer_2",))


def test_stable_diffusion_3_without_its_t5_needs_nothing_of_it():
    done = completion(Model(spec(), found(Kind.CHECKPOINT, "sd3", "denoiser", "vae", "text_encoder", "text_encoder_2")))
    assert (done.base, done.missing) == (None, ())


def test_a_unet_alone_takes_all_weights_but_its_own_from_the_base():
    done = completion(Model(spec(), found(Kind.DENOISER, "sdxl", "denoiser")))
    assert done.base == "stabilityai/stable-diffusion-xl-base-1.0"
    assert set(done.missing) == {"vae", "text_encoder", "text_encoder_2"}


def test_a_denoiser_takes_everything_else_from_the_base_that_the_operator_names():
    done = completion(Model(spec(base="my/base"), found(Kind.DENOISER, "sdxl", "denoiser")))
    assert (done.config, done.base, done.missing) == (None, "my/base", ())


def test_a_checkpoint_without_a_vae_takes_that_alone():
    done = completion(Model(spec(base="my/base"), found(Kind.CHECKPOINT, "sd1", "denoiser", "text_encoder")))
    assert (done.base, done.missing) == ("my/base", ("vae",))


def test_a_replaced_part_is_not_missed():
    done = completion(Model(spec(vae="my/vae"), found(Kind.CHECKPOINT, "sd1", "denoiser", "text_encoder")))
    assert done.base is None


def test_without_config_and_base_the_refusal_says_what_to_write():
    with pytest.raises(UnsupportedModel, match=r"base in models\.yaml") as failure:
        completion(Model(spec(), found(Kind.DENOISER, None, "denoiser")))
    assert failure.value.field == "model"


class Shelf:
    """A store that hands out folders, or fails, and remembers in what order it was asked."""

    def __init__(self, root, failures=None):
        self.root = root
        self.failures = failures or {}
        self.asked = []

    def peek(self, source, variant=None):
        return Outline()

    def ensure(self, source, variant, emit, stop):
        self.asked.append((source.locator, source.only))
        if source.locator in self.failures:
            raise self.failures[source.locator]
        root = self.root / source.locator
        return ModelFiles(root=root / source.filename if source.filename else root, total_bytes=10, bytes_downloaded=1)


@pytest.fixture
def shelf(tmp_path):
    """Files of the right names; nothing reads their weights here."""
    from tests.catalog.corpus import sparse_file, stored

    base = tmp_path / "stabilityai/stable-diffusion-xl-base-1.0"
    for place in ("someone/tune", "my/vae", *(base / part for part in ("vae", "text_encoder", "unet"))):
        (tmp_path / place).mkdir(parents=True)
    sparse_file(tmp_path / "someone/tune/tune.safetensors", stored("sdxl-unet"))
    sparse_file(tmp_path / "my/vae/diffusion_pytorch_model.safetensors", stored("vae-4"))
    (tmp_path / "my/vae/config.json").write_text("{}")
    sparse_file(base / "vae/diffusion_pytorch_model.safetensors", stored("vae-4"))
    sparse_file(base / "text_encoder/model.safetensors", stored("clip-l"))
    sparse_file(base / "unet/diffusion_pytorch_model.safetensors", stored("sdxl-unet-diffusers"))
    (base / "model_index.json").write_text(json.dumps({"vae": ["diffusers", "AutoencoderKL"]}))
    return tmp_path


class Names:
    """As much of the resolver as provisioning needs."""

    def part_source(self, reference):
        return ModelSource(scheme="hf", locator=reference)


UNET = found(Kind.DENOISER, "sdxl", "denoiser")


def provide(store, wanted):
    return Provisioner(Store({"hf": store}), Names()).model_files(
        Model(wanted, UNET), lambda progress: None, StopSignal(60)
    )


def test_the_base_comes_first_and_only_what_is_missing_of_it(shelf):
    store = Shelf(shelf)
    files = provide(store, spec())
    parts = ("text_encoder", "text_encoder_2", "vae")
    assert [(place, tuple(sorted(only))) for place, only in store.asked] == [
        ("stabilityai/stable-diffusion-xl-base-1.0", parts),
        ("someone/tune", ()),
    ]
    assert files.config.name == "sdxl"
    assert files.base == shelf / "stabilityai/stable-diffusion-xl-base-1.0"
    assert (files.total_bytes, files.bytes_downloaded) == (20, 2)
    # The base's own UNet is not counted: the file is one.
    assert files.parameters.keys() == {"model", "vae", "text_encoder"}
    assert files.parameters["vae"] == 83_653_863


def test_a_vae_from_elsewhere_is_part_of_the_model(shelf):
    store = Shelf(shelf)
    files = provide(store, spec(vae="my/vae"))
    assert files.parts == {"vae": shelf / "my/vae"}
    assert store.asked[0] == ("my/vae", ("vae",))
    assert files.parameters["vae"] == 83_653_863


@pytest.mark.parametrize("error", [AccessDenied("it is gated", hint="ask"), SourceUnavailable("it does not answer")])
def test_a_base_that_cannot_be_had_costs_no_download_and_says_what_it_was_for(shelf, error):
    store = Shelf(shelf, {"stabilityai/stable-diffusion-xl-base-1.0": error})
    with pytest.raises(type(error)) as failure:
        provide(store, spec())
    text = failure.value.message
    assert "tune is a single file without its" in text
    assert "which come from stabilityai/stable-diffusion-xl-base-1.0" in text
    assert len(store.asked) == 1

"""Models in one file, in the layouts they are published in: the same image as the repository, without a network."""

import shutil
import socket
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from tests import builders, single_files
from tests.images import assert_differs
from worker.core.device import LoadPlan
from worker.core.errors import CorruptFile, LoadFailed, UnsupportedModel, WorkerError
from worker.engine.loader import load_pipeline, view
from worker.service.local import completing

CLASSES = {
    "sd1": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "flux": "FluxPipeline",
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Whoever opens a connection fails, and the test with him."""

    def refuse(self, address):
        raise AssertionError(f"a connection to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Each family as a repository, as one file, and as its bare description."""
    root = tmp_path_factory.mktemp("single")
    for family in CLASSES:
        folder = getattr(builders, f"tiny_{family}")(root / family)
        single_files.single_file(folder, root / f"{family}.safetensors")
        single_files.config_of(folder, root / "configs" / family)
    return root


def load(family, path, **changes):
    container = "gguf" if Path(path).suffix == ".gguf" else "safetensors"
    options = {"format": container, **changes}
    return load_pipeline(LoadPlan(Path(path), CLASSES[family], "float32", "cpu", "none", 0, 0, **options))


def from_repository(cache, family):
    """The repository through plain diffusers. Weights in memory of their own: mapped ones round differently."""
    pipe = getattr(diffusers, CLASSES[family]).from_pretrained(cache / family)
    for part in pipe.components.values():
        for tensor in part.parameters() if isinstance(part, torch.nn.Module) else ():
            tensor.data = tensor.data.clone()
    return pipe


def draw(pipe, **changes):
    pipe.set_progress_bar_config(disable=True)
    options = {"prompt": "a red apple", "num_inference_steps": 2, "width": 64, "height": 64, "output_type": "np"}
    return pipe(**options | changes, generator=torch.Generator().manual_seed(1)).images[0]


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("family", CLASSES)
def test_a_file_draws_bit_by_bit_what_its_repository_draws(cache, family):
    pipe = load(family, cache / f"{family}.safetensors", config=cache / "configs" / family)
    assert np.array_equal(draw(pipe), draw(from_repository(cache, family)))


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
def test_a_denoiser_alone_is_completed_from_its_base(cache, family, prefix, tmp_path):
    tensors = single_files.denoiser(cache / family)
    path = single_files.save(
        {f"{prefix}{name}": tensor for name, tensor in tensors.items()}, tmp_path / "d.safetensors"
    )
    base = shutil.copytree(cache / family, tmp_path / "base")
    # The base has other weights of its own for the denoiser: the file's have to win.
    for own in [*base.glob("unet/*.safetensors"), *base.glob("transformer/*.safetensors")]:
        own.unlink()
    pipe = load(family, path, base=base)
    assert np.array_equal(draw(pipe), draw(from_repository(cache, family)))


def test_a_denoiser_in_the_names_of_diffusers_loads_too(cache):
    (path,) = (cache / "flux/transformer").glob("*.safetensors")
    pipe = load("flux", path, base=cache / "flux")
    assert np.array_equal(draw(pipe), draw(from_repository(cache, "flux")))


def test_a_bases_own_description_goes_before_the_familys(cache, tmp_path):
    """The family's usual transformer is a hundred times as wide as the one that this base is made of."""
    path = single_files.save(single_files.denoiser(cache / "flux"), tmp_path / "tune.safetensors")
    pipe = load("flux", path, config=completing.CONFIGS / "flux1", base=cache / "flux")
    want = single_files.weights(cache / "flux/transformer")
    assert all(torch.equal(want[name], tensor) for name, tensor in pipe.transformer.state_dict().items())


def test_old_clip_names_load(cache, tmp_path):
    file = single_files.load_file(cache / "sd1.safetensors")
    old = {name.replace("transformer.text_model.", "transformer."): tensor for name, tensor in file.items()}
    assert old.keys() != file.keys()
    pipe = load("sd1", single_files.save(old, tmp_path / "old.safetensors"), config=cache / "configs/sd1")
    assert np.array_equal(draw(pipe), draw(from_repository(cache, "sd1")))


def test_one_config_serves_a_file_with_more_input_channels(cache, tmp_path):
    folder = builders.tiny_pix2pix(tmp_path / "p2p")
    path = single_files.single_file(folder, tmp_path / "p2p.safetensors")
    plan = LoadPlan(
        path,
        "StableDiffusionInstructPix2PixPipeline",
        "float32",
        "cpu",
        "none",
        0,
        0,
        format="safetensors",
        config=cache / "configs/sd1",
    )
    pipe = load_pipeline(plan)
    assert pipe.unet.config.in_channels == 8
    want = single_files.weights(folder / "unet")
    assert all(torch.equal(want[name], tensor) for name, tensor in pipe.unet.state_dict().items())


def test_marks_of_a_file_set_the_scheduler(cache):
    options = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    pipe = load("sdxl", cache / "sdxl.safetensors", config=cache / "configs/sdxl", scheduler_options=options)
    assert {name: pipe.scheduler.config[name] for name in options} == options
    plain = load("sdxl", cache / "sdxl.safetensors", config=cache / "configs/sdxl")
    assert plain.scheduler.config.prediction_type == "epsilon"
    assert_differs(draw(pipe), draw(plain))


def test_playground_gets_its_scheduler_and_the_statistics_of_its_latents(cache, tmp_path):
    tensors = single_files.load_file(cache / "sdxl.safetensors")
    tensors |= {"edm_mean": torch.tensor([[1.0, 2, 3, 4]]).view(1, 4, 1, 1), "edm_std": torch.ones(1, 4, 1, 1) * 5}
    path = single_files.save(tensors, tmp_path / "playground.safetensors")
    options = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5}
    pipe = load(
        "sdxl",
        path,
        config=cache / "configs/sdxl",
        scheduler="EDMDPMSolverMultistepScheduler",
        scheduler_options=options,
    )
    assert type(pipe.scheduler).__name__ == "EDMDPMSolverMultistepScheduler"
    assert pipe.vae.config.latents_mean == [1, 2, 3, 4]
    assert pipe.vae.config.latents_std == [5, 5, 5, 5]
    assert pipe.vae.config.scaling_factor == 0.5
    assert np.isfinite(draw(pipe)).all()


class TestPartsFromElsewhere:
    @pytest.fixture
    def other(self, tmp_path):
        """A VAE that paints differently: its folder, and the same in one file of the original layout."""
        folder = builders.tiny_sd1(tmp_path / "other", seed=9)
        path = single_files.save(single_files.vae(folder), tmp_path / "vae.safetensors")
        return folder, path

    def test_a_vae_from_a_file_a_folder_or_a_pipeline_is_the_same(self, cache, other):
        folder, path = other
        drawn = [
            draw(load("sd1", cache / "sd1.safetensors", config=cache / "configs/sd1", parts={"vae": place}))
            for place in (path, folder / "vae", folder)
        ]
        assert np.array_equal(drawn[0], drawn[1])
        assert np.array_equal(drawn[1], drawn[2])
        own = draw(load("sd1", cache / "sd1.safetensors", config=cache / "configs/sd1"))
        assert_differs(drawn[0], own)

    def test_a_repository_takes_one_too(self, cache, other):
        folder, path = other
        plan = LoadPlan(cache / "sd1", CLASSES["sd1"], "float32", "cpu", "none", 0, 0, parts={"vae": path})
        pipe = load_pipeline(plan)
        want = single_files.weights(folder / "vae")
        assert all(torch.equal(want[name], tensor) for name, tensor in pipe.vae.state_dict().items())

    def test_a_file_with_more_than_the_part_is_refused(self, cache):
        with pytest.raises(UnsupportedModel, match="holds 3 parts"):
            load(
                "sd1", cache / "sd1.safetensors", config=cache / "configs/sd1", parts={"vae": cache / "sd1.safetensors"}
            )

    def test_a_part_that_the_model_does_not_have_is_refused(self, cache, other):
        with pytest.raises(UnsupportedModel, match="has no text_encoder_9; it has"):
            plan = LoadPlan(
                cache / "sd1", CLASSES["sd1"], "float32", "cpu", "none", 0, 0, parts={"text_encoder_9": other[1]}
            )
            load_pipeline(plan)


class TestWhatIsWrong:
    def test_a_missing_part_without_a_base_is_named(self, cache, tmp_path):
        tensors = single_files.load_file(cache / "sdxl.safetensors")
        kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("first_stage_model.")}
        path = single_files.save(kept, tmp_path / "x.safetensors")
        with pytest.raises(UnsupportedModel, match=r"has no vae \(AutoencoderKL\)"):
            load("sdxl", path, config=cache / "configs/sdxl")

    @pytest.mark.parametrize("lost", ["double_blocks.0.img_mlp.0.weight", "text_model.final_layer_norm.weight"])
    def test_missing_tensors_are_counted_and_one_is_named(self, cache, tmp_path, lost):
        tensors = single_files.load_file(cache / "flux.safetensors")
        kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(lost)}
        assert len(kept) == len(tensors) - 1
        with pytest.raises(CorruptFile, match="lacks 1 tensors of its"):
            load("flux", single_files.save(kept, tmp_path / "x.safetensors"), config=cache / "configs/flux")

    @pytest.mark.parametrize("cut", [100, 5_000, 100_000])
    def test_a_truncated_file_is_damaged(self, cache, tmp_path, cut):
        path = tmp_path / "x.safetensors"
        path.write_bytes((cache / "sd1.safetensors").read_bytes()[:-cut])
        with pytest.raises(CorruptFile):
            load("sd1", path, config=cache / "configs/sd1")

    def test_flipped_bits_in_a_header_are_damage_or_a_failed_load(self, cache, tmp_path):
        whole = (cache / "sd1.safetensors").read_bytes()
        for at in range(8, 2_000, 401):
            path = tmp_path / f"{at}.safetensors"
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
            try:
                load("sd1", path, config=cache / "configs/sd1")
            except WorkerError as error:
                assert error.field == "model"
                assert str(tmp_path) not in error.message

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_weights_that_are_no_numbers_are_damaged(self, cache, tmp_path, value):
        tensors = single_files.load_file(cache / "sd1.safetensors")
        tensors["model.diffusion_model.out.2.bias"] = torch.full_like(
            tensors["model.diffusion_model.out.2.bias"], value
        )
        with pytest.raises(CorruptFile, match="NaN or infinity"):
            load("sd1", single_files.save(tensors, tmp_path / "x.safetensors"), config=cache / "configs/sd1")

    def test_a_file_of_another_family_does_not_load(self, cache):
        with pytest.raises((LoadFailed, CorruptFile, UnsupportedModel)):
            load("sdxl", cache / "sd1.safetensors", config=cache / "configs/sdxl")
        with pytest.raises((LoadFailed, CorruptFile, UnsupportedModel)):
            load("flux", cache / "sd3.safetensors", config=cache / "configs/flux")

    def test_a_file_without_a_config_is_refused(self, cache):
        with pytest.raises(UnsupportedModel, match=r"base in models\.yaml"):
            load("sd1", cache / "sd1.safetensors")


def test_the_same_parts_are_seen_as_another_class_also_where_one_is_none(cache):
    pipe = load("sd3", cache / "sd3.safetensors", config=cache / "configs/sd3")
    pipe.text_encoder_3 = pipe.tokenizer_3 = None
    pipe.register_modules(text_encoder_3=None, tokenizer_3=None)
    other = view(pipe, "StableDiffusion3Img2ImgPipeline")
    assert other.transformer is pipe.transformer
    assert other.text_encoder_3 is None


def test_stable_diffusion_3_without_its_t5_draws(cache, tmp_path):
    tensors = single_files.load_file(cache / "sd3.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if ".t5xxl." not in name}
    pipe = load("sd3", single_files.save(kept, tmp_path / "clips.safetensors"), config=cache / "configs/sd3")
    assert pipe.text_encoder_3 is None
    assert np.isfinite(draw(pipe)).all()


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "transformer."])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("QwenImageTransformer2DModel", {"num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
         "joint_attention_dim": 16, "axes_dims_rope": (4, 4, 8)}),
        ("PixArtTransformer2DModel", {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8,
         "in_channels": 4, "out_channels": 8, "cross_attention_dim": 16, "caption_channels": 16, "sample_size": 8}),
    ],
    ids=["read by diffusers", "not read by diffusers"],
)  # fmt: skip
def test_a_transformer_in_the_names_of_diffusers_loads_under_any_prefix(tmp_path, name, settings, prefix):
    from worker.engine.components import Component
    from worker.engine.single_file import load_part

    model = getattr(diffusers, name)(**settings)
    model.save_pretrained(tmp_path / "base/transformer")
    tensors = {f"{prefix}{key}": tensor for key, tensor in model.state_dict().items()}
    path = single_files.save(tensors, tmp_path / "model.safetensors")
    index = {"transformer": Component("transformer", "diffusers", name)}
    loaded = load_part(index, "transformer", path, tmp_path / "base", torch.bfloat16)
    assert {tensor.dtype for tensor in loaded.parameters()} == {torch.bfloat16}
    want = model.to(torch.bfloat16).state_dict()
    assert all(torch.equal(want[key], tensor) for key, tensor in loaded.state_dict().items())

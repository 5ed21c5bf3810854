"""Models written in another form or precision: what comes back, and that nothing is left of what did not."""

import shutil

import diffusers
import numpy as np
import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.torch import load_file

from tests import builders, loras, single_files
from tests.engine.lora_bench import adapter
from tests.engine.test_lora_dialects import FLUX, SETS, UNET, paths
from tests.zoo import RECIPES
from worker.core.device import LoadPlan
from worker.core.errors import IncompatibleAdapter, LoadFailed, UnsupportedModel
from worker.engine import gguf_writing, writing
from worker.engine.loader import load_pipeline
from worker.engine.writing import plan_of, write_model

PUBLISHED = {
    "sd1": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "flux": "FluxPipeline",
}
FAMILIES = (
    *("StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline"),
    *("PixArtSigmaPipeline", "SanaPipeline", "Lumina2Pipeline", "AuraFlowPipeline", "QwenImagePipeline"),
    *("ZImagePipeline", "ChromaPipeline", "CogView4Pipeline", "OvisImagePipeline"),
)
RECIPE_OF = {recipe.pipeline: recipe for recipe in RECIPES}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A tiny repository of each class, and the plan to load it by; made when it is first asked for."""
    found = {}

    def plan(pipeline):
        if pipeline not in found:
            folder = tmp_path_factory.mktemp("writing") / pipeline
            torch.manual_seed(0)
            RECIPE_OF[pipeline].build().save_pretrained(folder)
            found[pipeline] = LoadPlan(folder, pipeline, "float32", "cpu", "none", 0, 0)
        return found[pipeline]

    return plan


def states(pipe):
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return {f"{name}.{key}": tensor for name, part in parts.items() for key, tensor in part.state_dict().items()}


def image_of(pipe, pipeline):
    recipe = RECIPE_OF[pipeline]
    asked = {"num_inference_steps": 2} | dict(recipe.request if recipe.call is None else recipe.call)
    return np.asarray(pipe(**asked, output_type="np", generator=torch.Generator().manual_seed(1))[0])


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("pipeline", FAMILIES)
def test_a_model_goes_into_one_file_and_comes_back_to_the_bit(kept, pipeline, tmp_path):
    plan = kept(pipeline)
    single = write_model(plan, tmp_path / "x.safetensors", "single-file", "fp32")
    back = write_model(plan_of(plan, single.path, "single-file", "fp32"), tmp_path / "back", "diffusers", "fp32")
    assert (single.rounding, back.rounding) == (0, 0)
    assert single.tensors == back.tensors > 100
    first = load_pipeline(plan)
    again = load_pipeline(LoadPlan(tmp_path / "back", pipeline, "float32", "cpu", "none", 0, 0))
    before, after = states(first), states(again)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert np.array_equal(image_of(first, pipeline), image_of(again, pipeline))


ROUNDING = {"fp16": 2**-11, "bf16": 2**-8, "fp8": 2**-4 + 2**-8}  # half a step of a number's own size


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("pipeline", FAMILIES)
def test_each_precision_rounds_no_more_than_it_must(kept, pipeline, tmp_path):
    plan = kept(pipeline)
    sizes = {}
    for stored, most in ROUNDING.items():
        written = write_model(plan, tmp_path / f"{stored}.safetensors", "single-file", stored)
        assert 0 < written.rounding <= most
        sizes[stored] = written.bytes
        image = image_of(load_pipeline(plan_of(plan, written.path, "single-file", "fp32")), pipeline)
        assert np.isfinite(image).all()
        assert image.std() > 0
    assert sizes["fp8"] < sizes["bf16"] == pytest.approx(sizes["fp16"], rel=0.01)
    stored = load_file(tmp_path / "fp8.safetensors")
    matrices = [name for name, tensor in stored.items() if tensor.dtype is torch.float8_e4m3fn and tensor.numel()]
    assert all(f"{name.removesuffix('.weight')}.scale_weight" in stored for name in matrices)
    assert all(name.startswith("model.diffusion_model.") for name in matrices)


GGUF = {"q8_0": 0.005, "q5_1": 0.04, "q5_0": 0.07, "q4_1": 0.075, "q4_0": 0.13, "fp16": 2**-11, "bf16": 2**-8}


def from_gguf(plan, path):
    return load_pipeline(plan_of(plan, path, "gguf", "q8_0"))


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("pipeline", (*FAMILIES, "WanPipeline"))
def test_a_denoiser_goes_into_a_gguf_file_and_comes_back_within_its_blocks(kept, pipeline, tmp_path):
    plan = kept(pipeline)
    before, sizes = load_pipeline(plan), {}
    for stored in ("q8_0", "q4_0", "fp16"):
        written = write_model(plan, tmp_path / f"{stored}.gguf", "gguf", stored)
        assert 0 <= written.rounding <= GGUF[stored]
        sizes[stored] = written.bytes
    assert sizes["q4_0"] <= sizes["q8_0"] <= sizes["fp16"]
    assert max(len(tensor.shape) for tensor in GGUFReader(str(tmp_path / "q8_0.gguf")).tensors) <= 4  # GGUF's limit
    image, first = image_of(from_gguf(plan, tmp_path / "q8_0.gguf"), pipeline), image_of(before, pipeline)
    assert np.isfinite(image).all()
    assert np.sqrt(np.mean((image - first) ** 2)) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("stored", GGUF)
def test_every_kind_of_blocks_moves_a_number_no_more_than_it_must(stored, tmp_path):
    """Held against the numbers that GGUF's own package unpacks, name by name in the names of the published file."""
    folder = builders.tiny_flux(tmp_path / "flux")
    plan = LoadPlan(folder, "FluxPipeline", "float32", "cpu", "none", 0, 0)
    written = write_model(plan, tmp_path / "x.gguf", "gguf", stored)
    assert 0 < written.rounding <= GGUF[stored]
    reader = GGUFReader(str(written.path))
    got = {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    theirs = single_files.denoiser(folder)
    assert got.keys() == theirs.keys()
    kinds = {tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds - {"F32", "BF16"} == {"fp16": {"F16"}, "bf16": set()}.get(stored, {stored.upper()})
    for name, tensor in theirs.items():
        moved = np.abs(got[name].reshape(tensor.shape) - tensor.float().numpy()).max()
        assert moved <= GGUF[stored] * float(tensor.abs().max()) + 1e-7, name
    assert str(bytes(reader.get_field("general.architecture").parts[-1]), "ascii") == "flux"


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("family", PUBLISHED)
def test_published_families_have_their_published_names(family, tmp_path):
    folder = getattr(builders, f"tiny_{family}")(tmp_path / family)
    plan = LoadPlan(folder, PUBLISHED[family], "float32", "cpu", "none", 0, 0)
    write_model(plan, tmp_path / "mine.safetensors", "single-file", "fp32")
    mine = load_file(tmp_path / "mine.safetensors")
    theirs = load_file(single_files.single_file(folder, tmp_path / "theirs.safetensors"))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_another_vae_is_baked_in(kept, tmp_path):
    plan = kept("StableDiffusionPipeline")
    other = shutil.copytree(plan.root / "vae", tmp_path / "vae")
    (file,) = other.glob("*.safetensors")
    changed = {name: tensor + 0.5 for name, tensor in load_file(file).items()}
    single_files.save(changed, file)
    baked = LoadPlan(plan.root, plan.pipeline, "float32", "cpu", "none", 0, 0, parts={"vae": other})
    write_model(baked, tmp_path / "baked", "diffusers", "fp32")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "baked")
    assert all(torch.equal(tensor, changed[name]) for name, tensor in pipe.vae.state_dict().items())


BAKED = [("sd1", UNET["kohya"]), ("sd1", UNET["diffusers"]), ("flux", FLUX["kohya"]), ("flux", FLUX["peft"])]


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize(("family", "dialect"), BAKED)
def test_a_lora_is_baked_in_as_its_numbers_say(family, dialect, benches, tmp_path):
    pipe = benches(family).pipe
    wanted = SETS["flux" if family == "flux" else "unet", dialect.holds]
    numbers = loras.low_rank(pipe, paths(benches(family), wanted), seed=11, mixed=dialect.mixed)
    file = adapter(dialect.write(numbers), tmp_path / "lora.safetensors", 0.7)
    plan = LoadPlan(benches(family).folder, PUBLISHED[family], "float32", "cpu", "none", 0, 0)
    write_model(plan, tmp_path / "baked", "diffusers", "fp32", [file])
    before = states(load_pipeline(plan))
    got = states(load_pipeline(LoadPlan(tmp_path / "baked", PUBLISHED[family], "float32", "cpu", "none", 0, 0)))
    deltas = {f"{part}.{path}.weight": delta for (part, path), (delta, _) in loras.deltas_of(numbers).items()}
    assert {name for name in got if not torch.equal(got[name], before[name])} == deltas.keys()
    for name, delta in deltas.items():
        want = before[name].double() + 0.7 * delta.reshape(before[name].shape)
        assert torch.allclose(got[name].double(), want, atol=1e-5)


def test_a_lora_of_another_model_is_refused(kept, benches, tmp_path):
    numbers = loras.low_rank(benches("flux").pipe, paths(benches("flux"), SETS["flux", "narrow"]), seed=11)
    file = adapter(FLUX["diffusers"].write(numbers), tmp_path / "lora.safetensors")
    with pytest.raises(IncompatibleAdapter, match=r"finds 0 of its \d+ layers in this model"):
        write_model(kept("StableDiffusionPipeline"), tmp_path / "x", "diffusers", "fp32", [file])
    assert left(tmp_path) == ["lora.safetensors"]


def left(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("pipeline", "name", "form", "stored", "sentence"),
    [
        ("StableDiffusionPipeline", "there", "diffusers", "fp32", "is there already"),
        ("StableDiffusionPipeline", "x", "diffusers", "fp8", "fp8 is of single files"),
        ("StableDiffusionPipeline", "x.ckpt", "single-file", "fp32", "must end with .safetensors"),
        ("HunyuanDiTPipeline", "x.safetensors", "single-file", "fp32", "is a BertModel, which is read from"),
        ("StableDiffusionPipeline", "x.safetensors", "gguf", "q8_0", "must end with .gguf"),
        ("StableDiffusionPipeline", "x.gguf", "gguf", "fp8", "take q8_0, which has as many bits"),
        ("StableDiffusionPipeline", "x.safetensors", "single-file", "q4_0", "q4_0 is of GGUF files"),
        ("StableDiffusionPipeline", "x", "diffusers", "q4_0", "q4_0 is of GGUF files"),
    ],
)
def test_what_cannot_be_written_is_refused(kept, pipeline, name, form, stored, sentence, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(UnsupportedModel, match=sentence):
        write_model(kept(pipeline), tmp_path / name, form, stored)
    assert left(tmp_path) == ["there"]


def test_what_a_gguf_file_would_lose_is_refused(kept, benches, tmp_path):
    plan = kept("StableDiffusionPipeline")
    with_vae = LoadPlan(plan.root, plan.pipeline, "float32", "cpu", "none", 0, 0, parts={"vae": tmp_path})
    with pytest.raises(UnsupportedModel, match="has no place for the vae"):
        write_model(with_vae, tmp_path / "x.gguf", "gguf", "q8_0")
    alone = LoadPlan(tmp_path / "x.safetensors", plan.pipeline, "float32", "cpu", "none", 0, 0, format="safetensors")
    with pytest.raises(UnsupportedModel, match="other parts would be lost; convert it to diffusers first"):
        write_model(alone, tmp_path / "x.gguf", "gguf", "q8_0")
    numbers = loras.low_rank(benches("sd1").pipe, paths(benches("sd1"), SETS["unet", "encoder"]), seed=11)
    file = adapter(UNET["kohya"].write(numbers), tmp_path / "lora.safetensors")
    with pytest.raises(UnsupportedModel, match="A LoRA changes a text encoder too"):
        write_model(plan, tmp_path / "x.gguf", "gguf", "q8_0", [file])
    assert left(tmp_path) == ["lora.safetensors"]


def test_a_packed_file_is_refused(kept, tmp_path):
    plan = LoadPlan(tmp_path / "x.gguf", "FluxPipeline", "float32", "cpu", "none", 0, 0, format="gguf")
    with pytest.raises(UnsupportedModel, match="A gguf model cannot be converted"):
        write_model(plan, tmp_path / "x", "diffusers", "fp32")


def test_numbers_that_float16_lacks_are_refused_and_bfloat16_takes_them(kept, tmp_path):
    plan = kept("StableDiffusionPipeline")
    folder = shutil.copytree(plan.root, tmp_path / "large")
    (file,) = (folder / "unet").glob("*.safetensors")
    tensors = load_file(file)
    tensors["conv_in.weight"][0, 0, 0, 0] = 1e6
    single_files.save(tensors, file)
    large = LoadPlan(folder, plan.pipeline, "float32", "cpu", "none", 0, 0)
    with pytest.raises(UnsupportedModel, match=r"unet.conv_in.weight has numbers too large for fp16"):
        write_model(large, tmp_path / "x", "diffusers", "fp16")
    assert left(tmp_path) == ["large"]
    write_model(large, tmp_path / "x", "diffusers", "bf16")


@pytest.mark.parametrize("fault", ["lost", "changed"])
def test_what_does_not_come_back_leaves_nothing(kept, fault, tmp_path, monkeypatch):
    real = writing.save_file

    def damaged(tensors, path, metadata):
        name = next(name for name in tensors if name.endswith("to_q.weight"))
        changed = {name: tensors[name] * 1.01} if fault == "changed" else {}
        real({key: tensor for key, tensor in tensors.items() if key != name} | changed, path, metadata)

    monkeypatch.setattr(writing, "save_file", damaged)
    with pytest.raises(Exception, match=r"did not come back within its rounding|lacks 1 tensors") as refused:
        write_model(kept("StableDiffusionPipeline"), tmp_path / "x.safetensors", "single-file", "fp32")
    assert fault == "lost" or isinstance(refused.value, LoadFailed)
    assert left(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("form", ["diffusers", "gguf"])
def test_a_folder_and_a_packed_file_that_did_not_come_back_are_not_kept_either(kept, form, tmp_path, monkeypatch):
    real_pack, real_save = gguf_writing.quantize, diffusers.StableDiffusionPipeline.save_pretrained

    def damaged_pack(array, kind):
        return real_pack(array * 1.3, kind)

    def damaged_save(pipe, folder, **options):
        with torch.no_grad():
            pipe.unet.conv_in.weight.mul_(1.3)
        real_save(pipe, folder, **options)

    monkeypatch.setattr(gguf_writing, "quantize", damaged_pack)
    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "save_pretrained", damaged_save)
    name, stored = {"diffusers": ("x", "bf16"), "gguf": ("x.gguf", "q8_0")}[form]
    with pytest.raises(LoadFailed, match="did not come back within its rounding"):
        write_model(kept("StableDiffusionPipeline"), tmp_path / name, form, stored)
    assert left(tmp_path) == []


def test_what_came_while_it_was_written_is_not_written_over(kept, tmp_path, monkeypatch):
    real, target = writing.save_file, tmp_path / "x.safetensors"

    def slow(tensors, path, metadata):
        real(tensors, path, metadata)
        target.write_text("somebody else's")

    monkeypatch.setattr(writing, "save_file", slow)
    with pytest.raises(UnsupportedModel, match="is there already"):
        write_model(kept("StableDiffusionPipeline"), target, "single-file", "fp32")
    assert (left(tmp_path), target.read_text()) == (["x.safetensors"], "somebody else's")
    (tmp_path / "dangling.safetensors").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UnsupportedModel, match="is there already"):
        write_model(kept("StableDiffusionPipeline"), tmp_path / "dangling.safetensors", "single-file", "fp32")


@pytest.mark.slow
def test_a_lora_that_is_more_than_weights_is_not_baked_in(kept, benches, tmp_path):
    plan, bench = kept("StableDiffusionPipeline"), benches("sd1")
    numbers = loras.low_rank(bench.pipe, paths(bench, SETS["unet", "narrow"]), seed=11)
    lora = UNET["kohya"].write(numbers)
    lora.tensors["bundle_emb.sks.string_to_param.*"] = loras.normal(1, 32, seed=5)
    with pytest.raises(IncompatibleAdapter, match="brings words of its own"):
        write_model(plan, tmp_path / "x", "diffusers", "fp32", [adapter(lora, tmp_path / "words.safetensors")])
    norms = loras.build(bench.pipe, "unet", ["conv_norm_out"], loras.norm, seed=3)
    norms.tensors |= UNET["kohya"].write(numbers).tensors
    with pytest.raises(IncompatibleAdapter, match=r"changes unet\.conv_norm_out, which is no layer with plain weights"):
        write_model(plan, tmp_path / "x", "diffusers", "fp32", [adapter(norms, tmp_path / "norms.safetensors")])
    assert left(tmp_path) == ["norms.safetensors", "words.safetensors"]

"""Which files of a repository are fetched: one set of weights per component, its index, and never a pickle."""

import pytest

from worker.core.errors import InvalidRequest, UnsafeFormat, UnsupportedModel
from worker.core.model import ModelSource
from worker.store.selection import check_filename, pipeline_files, single_file

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.42.1",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "image_encoder": [None, None],
    "requires_safety_checker": True,
}
PLAIN = "unet/diffusion_pytorch_model.safetensors"
FP16 = "unet/diffusion_pytorch_model.fp16.safetensors"
AROUND = ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"]


def choose(*names: str, variant: str | None = None) -> tuple[set[str], str | None]:
    """What is chosen beside the files that every pipeline has."""
    chosen = pipeline_files(INDEX, [*AROUND, *names], variant)
    assert set(AROUND) <= set(chosen.names)
    return set(chosen.names) - set(AROUND), chosen.variant


@pytest.mark.parametrize(
    ("names", "variant", "picked", "used"),
    [
        ([PLAIN], None, {PLAIN}, None),
        ([PLAIN, FP16], None, {PLAIN}, None),
        ([PLAIN, FP16], "fp16", {FP16}, "fp16"),
        ([PLAIN], "fp16", {PLAIN}, None),
        ([FP16], None, {FP16}, "fp16"),
        ([PLAIN, PLAIN.replace("model.", "model.non_ema.")], None, {PLAIN}, None),
        ([FP16.replace("fp16", "bf16")], None, {FP16.replace("fp16", "bf16")}, "bf16"),
        ([FP16, FP16.replace("fp16", "bf16")], None, {FP16}, "fp16"),
    ],
)
def test_one_variant_of_a_component_is_taken(names, variant, picked, used):
    assert choose(*names, variant=variant) == (picked, used)


def test_components_without_the_variant_come_plain_beside_those_that_have_it():
    index = {"unet": ["diffusers", "UNet2DModel"], "vae": ["diffusers", "AutoencoderKL"]}
    vae = "vae/diffusion_pytorch_model.safetensors"
    chosen = pipeline_files(index, [PLAIN, FP16, vae], "fp16")
    assert (set(chosen.names), chosen.variant) == ({FP16, vae}, "fp16")


@pytest.mark.parametrize("shard", ["model-0000{n}-of-00002.fp16", "model.fp16-0000{n}-of-00002"])
def test_all_shards_of_the_variant_come_with_its_index_alone(shard):
    fp16 = {f"unet/{shard.format(n=n)}.safetensors" for n in (1, 2)}
    plain = {f"unet/model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)}
    indexes = {"unet/model.safetensors.index.fp16.json", "unet/model.safetensors.index.json"}
    pickled = {"unet/pytorch_model.bin.index.json", "unet/pytorch_model.bin"}
    every = [*fp16, *plain, *indexes, *pickled]
    assert choose(*every, variant="fp16") == (fp16 | {"unet/model.safetensors.index.fp16.json"}, "fp16")
    assert choose(*every) == (plain | {"unet/model.safetensors.index.json"}, None)


def test_an_index_named_after_its_file_belongs_to_the_variant_too():
    names = ["unet/model.fp16-00001-of-00001.safetensors", "unet/model.fp16.safetensors.index.json"]
    assert choose(*names) == (set(names), "fp16")


@pytest.mark.parametrize("pickle", ["diffusion_pytorch_model.bin", "x.ckpt", "x.pt", "x.pth", "x.pkl"])
def test_a_component_that_exists_as_a_pickle_only_is_refused_by_name(pickle):
    with pytest.raises(UnsafeFormat, match="unet"):
        choose(f"unet/{pickle}")


def test_a_pickle_beside_safetensors_is_left_out():
    assert choose(PLAIN, "unet/diffusion_pytorch_model.bin") == ({PLAIN}, None)


def test_what_a_pipeline_does_not_load_is_left_out():
    extra = [
        "safety_checker/model.safetensors",
        "safety_checker/pytorch_model.bin",
        "image_encoder/model.safetensors",
        "v1-5-pruned.safetensors",
        "README.md",
        "labels.json",
        "unet/model.onnx",
        "unet/openvino/model.safetensors",
        "unet/run.py",
        "unetother/model.safetensors",
        "docs/model_index.json",
    ]
    assert choose(PLAIN, *extra) == ({PLAIN}, None)


def test_a_tokenizer_comes_with_its_vocabularies():
    files = {f"tokenizer/{name}" for name in ("vocab.json", "merges.txt", "spiece.model", "chat.jinja", "q.tiktoken")}
    chosen = pipeline_files({"tokenizer": ["transformers", "AutoTokenizer"]}, [*files, "tokenizer/x.py"], None)
    assert set(chosen.names) == files


class TestSingleFile:
    def test_the_only_file_is_taken(self):
        assert single_file(["README.md", "a.safetensors"], "org/x") == "a.safetensors"

    def test_the_name_that_diffusers_gives_a_lora_is_preferred(self):
        assert single_file(["a.safetensors", "pytorch_lora_weights.safetensors"], "org/x").startswith("pytorch_lora")

    def test_a_choice_is_named_and_not_made(self):
        with pytest.raises(UnsupportedModel) as caught:
            single_file(["b.safetensors", "a.safetensors"], "org/x")
        assert "org/x#a.safetensors" in caught.value.message
        assert caught.value.details == {"files": ["a.safetensors", "b.safetensors"]}

    def test_pickles_alone_are_unsafe_and_nothing_at_all_is_unsupported(self):
        with pytest.raises(UnsafeFormat):
            single_file(["lora.bin"], "org/x")
        with pytest.raises(UnsupportedModel, match="model_index"):
            single_file(["README.md"], "org/x")


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("../../x.safetensors", InvalidRequest),
        ("/etc/x.safetensors", InvalidRequest),
        ("a\\..\\x.safetensors", InvalidRequest),
        ("a\0.safetensors", InvalidRequest),
        ("x.ckpt", UnsafeFormat),
        ("x.bin", UnsafeFormat),
        ("x.onnx", UnsupportedModel),
        ("unet", UnsupportedModel),
    ],
)
def test_a_file_name_that_leaves_the_repository_or_is_no_safetensors_is_refused(name, error):
    with pytest.raises(error):
        check_filename(ModelSource(scheme="hf", locator="org/x", filename=name))
    check_filename(ModelSource(scheme="hf", locator="org/x", filename="a/x.safetensors"))


def shards(count: int, stem: str = "unet/diffusion_pytorch_model") -> list[str]:
    return [f"{stem}-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]


SHARD_INDEX = f"{PLAIN}.index.json"


class TestWeightsThatAreThereTwice:
    def test_a_whole_file_is_taken_and_the_shards_beside_it_are_not(self):
        assert choose(PLAIN, *shards(2), SHARD_INDEX) == ({PLAIN}, None)

    @pytest.mark.parametrize("listed", [2, 3])
    def test_of_two_splits_the_one_that_the_index_names_is_taken(self, listed):
        weight_map = {name: name.partition("/")[2] for name in shards(listed)}
        names = [*AROUND, *shards(2), *shards(3), SHARD_INDEX]
        chosen = pipeline_files(INDEX, names, None, read_index=lambda name: {"weight_map": weight_map})
        assert set(chosen.names) == {*AROUND, *shards(listed), SHARD_INDEX}

    def test_without_an_index_the_complete_split_is_taken(self):
        assert choose(*shards(2)[:1], *shards(3)) == (set(shards(3)), None)

    def test_files_beside_the_component_s_own_are_left_out(self):
        assert choose(PLAIN, "unet/open_clip_model.safetensors") == ({PLAIN}, None)


@pytest.mark.parametrize("name", ["._diffusion_pytorch_model.safetensors", ".cache/x.safetensors", "__MACOSX/x.json"])
def test_hidden_files_are_none_of_a_model_s(name):
    assert choose(PLAIN, f"unet/{name}", name) == ({PLAIN}, None)
    assert single_file([name, "a.safetensors"], "org/x") == "a.safetensors"


def test_a_hidden_file_that_is_named_is_refused():
    with pytest.raises(UnsupportedModel, match="hidden file"):
        check_filename(ModelSource(scheme="hf", locator="org/x", filename="a/._x.safetensors"))


@pytest.mark.parametrize("ending", ["safetensors", "SAFETENSORS", "sft", "SFT"])
def test_a_suffix_counts_in_any_case_and_in_short(ending):
    part = f"unet/diffusion_pytorch_model.{ending}"
    assert choose(part, PLAIN.replace("safetensors", "bin")) == ({part}, None)
    assert single_file([f"x.{ending}", "x.onnx"], "org/x") == f"x.{ending}"
    check_filename(ModelSource(scheme="hf", locator="org/x", filename=f"x.{ending}"))
    with pytest.raises(UnsafeFormat):
        check_filename(ModelSource(scheme="hf", locator="org/x", filename="x.CKPT"))

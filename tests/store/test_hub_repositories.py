"""Every shape a repository can have: folders in it, one component, GGUF, pickles, adapters; and what its page says."""

import json

import pytest
from safetensors.numpy import load_file

from tests.store.conftest import WEIGHTS, Client, files_below, weights, write_pipeline
from worker.catalog.detector import detect
from worker.core.errors import AccessDenied, CorruptFile, ModelNotFound, UnsafeFormat, UnsupportedModel
from worker.core.model import ModelSource
from worker.core.turn import StopSignal

CONTROLNET = {"_class_name": "ControlNetModel", "_diffusers_version": "0.42.1"}


def below(locator: str, subfolder: str, **more) -> ModelSource:
    return ModelSource(scheme="hf", locator=locator, subfolder=subfolder, **more)


class TestComponents:
    @pytest.fixture
    def component(self, hub, tmp_path):
        folder = tmp_path / "controlnet"
        weights(folder / WEIGHTS)
        weights(folder / "diffusion_pytorch_model.fp16.safetensors", 10)
        weights(folder / "extra" / "other.safetensors")
        (folder / "config.json").write_text(json.dumps(CONTROLNET))
        (folder / "README.md").write_text("")
        hub.add_repo("org/controlnet", folder)

    def test_a_component_is_its_config_and_one_set_of_weights(self, client, component):
        outline, files = client.peek("org/controlnet"), client.ensure("org/controlnet")
        assert not files.is_single_file
        assert set(files_below(files.root)) == {"config.json", WEIGHTS}
        assert outline.configs["config.json"] == CONTROLNET
        assert outline.header.tensors == {"weight": ("F32", (64,))}
        assert client.peek("org/controlnet") == outline, "on disk it is described alike"

    def test_its_variant_is_taken(self, client, component):
        files = client.ensure("org/controlnet", "fp16")
        assert set(files_below(files.root)) == {"config.json", "diffusion_pytorch_model.fp16.safetensors"}

    def test_shards_come_together(self, client, hub, tmp_path):
        folder = tmp_path / "sharded"
        shards = {f"diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)}
        for name in shards:
            weights(folder / name)
        index = {"weight_map": {name: name for name in shards}}
        (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
        (folder / "config.json").write_text(json.dumps(CONTROLNET))
        hub.add_repo("org/sharded", folder)
        assert set(files_below(client.ensure("org/sharded").root)) >= shards
        assert client.peek("org/sharded").header is None

    def test_a_config_of_a_trainer_makes_no_component(self, client, hub, tmp_path):
        weights(tmp_path / "trained" / "style.safetensors")
        (tmp_path / "trained" / "config.json").write_text('{"learning_rate": 1}')
        hub.add_repo("org/trained", tmp_path / "trained")
        assert client.ensure("org/trained").is_single_file


def test_a_modular_repository_is_its_index_with_the_parts_that_lie_in_it(client, hub, tmp_path):
    folder = write_pipeline(tmp_path / "modular")
    listed = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").unlink()
    place = {"pretrained_model_name_or_path": "org/modular", "revision": None}
    index = {name: [*entry, {**place, "subfolder": name}] for name, entry in listed.items() if isinstance(entry, list)}
    index |= {"_class_name": "AnimaModularPipeline", "_blocks_class_name": "AnimaAutoBlocks"}
    (folder / "modular_model_index.json").write_text(json.dumps(index))
    weights(folder / "unet" / "onnx" / "other.safetensors")
    hub.add_repo("org/modular", folder)
    outline, files = client.peek("org/modular"), client.ensure("org/modular")
    assert {"modular_model_index.json", f"unet/{WEIGHTS}", f"vae/{WEIGHTS}"} <= {*files_below(files.root)}
    assert not any("onnx" in name or "safety" in name for name in files_below(files.root))
    assert outline.configs["modular_model_index.json"] == index and "vae/config.json" in outline.configs
    assert client.peek("org/modular") == outline, "on disk it is described alike"


def test_a_modular_repository_without_one_of_its_parts_is_described_for_detection_to_refuse(client, hub, tmp_path):
    place = {"pretrained_model_name_or_path": "org/other", "subfolder": "vae"}
    index = {"_class_name": "AnimaModularPipeline", "vae": ["diffusers", "AutoencoderKLQwenImage", place]}
    (tmp_path / "modular" / "transformer").mkdir(parents=True)
    weights(tmp_path / "modular" / "transformer" / WEIGHTS)
    (tmp_path / "modular" / "modular_model_index.json").write_text(json.dumps(index))
    hub.add_repo("org/modular", tmp_path / "modular")
    with pytest.raises(UnsupportedModel, match="has no scheduler, "):
        detect(client.peek("org/modular"))


class TestSubfolders:
    @pytest.fixture
    def nested(self, hub, tmp_path):
        write_pipeline(tmp_path / "nested" / "v2" / "pipeline")
        weights(tmp_path / "nested" / "loras" / "style.safetensors")
        hub.add_repo("org/nested", tmp_path / "nested")
        return tmp_path / "nested"

    def test_a_pipeline_in_a_folder_is_a_pipeline(self, client, nested):
        source = below("org/nested", "v2/pipeline")
        files = client.store.ensure(source, None, print, StopSignal(10))
        assert (files.root / "model_index.json").is_file()
        assert (files.root / "unet" / WEIGHTS).read_bytes() == (nested / "v2/pipeline/unet" / WEIGHTS).read_bytes()
        assert client.store.peek(source, None).configs["model_index.json"]

    def test_a_component_of_a_pipeline_can_be_had_alone(self, client, hub, nested):
        (nested / "v2/pipeline/vae/config.json").write_text('{"_class_name": "AutoencoderKL"}')
        hub.add_repo("org/nested", nested)
        files = client.store.ensure(below("org/nested", "v2/pipeline/vae"), None, print, StopSignal(10))
        assert set(files_below(files.root)) == {"config.json", WEIGHTS}
        assert hub.count("unet") == 0

    def test_a_file_may_be_named_below_it(self, client, nested):
        source = below("org/nested", "loras", filename="style.safetensors")
        assert client.store.ensure(source, None, print, StopSignal(10)).root.name == "style.safetensors"

    @pytest.mark.parametrize("folder", ["nothing", "v2/pipe"])
    def test_a_folder_that_is_not_there_is_named(self, client, nested, folder):
        with pytest.raises(ModelNotFound, match=folder):
            client.store.peek(below("org/nested", folder), None)


class TestSingleFiles:
    def test_a_peft_adapter_keeps_its_config_beside_it(self, client, hub, tmp_path):
        weights(tmp_path / "peft" / "adapter_model.safetensors")
        (tmp_path / "peft" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4}')
        hub.add_repo("org/peft", tmp_path / "peft")
        outline, files = client.peek("org/peft"), client.ensure("org/peft")
        assert files.is_single_file
        assert outline.configs["adapter_config.json"]["r"] == 4
        assert outline.header is not None
        for reference in ("org/peft", "org/peft#adapter_model.safetensors"):
            assert client.peek(reference) == outline, "on disk, and by its name, it is described alike"
        assert Client(hub.endpoint, tmp_path / "b").peek("org/peft#adapter_model.safetensors") == outline
        assert json.loads((files.root.parent / "adapter_config.json").read_text())["r"] == 4

    def test_a_gguf_file_is_a_weight_file(self, client, hub, tmp_path):
        (tmp_path / "gguf").mkdir()
        (tmp_path / "gguf" / "model-Q4_K_M.gguf").write_bytes(b"GGUF" + bytes(100))
        hub.add_repo("org/gguf", tmp_path / "gguf")
        assert client.ensure("org/gguf").root.name == "model-Q4_K_M.gguf"
        assert client.ensure("org/gguf#model-Q4_K_M.gguf").is_single_file

    def test_the_digest_that_a_caller_pins_is_checked_before_the_transfer(self, client, hub):
        source = ModelSource(scheme="hf", locator="org/lora", filename="style.safetensors", sha256="0" * 64)
        with pytest.raises(CorruptFile, match="sha256"):
            client.store.ensure(source, None, print, StopSignal(5))
        assert hub.count(".safetensors", "GET") == 0
        right = client.ensure("org/lora#style.safetensors").sha256
        pinned = source.model_copy(update={"sha256": right.upper()})
        assert client.store.ensure(pinned, None, print, StopSignal(5)).sha256 == right
        with pytest.raises(CorruptFile):
            client.store.ensure(source, None, print, StopSignal(5))
        whole = ModelSource(scheme="hf", locator="org/model", sha256=right)
        with pytest.raises(UnsupportedModel, match="many files"):
            client.store.ensure(whole, None, print, StopSignal(5))


class TestPickles:
    @pytest.fixture
    def pickled(self, hub, tmp_path):
        folder = write_pipeline(tmp_path / "pickled")
        for part, name in (
            ("unet", "diffusion_pytorch_model-00001-of-00001.bin"),
            ("vae", "diffusion_pytorch_model.bin"),
        ):
            (folder / part / WEIGHTS).rename(folder / part / name)
        index = {"weight_map": {"weight": "diffusion_pytorch_model-00001-of-00001.bin"}}
        (folder / "unet" / "diffusion_pytorch_model.bin.index.json").write_text(json.dumps(index))
        hub.add_repo("org/pickled", folder)
        (tmp_path / "one").mkdir()
        (tmp_path / "one" / "model.ckpt").write_bytes(b"x" * 100)
        hub.add_repo("org/ckpt", tmp_path / "one")

    def test_the_operator_may_allow_them(self, hub, tmp_path, pickled):
        client = Client(hub.endpoint, tmp_path / "cache", allow_pickles=True)
        names = set(files_below(client.ensure("org/pickled").root))
        assert {"unet/diffusion_pytorch_model-00001-of-00001.bin", "vae/diffusion_pytorch_model.bin"} <= names
        assert "unet/diffusion_pytorch_model.bin.index.json" in names
        assert client.ensure("org/ckpt").root.name == "model.ckpt"

    @pytest.mark.parametrize("reference", ["org/pickled", "org/ckpt", "org/ckpt#model.ckpt"])
    def test_else_nothing_of_them_is_fetched(self, client, hub, pickled, reference):
        for ask in (client.peek, client.ensure):
            with pytest.raises(UnsafeFormat):
                ask(reference)
        assert hub.count(".bin", "GET") == hub.count(".ckpt", "GET") == 0

    def test_safetensors_are_preferred_all_the_same(self, hub, tmp_path, folder):
        (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"x")
        hub.add_repo("org/model", folder)
        files = Client(hub.endpoint, tmp_path / "cache", allow_pickles=True).ensure("org/model")
        assert not list(files.root.rglob("*.bin"))
        assert load_file(files.root / "unet" / WEIGHTS)


class TestDeclared:
    CARD = {  # noqa: RUF012
        "base_model": ["stabilityai/stable-diffusion-xl-base-1.0", "x"],
        "instance_prompt": "TOK style",
        "license": "mit",
    }

    def test_what_the_page_says_is_told_and_remembered(self, client, hub, tmp_path):
        tags = ["diffusers", "lora", "diffusers:StableDiffusionXLPipeline"]
        weights(tmp_path / "style" / "style.safetensors")
        hub.add_repo("org/style", tmp_path / "style", cardData=self.CARD, tags=tags, pipeline_tag="text-to-image")
        declared = client.peek("org/style").declared
        assert declared.base == "stabilityai/stable-diffusion-xl-base-1.0"
        assert (declared.kind, declared.pipeline, declared.name) == ("lora", "StableDiffusionXLPipeline", "style")
        assert declared.trigger_words == ("TOK style",)
        assert declared.tags == (*tags, "text-to-image")
        assert declared.licence == "mit"
        client.ensure("org/style")
        hub.down = True
        assert Client(hub.endpoint, client.cache).peek("org/style").declared == declared

    @pytest.mark.parametrize("value", [None, 3, {"a": 1}, [], [None], [["x"]], ""])
    def test_a_card_may_hold_anything(self, client, hub, folder, value):
        card = dict.fromkeys(("base_model", "instance_prompt", "license", "license_name"), value)
        hub.add_repo("org/model", folder, cardData=card, tags=[])
        declared = client.peek("org/model").declared
        assert (declared.base, declared.trigger_words, declared.licence) == (None, (), None)


class TestToken:
    def test_it_is_told_to_the_hub_and_not_to_the_storage_host(self, hub, tmp_path, folder):
        hub.add_repo("org/gated", folder, gated=True)
        hub.cdn = True
        files = Client(hub.endpoint, tmp_path / "cache", token=hub.token).ensure("org/gated")
        assert (files.root / "unet" / WEIGHTS).is_file()
        told = {seen.path.startswith("/cdn/"): set() for seen in hub.requests}
        for seen in hub.requests:
            told[seen.path.startswith("/cdn/")].add(seen.headers.get("authorization"))
        assert told == {False: {f"Bearer {hub.token}"}, True: {None}}

    def test_a_gate_that_closes_between_listing_and_file_is_named(self, hub, tmp_path, folder):
        hub.add_repo("org/gated", folder, gated=True)
        with pytest.raises(AccessDenied, match="accept its licence"):
            Client(hub.endpoint, tmp_path / "cache", token=hub.stranger).ensure("org/gated")
        assert not list((tmp_path / "cache").glob("blobs/*"))


def test_a_mirror_that_names_no_commit_is_followed(client, hub, tmp_path):
    folder = write_pipeline(tmp_path / "mirrored")
    hub.add_repo("org/mirrored", folder, sha=None)
    first = client.ensure("org/mirrored")
    assert client.peek("org/mirrored").revision == first.revision
    assert first.revision.startswith("main+")
    weights(folder / "unet" / WEIGHTS, 100, seed=5)
    hub.add_repo("org/mirrored", folder, sha=None)
    later = Client(hub.endpoint, client.cache).ensure("org/mirrored")
    assert (later.root / "unet" / WEIGHTS).read_bytes() == (folder / "unet" / WEIGHTS).read_bytes()
    assert Client(hub.endpoint, client.cache, offline=True).ensure("org/mirrored").root == later.root

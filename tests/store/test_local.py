"""Local folders: below the operator's roots everything, outside them nothing, whatever the path looks like."""

import pytest

from tests.store.conftest import WEIGHTS, Client, weights, write_pipeline
from worker.catalog.formats.headers import read_header
from worker.core.errors import AccessDenied, CorruptFile, ModelNotFound, UnsafeFormat, UnsupportedModel
from worker.core.model import ModelSource
from worker.core.turn import StopSignal
from worker.store.local import AdapterFolders, LocalFolders, read_json
from worker.store.refs import parse_reference
from worker.store.store import Store


@pytest.fixture
def root(tmp_path):
    write_pipeline(tmp_path / "root" / "model")
    weights(tmp_path / "root" / "one.safetensors")
    write_pipeline(tmp_path / "outside" / "model")
    weights(tmp_path / "outside" / "one.safetensors")
    return tmp_path / "root"


@pytest.fixture
def store(root, tmp_path):
    """The store as a worker has it, whose Hub cannot be reached."""
    hub = Client("http://127.0.0.1:9", tmp_path / "cache", offline=True).store
    return Store({"hf": hub, "file": LocalFolders([root, tmp_path / "not-mounted"], read_header)})


def both(store, text, variant=None):
    source = text if isinstance(text, ModelSource) else parse_reference(text)
    return store.peek(source, variant), store.ensure(source, variant, pytest.fail, StopSignal(5))


def test_a_folder_is_used_in_place(store, root):
    outline, files = both(store, f"file:{root}/model")
    assert files.root == root / "model"
    assert not files.is_single_file
    assert outline.configs["unet/config.json"]["sample_size"] == 64
    assert outline.weight_bytes == sum((root / "model" / part / WEIGHTS).stat().st_size for part in ("unet", "vae"))
    assert files.total_bytes > outline.weight_bytes


@pytest.mark.parametrize(
    "text", ["{root}/one.safetensors", "file:{root}#one.safetensors", "file:///{root}/one.safetensors"]
)
def test_a_file_is_used_in_place(store, root, text):
    outline, files = both(store, text.format(root=root))
    assert files.root == root / "one.safetensors"
    assert files.is_single_file
    assert outline.header.tensors == {"weight": ("F32", (64,))}


def test_only_the_weights_that_are_loaded_are_counted_and_their_variant_is_named(store, root):
    plain = both(store, f"file:{root}/model")[1]
    for part in ("unet", "vae"):
        weights(root / "model" / part / "diffusion_pytorch_model.fp16.safetensors", 10)
    outline, files = both(store, f"file:{root}/model", "fp16")
    assert (files.variant, outline.weight_bytes < plain.total_bytes / 10) == ("fp16", True)
    assert both(store, f"file:{root}/model")[1].total_bytes == plain.total_bytes
    for part in ("unet", "vae"):
        (root / "model" / part / WEIGHTS).unlink()
    assert both(store, f"file:{root}/model")[1].variant == "fp16", "or it could not be loaded"


@pytest.mark.parametrize(
    "text",
    [
        "file:{outside}/model",
        "{outside}/one.safetensors",
        "file:{root}/../outside/model",
        "file:{root}-other/model",
        "/etc/passwd",
        "file:/",
        "file:.",
        "file:~/model",
        "file:/proc/self/environ",
        "file:{outside}/nothing-here",
        "file:{root}/link",
        "file:{root}/link/one.safetensors",
        "file:{root}#link/one.safetensors",
        "file:{root}/one-link.safetensors",
    ],
)
def test_outside_the_roots_nothing_is_read_whether_it_exists_or_not(store, root, tmp_path, text):
    outside = tmp_path / "outside"
    (root / "link").symlink_to(outside)
    (root / "one-link.safetensors").symlink_to(outside / "one.safetensors")
    source = parse_reference(text.format(root=root, outside=outside))
    for ask in (lambda: store.peek(source), lambda: store.ensure(source, None, pytest.fail, StopSignal(5))):
        with pytest.raises(AccessDenied, match="ALLOWED_MODEL_DIRS") as caught:
            ask()
        assert str(tmp_path) not in caught.value.message


def test_a_file_name_cannot_climb_out_of_its_folder(store, root):
    with pytest.raises(AccessDenied):
        both(store, ModelSource(scheme="file", locator=str(root), filename="../outside/one.safetensors"))


def test_a_link_within_the_roots_is_followed(store, root):
    (root / "alias").symlink_to(root / "model")
    assert both(store, f"file:{root}/alias")[1].root == root / "model"


def test_a_link_to_nothing_inside_a_model_is_none_of_its_files(store, root):
    before = both(store, f"file:{root}/model", "fp16")
    (root / "model" / "unet" / "diffusion_pytorch_model.fp16.safetensors").symlink_to(root / "gone.safetensors")
    assert both(store, f"file:{root}/model", "fp16") == before


@pytest.mark.parametrize("name", ["nothing", "n" * 300, "model/unet/nothing.safetensors", "loop"])
def test_what_does_not_exist_is_named_without_its_path(store, root, name):
    (root / "loop").symlink_to(root / "loop")
    with pytest.raises(ModelNotFound) as caught:
        both(store, f"file:{root}/{name}")
    assert str(root) not in caught.value.message
    assert caught.value.field == "model"


def test_a_folder_of_pickles_is_refused(store, root):
    (root / "model" / "unet" / WEIGHTS).rename(root / "model" / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(UnsafeFormat, match="unet"):
        store.peek(parse_reference(f"file:{root}/model"))
    with pytest.raises(UnsafeFormat, match="unet"):
        store.ensure(parse_reference(f"file:{root}/model"), None, pytest.fail, StopSignal(5))


@pytest.mark.parametrize("text", ["", "<html>", "[1]", "\ud800"])
def test_json_that_is_none_is_a_damaged_model(store, root, text):
    (root / "model" / "unet" / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(CorruptFile, match=r"config\.json"):
        store.peek(parse_reference(f"file:{root}/model"))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": [' + "[],\n" * 200_000 + "0]}", '"' + "x" * 2**24 + '"'])
def test_json_of_more_than_a_model_needs_is_refused_unread(store, root, text):
    (root / "model" / "unet" / "config.json").write_text(text)
    with pytest.raises(UnsupportedModel, match=r"config\.json of the model (is nested|holds more|has)"):
        read_json(root / "model" / "unet" / "config.json")


def test_a_vocabulary_beyond_any_model_is_refused_by_name(store, root):
    with (root / "model" / "tokenizer" / "tokenizer.json").open("wb") as file:
        file.truncate(2**26 + 1)
    with pytest.raises(UnsupportedModel, match=r"tokenizer/tokenizer\.json of model has"):
        store.peek(parse_reference(f"file:{root}/model"))


def test_other_json_beside_the_model_does_no_harm(store, root):
    (root / "model" / "prompts.json").write_text("[1, 2]")
    (root / "model" / "config.json").mkdir()
    assert "prompts.json" not in store.peek(parse_reference(f"file:{root}/model")).configs


def test_adapters_are_found_by_name_in_the_usual_folders_and_nowhere_else(root, tmp_path):
    for path in (root / "loras/a.safetensors", root / "models/Lora/sub/b.sft", root / "hypernetworks/c.safetensors"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "outside.safetensors").write_bytes(b"")
    (root / "loras" / "link.safetensors").symlink_to(tmp_path / "outside.safetensors")
    folders = AdapterFolders([root])
    assert folders.find("lora", "a") == f"file:{root.resolve()}/loras/a.safetensors"
    assert folders.find("lora", "sub\\b") == f"file:{root.resolve()}/models/Lora/sub/b.sft"
    assert folders.find("hypernet", "c") == f"file:{root.resolve()}/hypernetworks/c.safetensors"
    for name in ("c", "none", "link", "../../outside", "/etc/passwd", "a\0", "a" * 5_000):
        assert folders.find("lora", name) is None


def test_a_part_behind_a_link_is_counted(store, root):
    before = both(store, f"file:{root}/model")
    (root / "model" / "unet").rename(root / "elsewhere")
    (root / "model" / "unet").symlink_to(root / "elsewhere")
    outline, files = both(store, f"file:{root}/model")
    assert (outline.weight_bytes, files.total_bytes) == (before[0].weight_bytes, before[1].total_bytes)


def test_weights_that_are_there_twice_are_counted_once(store, root):
    before = both(store, f"file:{root}/model")[0].weight_bytes
    for number in (1, 2):
        weights(root / "model" / "unet" / f"diffusion_pytorch_model-0000{number}-of-00002.safetensors", 5_000)
    weights(root / "model" / "unet" / f"._{WEIGHTS}", 5_000)
    assert both(store, f"file:{root}/model")[0].weight_bytes == before


class TestFoldersThatStandForAModel:
    @pytest.fixture
    def cache(self, root):
        """A cache of the Hub's layout, with two snapshots of one repository."""
        repository = root / "hub" / "models--org--model"
        for commit in ("a" * 40, "b" * 40):
            write_pipeline(repository / "snapshots" / commit)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("a" * 40)
        return root / "hub"

    @pytest.mark.parametrize("named", ["hub", "hub/models--org--model"])
    def test_a_cache_of_the_hub_is_its_snapshot(self, store, root, cache, named):
        outline, files = both(store, f"file:{root}/{named}")
        assert files.root == cache / "models--org--model" / "snapshots" / ("a" * 40)
        assert "model_index.json" in outline.configs

    def test_a_cache_of_several_models_names_them(self, store, root, cache):
        write_pipeline(cache / "models--org--other" / "snapshots" / "c")
        with pytest.raises(UnsupportedModel, match=r"cache of 2 models.*models--org--model"):
            store.peek(parse_reference(f"file:{root}/hub"))

    @pytest.mark.parametrize("beside", ["README.md", "._x.safetensors", "adapter_config.json"])
    def test_a_folder_with_one_weight_file_is_that_file(self, store, root, beside):
        weights(root / "folder" / "x.safetensors")
        (root / "folder" / beside).write_text("{}")
        outline, files = both(store, f"file:{root}/folder")
        assert files.root == root / "folder" / "x.safetensors"
        assert outline.header.tensors == {"weight": ("F32", (64,))}
        assert set(outline.configs) == {beside} & {"adapter_config.json"}

    def test_a_component_s_folder_stays_one(self, store, root):
        weights(root / "vae" / WEIGHTS)
        (root / "vae" / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
        assert both(store, f"file:{root}/vae")[1].root == root / "vae"

    @pytest.mark.parametrize("beside", [None, "notes"], ids=["files alone", "a folder beside"])
    def test_a_folder_with_several_weight_files_names_them_and_the_fix(self, store, root, beside):
        folder = root / "mine"
        for name in ("a.safetensors", "b.sft"):
            weights(folder / name)
        if beside:
            (folder / beside).mkdir()
        said = r"file:…/mine has 2 weight files \(a\.safetensors, b\.sft\); .*#a\.safetensors"
        for ask in (store.peek, lambda source, variant: store.ensure(source, variant, print, StopSignal(5))):
            with pytest.raises(UnsupportedModel, match=said) as error:
                ask(parse_reference(f"file:{folder}"), None)
            assert error.value.details == {"files": ["a.safetensors", "b.sft"]}

"""What a worker tells of itself and of models, without drawing."""

import json

import jsonschema
import pytest

from tests.catalog.corpus import index, sparse_file, stored
from tests.counting import bytes_read
from tests.fakes.engine import make_context
from tests.fakes.hub import FakeHub
from worker.catalog import capabilities
from worker.core.errors import ModelNotFound
from worker.core.model import Outline
from worker.store.store import Store


async def test_models_lists_the_registry(context):
    listed = {entry["id"]: entry for entry in (await context.ask(action="models"))["models"]}
    assert [*listed] == ["tiny", "any", "org/sdxl", "fast", "editor", "video", "prior"]
    assert listed["tiny"]["aliases"] == ["small"]
    assert listed["org/sdxl"]["source"] == "org/sdxl"
    assert listed["org/sdxl"]["tasks"] == ["text-to-image"]
    assert listed["tiny"]["source"] == "file"  # not where it lies
    assert listed["video"]["served"]
    assert not listed["prior"]["served"]
    assert listed["any"]["served"]
    assert context.builder.built == 0


async def test_schema_is_json_schema_of_what_the_worker_takes(context):
    schema = await context.ask(action="schema", model="small")
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["properties"]["num_inference_steps"]["default"] == 5
    assert schema["properties"]["num_images"]["maximum"] == 8
    for example in schema["examples"]:
        jsonschema.validate(example, schema)
    assert (await context.ask(**schema["examples"][0]))["image"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"prompt": "x", "widht": 64}, schema)


async def test_schema_of_a_model_that_is_not_here_needs_no_network(context):
    schema = await context.ask(action="schema", model="org/sdxl")
    assert schema["properties"]["guidance_scale"]["default"] == 6.5
    assert context.builder.built == 0


async def test_inspect_says_what_a_folder_is_and_how_that_is_known(context):
    answer = await context.ask(action="inspect", model="any")
    assert (answer["kind"], answer["format"], answer["architecture"]) == ("pipeline", "diffusers", "sd1")
    assert answer["pipeline"] == "StableDiffusionPipeline"
    assert answer["native_size"] == 64
    assert any("model_index.json" in line for line in answer["evidence"])
    assert str(context.worker.settings.models_yaml.parent) not in str(answer)
    assert set(answer) == {
        *(
            "model",
            "source",
            "revision",
            "kind",
            "confidence",
            "format",
            "quantization",
            "parts",
            "architecture",
            "variant",
        ),
        *("pipeline", "tasks", "prediction_type"),
        *("native_size", "weight_bytes", "evidence", "near"),
    }
    assert context.builder.built == 0


@pytest.mark.parametrize(
    ("name", "kind"), [("sdxl", "checkpoint"), ("lora-sdxl-kohya", "lora"), ("t5-xxl", "text-encoder")]
)
async def test_inspect_reads_the_header_of_a_file_and_none_of_its_weights(tmp_path, name, kind):
    context = make_context(tmp_path, allow_unregistered_models=True)
    path = sparse_file(tmp_path / "models/file.safetensors", stored(name))
    await context.ask(action="inspect", model=f"file:{path}")  # imports, and reads the tables
    before = bytes_read()
    answer = await context.ask(action="inspect", model=f"file:{path}")
    assert bytes_read() - before < 4_000_000, "its weights are gigabytes"
    assert answer["kind"] == kind
    assert answer["format"]
    assert answer["weight_bytes"] > 0.99 * path.stat().st_size - 2**20
    assert path.stat().st_size > 50_000_000


_QWEN_21 = {
    "processor": ("transformers", "Qwen3VLProcessor"),
    "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
    "text_encoder": ("transformers", "Qwen3VLForConditionalGeneration"),
    "transformer": ("diffusers", "QwenImage21Transformer2DModel"),
    "vae": ("diffusers", "AutoencoderKLQwenImage21"),
}


@pytest.mark.parametrize(
    ("pipeline", "parts", "tasks"),
    [
        ("QwenImage21Pipeline", _QWEN_21, ["text-to-image", "image-editing"]),
        ("QwenImage21ModularPipeline", _QWEN_21, ["text-to-image", "image-editing"]),
        ("QwenImage21TurboModularPipeline", _QWEN_21, ["text-to-image", "image-editing"]),
        ("BriaFibo2Pipeline", {}, ["text-to-image", "image-editing"]),  # of no family that is known here
    ],
)
async def test_inspect_and_the_schema_tell_the_same_tasks_of_a_repository(
    tmp_path, monkeypatch, pipeline, parts, tasks
):
    context = make_context(tmp_path, allow_unregistered_models=True)
    modular = "Modular" in pipeline
    index = {"_class_name": pipeline, **{name: [*entry, {}][: 2 + modular] for name, entry in parts.items()}}
    configs = {f"{name}/config.json": {"_class_name": cls} for name, (_, cls) in parts.items()}
    configs["modular_model_index.json" if modular else "model_index.json"] = index
    monkeypatch.setattr(Store, "peek", lambda *_: Outline(configs=configs))
    monkeypatch.setattr(capabilities, "find_spec", lambda name: name)  # as in the GPU image, which has torchvision
    answer = await context.ask(action="inspect", model="org/model")
    schema = await context.ask(action="schema", model="org/model")
    assert answer["tasks"] == [task for task in schema["properties"]["task"]["enum"] if task] == tasks
    assert "image" in schema["properties"]


async def test_inspect_of_what_is_not_there(context, tmp_path):
    with pytest.raises(ModelNotFound, match="does not exist"):
        await context.ask(action="inspect", model=f"file:{tmp_path}/models/none.safetensors")


async def test_plan_says_what_fits(context, tmp_path):
    path = sparse_file(tmp_path / "models/sdxl.safetensors", stored("sdxl"))
    answer = await context.ask(action="plan", model=f"file:{path}")
    assert answer["fits"] is True
    assert answer["device"] == "Fake GPU"
    assert answer["architecture"] == "sdxl"
    assert (answer["dtype"], answer["offload"]) == ("bfloat16", "none")
    assert 6 < answer["weight_gb"] < 8
    assert answer["weight_gb"] < answer["estimated_gb"] < 20
    assert answer["reasons"]


async def test_plan_of_what_is_too_large_says_so_in_numbers(context, tmp_path, monkeypatch):
    from worker.core.device import DeviceInfo

    path = sparse_file(tmp_path / "models/sdxl.safetensors", stored("sdxl"))
    monkeypatch.setattr(context.engine, "device_info", lambda **_: DeviceInfo("cuda", "Small GPU", 2**30, 2**30))
    answer = await context.ask(action="plan", model=f"file:{path}")
    assert answer["fits"] is False
    assert "Small GPU has 1.0 GiB free" in answer["reason"]


async def test_plan_spreads_a_model_over_the_gpus_that_its_row_names(tmp_path, monkeypatch):
    from worker.core.device import Card, DeviceInfo

    folder = make_context(tmp_path).worker.settings.models_yaml.parent / "models/sd1"
    for part in ("unet", "text_encoder"):
        (folder / part).mkdir(exist_ok=True)
        sparse_file(folder / part / "model.safetensors", index({"conv_in.weight": (5000, 2000)}))
    row = {"source": f"file:{folder}", "device_map": {"text_encoder": 1}}
    path = tmp_path / "wide.yaml"
    path.write_text(json.dumps({"models": {"tiny": row}}))
    context = make_context(tmp_path / "b", models_yaml=path, allowed_model_dirs=[tmp_path])
    cards = (Card("A", 2**34, 2**33), Card("B", 2**34, 2**32))

    def info(*, cards: bool = False, several: tuple[Card, ...] = cards) -> DeviceInfo:
        return DeviceInfo("cuda", "A", 2**34, 2**33, several if cards else ())

    monkeypatch.setattr(context.engine, "device_info", info)
    answer = await context.ask(action="plan", model="tiny")
    assert (answer["fits"], answer.get("offload"), answer.get("reason")) == (True, "none", None)
    assert answer["device_map"] == {"text_encoder": 1, "unet": 0}
    assert len(answer["gpu_gb"]) == 2
    assert sum(answer["gpu_gb"]) == pytest.approx(answer["estimated_gb"], abs=0.02)


async def test_plan_of_a_model_that_is_not_here_fetches_no_weights(tmp_path):
    made = make_context(tmp_path)  # writes the folder
    folder = made.worker.settings.models_yaml.parent / "models/sd1"
    weights = sparse_file(folder / "unet/diffusion_pytorch_model.safetensors", index({"conv_in.weight": (5000, 2000)}))
    sparse_file(folder / "vae/diffusion_pytorch_model.safetensors", index({"conv_in.weight": (1,)}))
    with FakeHub() as hub:
        hub.add_repo("org/sdxl", folder)
        context = make_context(tmp_path / "b", OFFLINE=False, hf_endpoint=hub.endpoint)
        answer = await context.ask(action="plan", model="org/sdxl")
        asked = [seen.path for seen in hub.requests if seen.method == "GET"]
    assert answer["fits"] is True
    assert answer["weight_gb"] == round(weights.stat().st_size / 2**30, 2) > 0
    assert answer["revision"]
    assert not any(path.endswith(".safetensors") for path in asked)


async def test_plan_never_promises_what_it_cannot_know(context):
    answer = await context.ask(action="plan", model="tiny")  # a folder without weights
    assert answer["fits"] is None
    assert "not known" in answer["reason"]


async def test_status_tells_what_runs(context):
    before = await context.ask(action="status")
    assert (before["status"], before["running"], before["resident_models"]) == ("starting", None, [])
    assert before["models"] == 7
    assert "text-to-image" in before["tasks"]
    assert context.builder.built == 0
    await context.draw()
    after = await context.ask(action="status")
    assert (after["status"], after["resident_models"]) == ("ready", ["tiny"])


async def test_preload_and_unload(context):
    loaded = await context.ask(action="preload", model="small")
    assert (loaded["model"], loaded["resident"], loaded["dtype"], loaded["weight_gb"]) == ("tiny", True, "float32", 1.0)
    assert (await context.ask(action="status"))["resident_models"] == ["tiny"]
    assert await context.ask(action="unload", model="small") == {"model": "tiny", "unloaded": True}
    assert await context.ask(action="unload", model="small") == {"model": "tiny", "unloaded": False}


@pytest.mark.parametrize("action", ["schema", "inspect", "plan", "preload", "unload"])
async def test_an_unknown_model_is_refused_by_every_action(context, action):
    with pytest.raises(ModelNotFound) as failure:
        await context.ask(action=action, model="other/model")
    assert failure.value.field == "model"
    assert context.builder.built == 0


async def test_a_schema_offers_the_tasks_that_would_be_accepted_and_their_media(tmp_path):
    from worker.app.build import build_worker
    from worker.app.settings import Settings

    worker = build_worker(Settings(volume_dir=tmp_path, device="cpu"))
    schema = (await worker.operations.introspection.schema("sdxl")).document
    assert schema["properties"]["task"]["enum"] == ["text-to-image", "image-to-image", "inpainting", None]
    assert {"image", "mask_image", "strength", "padding_mask_crop"} <= schema["properties"].keys()
    assert not {"video", "control_image", "num_frames", "fps"} & schema["properties"].keys()
    assert schema["$defs"]["OutputOptions"]["properties"]["format"]["enum"] == ["png", "jpeg", "webp", None]

"""The registry: what ships loads, and each kind of mistake stops the start with its line."""

import math
from pathlib import Path

import pytest

from worker.catalog.call import Model, declared
from worker.catalog.interface.checking import check_parameters
from worker.catalog.operator_file import MAX_BYTES
from worker.catalog.registry import Registry, RegistryError, load_registry
from worker.core.errors import InvalidRequest
from worker.core.model import ModelSource, ModelSpec, Task

SHIPPED = Path(__file__).parents[2] / "models.yaml"


def parse(text: str) -> ModelSource:
    """A stand-in for the store's parser: catalog may not know the store."""
    scheme, _, rest = text.partition(":")
    if scheme == "file":
        return ModelSource(scheme="file", locator=rest)
    if text.count("/") != 1 or " " in text:
        raise InvalidRequest(f"{text!r} is no reference; write org/repo.")
    repo, _, filename = text.partition("#")
    repo, _, revision = repo.partition("@")
    return ModelSource(scheme="hf", locator=repo, revision=revision or None, filename=filename or None)


def load(tmp_path: Path, text: str, **overrides: str) -> Registry:
    path = tmp_path / "models.yaml"
    path.write_text(text, encoding="utf-8")
    return load_registry(path, parse_source=parse, overrides=overrides)


TIERS = "tiers:\n  A10G: {vram_gb: 24}\n"

BROKEN = {
    "unknown fallback": ("models:\n  org/a:\n    fallback: org/b\n  org/c: {}\n", 3, "no model of this file"),
    "unknown upscaler": ("models:\n  org/a:\n    upscale: {model: org/b, scale: 4}\n", 3, "no model of this file"),
    "its own upscaler": ("models:\n  org/a:\n    upscale: {model: org/a, scale: 4}\n", 3, "cannot be its own upscale"),
    "upscaler without scale": ("models:\n  org/a:\n    upscale: {model: org/b}\n", 3, "scale is missing"),
    "upscaler that enlarges by half": ("models:\n  org/a:\n    upscale: {model: org/b, scale: 0.5}\n", 3, "scale"),
    "its own fallback": ("models:\n  org/a:\n    fallback: org/a\n", 3, "cannot be its own fallback"),
    "bad base": ("models:\n  org/a:\n    base: not a reference\n", 3, "is not a model reference"),
    "bad vae": ("models:\n  org/a:\n    vae: nothing\n", 3, "is not a model reference"),
    "bad component": ("models:\n  org/a:\n    components:\n      unet: x\n", 4, "is not a model reference"),
    "bad component name": ("models:\n  org/a:\n    components: {../x: org/b}\n", 3, "components"),
    "bad prediction": ("models:\n  org/a:\n    prediction_type: sample\n", 3, "prediction_type"),
    "duplicate id": ("models:\n  org/a: {}\n  org/b: {}\n  org/a: {}\n", 4, "org/a is already defined at line 2"),
    "duplicate key": ("models:\n  org/a:\n    dtype: float16\n    dtype: float32\n", 4, "dtype is already defined"),
    "unknown key": ("models:\n  org/a:\n    teir: L40S\n", 3, "unknown key models.org/a.teir; did you mean tier?"),
    "unknown top key": ("model:\n  org/a: {}\nmodels:\n  org/b: {}\n", 1, "unknown key model; did you mean models?"),
    "no models": ("defaults: {dtype: float16}\n", 1, "models is missing"),
    "alias is an id": (
        "models:\n  org/a: {}\n  org/b:\n    aliases:\n      - x\n      - ORG/A\n",
        6,
        "already names org/a",
    ),
    "alias twice": ("models:\n  org/a: {aliases: [sd]}\n  org/b: {aliases: [SD]}\n", 3, "already names org/a (line 2)"),
    "a training without end": ("models:\n  org/a:\n    training: {batch_size: 65}\n", 3, "batch_size"),
    "a training of its own": ("models:\n  org/a:\n    training: {rate: 1}\n", 3, "unknown key"),
    "unknown tier": (TIERS + "models:\n  org/a:\n    tier: H900\n", 5, "tier H900 is not defined; the tiers are A10G"),
    "unknown default tier": ("defaults:\n  tier: L4\n" + TIERS + "models: {org/a: {}}\n", 2, "tier L4 is not defined"),
    "tier too small": (
        TIERS + "models:\n  org/a: {tier: A10G,\n   min_vram_gb: 80}\n",
        5,
        "more than the 24 of tier A10G",
    ),
    "bad dtype": ("models:\n  org/a:\n    dtype: fp16\n", 3, "'float32', 'float16' or 'bfloat16'"),
    "bad precision": ("models:\n  org/a:\n    precision: 6bit\n", 3, "'8bit' or '4bit'"),
    "device map of a word": (
        "models:\n  org/a:\n    device_map: auto\n",
        3,
        'device_map must be balanced, or a mapping of components to numbers of GPUs from 0 to 63; "auto" was written',
    ),
    "device map of a name": ("models:\n  org/a:\n    device_map: {vae: cuda}\n", 3, "numbers of GPUs from 0 to 63"),
    "context parallel of one": ("models:\n  org/a:\n    context_parallel: 1\n", 3, "context_parallel"),
    "context parallel, spread": (
        "models:\n  org/a:\n    context_parallel: 2\n    device_map: balanced\n",
        3,
        "context_parallel does not go with device_map; remove one of the two",
    ),
    "context parallel, smaller": (
        "models:\n  org/a:\n    context_parallel: 2\n    precision: 8bit\n",
        3,
        "context_parallel does not go with precision",
    ),
    "device map of one": ("models:\n  org/a:\n    device_map: {vae: 0}\n", 3, "puts nothing on another GPU than 0"),
    "device map of a denoiser": (
        "models:\n  org/a:\n    device_map:\n      vae: 1\n      unet: 1\n",
        5,
        "must leave unet on GPU 0, where latents and adapters are; 1 was written: put it on 0",
    ),
    "precision against dtype": (
        "models:\n  org/a:\n    dtype: float16\n    precision: bf16\n",
        4,
        "precision bf16 computes in bfloat16, and dtype says float16",
    ),
    "task twice": ("models:\n  org/a:\n    tasks: [inpainting, inpainting]\n", 3, "names a task twice"),
    "bad task": ("models:\n  org/a:\n    tasks:\n      - text-to-image\n      - painting\n", 5, "text-to-image"),
    "task of another family": (
        "models:\n  org/a:\n    architecture: sd1\n    tasks: [text-to-image, text-to-video]\n",
        4,
        "Stable Diffusion 1.x has no text-to-video",
    ),
    "unknown architecture": ("models:\n  org/a:\n    architecture: sdlx\n", 3, "did you mean sdxl?"),
    "alias and anchor": ("models:\n  org/a: &x {dtype: float16}\n  org/b: *x\n", 2, "anchors (&)"),
    "python tag": ("models:\n  org/a:\n    dtype: !!python/object/apply:os.getcwd []\n", 3, "tags (!)"),
    "nested too deep": ("models:\n  org/a:\n    defaults: {x: " + "[" * 2000 + "]" * 2000 + "}\n", 3, "deeper than 12"),
    "not yaml": ("models:\n  org/a: {dtype: float16\n  org/b: {}\n", 3, "is not valid YAML"),
    "tab": ("models:\n\torg/a: {}\n", 2, "is not valid YAML"),
    "a list": ("- org/a\n", 1, "must be a mapping"),
    "empty": ("", 1, "must be a mapping"),
    "two documents": ("models: {org/a: {}}\n---\nmodels: {}\n", 2, "is not valid YAML"),
    "control character": ("models: {org/a: {description: 'a\x01b'}}\n", 1, "does not allow"),
    "bad source": ("models:\n  org/a:\n    source: not a reference\n", 3, "is no reference"),
    "id is no reference": ("models:\n  demo: {}\n", 2, "'demo' is no reference"),
    "id with a space": ("models:\n  org/a: {}\n  'org/b c': {}\n", 3, "cannot be a model id"),
    "revision unquoted": ("models:\n  org/a:\n    revision: 123\n", 3, "123 was written: put it in quotes"),
    "two revisions": ("models:\n  org/a:\n    source: org/a@main\n    revision: v2\n", 4, "different revisions"),
    "steps as text": (
        "models:\n  org/a:\n    architecture: sd1\n    defaults:\n      eta: 0\n      num_inference_steps: many\n",
        6,
        "num_inference_steps must be an integer between 1 and 150",
    ),
    "misspelt default": (
        "models:\n  org/a:\n    architecture: sdxl\n    defaults:\n      num_inference_step: 30\n",
        5,
        "did you mean num_inference_steps?",
    ),
    "misspelt default, family not said": (
        "models:\n  org/a:\n    defaults:\n      num_inference_step: 30\n",
        4,
        "did you mean num_inference_steps?",
    ),
    "default of another family": (
        "models:\n  org/a:\n    architecture: sdxl\n    defaults: {true_cfg_scale: 4.0}\n",
        4,
        "send guidance_scale instead",
    ),
    "infinite guidance": (
        "models:\n  org/a:\n    defaults:\n      guidance_scale: .inf\n",
        4,
        "guidance_scale must be",
    ),
    "bool is no number": ("models:\n  org/a:\n    min_vram_gb: true\n", 3, "true was written"),
    "unknown limit": (
        "models:\n  org/a:\n    limits:\n      max_side: 512\n      max_size: 512\n",
        5,
        "unknown limit max_size",
    ),
    "limit of zero": ("models:\n  org/a:\n    limits: {max_side: 0}\n", 3, "whole number from 1 up"),
    "lora without a model": ("models:\n  org/a:\n    loras:\n      - {weight: 1.0}\n", 4, "model is missing"),
    "lora weight": (
        "models:\n  org/a:\n    loras:\n      - model: org/l\n        weight: 99\n",
        5,
        "less than or equal to 10",
    ),
    "lightning without steps": ("models:\n  org/a:\n    lightning: {lora: org/l}\n", 3, "lightning.steps is missing"),
    "lightning lora": ("models:\n  org/a:\n    lightning: {lora: nowhere, steps: 8}\n", 3, "'nowhere' is no reference"),
    "tier value": ("tiers:\n  A10G:\n    vram_gb: 0\nmodels: {org/a: {}}\n", 3, "greater than 0; 0 was written"),
}


@pytest.mark.parametrize(("text", "line", "part"), BROKEN.values(), ids=BROKEN.keys())
def test_a_mistake_names_its_line(tmp_path: Path, text: str, line: int, part: str) -> None:
    with pytest.raises(RegistryError) as caught:
        load(tmp_path, text)
    message = str(caught.value)
    assert message.startswith(f"models.yaml:{line}: "), message
    assert part in message
    assert "\n" not in message
    assert len(message) < 600
    assert str(tmp_path) not in message


def test_a_file_that_is_no_text_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    path.write_bytes(b"models:\n  org/a: {description: \xff}\n")
    with pytest.raises(RegistryError, match=r"^models.yaml:2: is not UTF-8"):
        load_registry(path, parse_source=parse)


def test_a_huge_file_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"^models.yaml:1: is [\d,]+ bytes; the limit is"):
        load(tmp_path, "models: {org/a: {}}\n" + "#" * MAX_BYTES)


def test_a_missing_file_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="cannot be read"):
        load_registry(tmp_path / "models.yaml", parse_source=parse)


def test_yaml_surprises_stay_words(tmp_path: Path) -> None:
    registry = load(tmp_path, "models:\n  org/a: {description: no}\n  org/b: {description: 12:30:45}\n")
    assert [spec.description for spec in registry.models.values()] == ["no", "12:30:45"]
    assert load(tmp_path, "models:\n  org/a: {revision: '123'}\n").models["org/a"].source.revision == "123"


def test_what_is_not_said_comes_from_the_defaults_and_the_id(tmp_path: Path) -> None:
    text = (
        "defaults: {dtype: bfloat16, tier: A10G}\n"
        + TIERS
        + "models:\n  org/a:\n  org/b: {dtype: float16, revision: v1}\n"
    )
    registry = load(tmp_path, text)
    first, second = registry.models.values()
    assert (first.dtype, first.tier, first.source) == ("bfloat16", "A10G", ModelSource(scheme="hf", locator="org/a"))
    assert (second.dtype, second.source.revision) == ("float16", "v1")


def test_relative_files_are_meant_from_the_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    text = (
        "models:\n  mine: {source: 'file:weights/a', config: configs/a, loras: [{model: 'file:style'}, org/other],"
        " lightning: {lora: 'file:fast', steps: 4}}\n  other: {source: 'file:/srv/b'}\n"
    )
    mine, other = load(tmp_path, text).models.values()
    assert mine.source.locator == str(tmp_path / "weights/a")
    assert mine.config == str(tmp_path / "configs/a")
    assert mine.loras[0].model == f"file:{tmp_path}/style"
    assert (mine.loras[1].model, mine.loras[1].weight) == ("org/other", 1.0)
    assert mine.lightning is not None
    assert mine.lightning.lora == f"file:{tmp_path}/fast"
    assert other.source.locator == "/srv/b"


def test_the_environment_overrides_tiers(tmp_path: Path) -> None:
    text = TIERS + "  A100-80GB: {vram_gb: 80, timeout_s: 900}\nmodels: {org/a: {}}\n"
    registry = load(
        tmp_path,
        text,
        DIFFUSERS_A10G_MAX_CONTAINERS="3",
        DIFFUSERS_A10G_SCALEDOWN="60",
        DIFFUSERS_A100_80GB_TIMEOUT="120",
        DIFFUSERS_VERBOSITY="info",
        DIFFUSERS_REQUEST_TIMEOUT="5",
        HOME="/root",
    )
    small, large = registry.tiers["A10G"], registry.tiers["A100-80GB"]
    assert (small.max_containers, small.scaledown_s, small.timeout_s, small.vram_gb) == (3, 60, 1800, 24)
    assert (large.timeout_s, large.max_containers) == (120, 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DIFFUSERS_A10G_TIMEOUT", "soon"),
        ("DIFFUSERS_A10G_TIMEOUT", "0"),
        ("DIFFUSERS_A10G_SCALEDOWN", "4000"),
        ("DIFFUSERS_A10G_MAX_CONTAINERS", "-1"),
        ("DIFFUSERS_A10G_MAX_CONTAINERS", "9" * 5000),
        ("DIFFUSERS_H100_TIMEOUT", "60"),
    ],
)
def test_a_bad_override_names_the_variable(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(RegistryError, match=name) as caught:
        load(tmp_path, TIERS + "models: {org/a: {}}\n", **{name: value})
    assert len(str(caught.value)) < 300


def shipped() -> Registry:
    return load_registry(SHIPPED, parse_source=parse)


# An upscaler's file lies beside the demo model, and shows what it is by itself.
SHIPPED_IDS = [name for name, spec in shipped().models.items() if spec.tasks != (Task.UPSCALING,)]


@pytest.mark.parametrize("model", SHIPPED_IDS)
def test_each_shipped_model_is_ready_before_any_download(model: str) -> None:
    spec = shipped().models[model]
    assert declared(spec) is not None, "no architecture"
    assert spec.tasks
    assert spec.description
    assert spec.tier in shipped().tiers
    assert spec.source.scheme == ("file" if model == "demo" else "hf")
    for task in spec.tasks:
        effective = check_parameters({}, Model.declared(spec).call(task, lightning=True), max_images=8)
        assert effective["num_inference_steps"] >= 1
        for name in ("guidance_scale", "true_cfg_scale"):
            if name in spec.defaults and spec.lightning is None and name in effective:
                assert effective[name] == spec.defaults[name]


def test_the_shipped_registry_has_what_it_promises() -> None:
    registry = shipped()
    for name in ("demo", "sdxl", "flux-schnell", "zai-org/GLM-Image", "THUDM/CogVideoX-5b", "Qwen/Qwen-Image-Edit"):
        assert registry.find(name) is not None, name
    assert registry.models["demo"].source.locator == str(SHIPPED.resolve().parent / "models/demo")
    edit = registry.models["Qwen/Qwen-Image-Edit"]
    assert Model(edit).tasks == (Task.IMAGE_EDITING,)
    assert edit.lightning is not None
    fast, slow = (
        check_parameters({}, Model.declared(edit).call(Task.IMAGE_EDITING, lightning=lightning), max_images=8)
        for lightning in (True, False)
    )
    assert (fast["num_inference_steps"], fast["true_cfg_scale"]) == (8, 1.0)
    assert (slow["num_inference_steps"], slow["true_cfg_scale"]) == (50, 4.0)


def test_how_a_model_is_put_together(tmp_path: Path) -> None:
    registry = load(
        tmp_path,
        "models:\n  org/a: {base: org/b, vae: 'file:vae.safetensors', prediction_type: v_prediction, fallback: org/c,\n"
        "    components: {text_encoder: 'org/d@v1'}}\n  org/c: {}\n",
    )
    spec = registry.models["org/a"]
    assert (spec.base, spec.prediction_type, spec.fallback) == ("org/b", "v_prediction", "org/c")
    assert spec.vae == f"file:{(tmp_path / 'vae.safetensors').resolve()}"
    assert spec.components == {"text_encoder": "org/d@v1"}
    assert spec.source.without == ("text_encoder", "vae"), "they need not be in org/a"


def test_find_and_nearest(tmp_path: Path) -> None:
    registry = load(tmp_path, "models:\n  org/Big-Model: {aliases: [big]}\n  org/small: {}\n")
    big = registry.models["org/Big-Model"]
    assert registry.find("ORG/big-model") == registry.find(" Big ") == big
    assert registry.find("bigger") is None
    assert registry.nearest("big-modle") == ["org/Big-Model"]
    assert registry.nearest("smal") == ["org/small"]
    assert registry.nearest("") == registry.nearest("zzzzzzzz") == []


def test_with_model_adds_replaces_and_refuses_a_taken_name(tmp_path: Path) -> None:
    registry = load(tmp_path, "models:\n  org/a: {aliases: [x]}\n")
    source = ModelSource(scheme="hf", locator="org/new")
    grown = registry.with_model(ModelSpec(id="org/new", source=source))
    assert list(grown.models) == ["org/a", "org/new"]
    assert list(registry.models) == ["org/a"]
    assert grown.with_model(ModelSpec(id="org/a", source=source)).models["org/a"].source == source
    with pytest.raises(ValueError, match="X already names the model org/a"):
        registry.with_model(ModelSpec(id="org/b", aliases=("X",), source=source))


def test_the_registry_cannot_be_changed(tmp_path: Path) -> None:
    registry = load(tmp_path, "models:\n  org/a: {}\n")
    with pytest.raises(TypeError):
        registry.models["org/b"] = registry.models["org/a"]  # type: ignore[index]


def test_a_device_map_is_a_word_or_the_numbers_of_gpus(tmp_path: Path) -> None:
    text = f"{TIERS}models:\n  org/a: {{device_map: balanced, tier: A10G, min_vram_gb: 40}}\n"
    assert load(tmp_path, text).models["org/a"].device_map == "balanced"
    spec = load(tmp_path, "models:\n  org/a: {device_map: {transformer: 0, text_encoder_2: 1}}\n").models["org/a"]
    assert spec.device_map == {"transformer": 0, "text_encoder_2": 1}


def test_numbers_are_json_numbers(tmp_path: Path) -> None:
    text = "models:\n  org/a: {min_vram_gb: 25, defaults: {guidance_scale: 5.0, num_inference_steps: 30, eta: 1e-1}}\n"
    spec = load(tmp_path, text).models["org/a"]
    assert spec.min_vram_gb == 25
    assert spec.defaults == {"guidance_scale": 5.0, "num_inference_steps": 30, "eta": 0.1}
    assert all(math.isfinite(float(str(value))) for value in spec.defaults.values())

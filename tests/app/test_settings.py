"""The settings that other workers of this kind had too: each works, or stops the start; none is ignored in silence."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.engine import make_context
from tests.fakes.web_worker import WebWorker
from tests.transport.web.uploads import png
from worker.app.environment import choose_gpu, visible_gpus
from worker.app.processes import places, sharing_warnings
from worker.app.registry import build_registry, registry_warnings
from worker.app.settings import PROJECT_DIR, Settings, SettingsError, read_settings
from worker.catalog.call import Model
from worker.catalog.interface.precisions import settled
from worker.core.device import DeviceInfo
from worker.core.model import Detection, Kind, ModelFiles, ModelSource, ModelSpec
from worker.core.precision import Reducible
from worker.engine.plan import GIB, make_plan

EDITOR = "Qwen/Qwen-Image-Edit"


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """A folder of its own to start in, and an environment that is left as it was."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(root, **settings):
    """What the engine was asked to draw of a request that says nothing but words and an image."""
    with WebWorker(root, **settings) as served:
        answer = served.http.post("/run", json={"prompt": "x"})
        assert answer.status_code == 200, answer.text
        return served.context.engine.ran[0]


def test_default_steps_and_guidance_are_the_default_models(tmp_path):
    job = run(tmp_path, default_steps=5, default_guidance=3.5)
    assert (job.params["num_inference_steps"], job.params["guidance_scale"]) == (5, 3.5)


@pytest.mark.parametrize(("lightning", "guidance"), [(None, 1.0), (False, 7.0)])
def test_default_guidance_is_the_familys_own_parameter(lightning, guidance):
    registry = build_registry(
        Settings(model_id=EDITOR, default_guidance=7.0, default_steps=28, use_lightning_lora=lightning)
    )
    spec = registry.find(EDITOR)
    assert spec.defaults == {"num_inference_steps": 28, "guidance_scale": 7.0}
    from worker.catalog.call import Model
    from worker.catalog.interface.parameters import defaults

    call = Model.declared(spec).calls[0]
    assert defaults(call)["true_cfg_scale"] == guidance


def test_defaults_that_a_lightning_lora_overrules_are_warned_of():
    settings = Settings(model_id=EDITOR, default_steps=28)
    (warning,) = registry_warnings(build_registry(settings), settings)
    assert "DEFAULT_STEPS" in warning and "USE_LIGHTNING_LORA=false" in warning
    settings = Settings(model_id=EDITOR, default_steps=28, use_lightning_lora=False)
    assert registry_warnings(build_registry(settings), settings) == []
    assert registry_warnings(build_registry(Settings(default_steps=28)), Settings(default_steps=28)) == []


async def test_lightning_is_off_where_the_operator_says_so_and_on_where_a_request_does(tmp_path):
    context = make_context(tmp_path, use_lightning_lora=False)
    assert not (await context.accept(model="fast")).call.lightning
    assert (await context.accept(model="fast", lightning=True)).call.lightning
    context = make_context(tmp_path / "on", use_lightning_lora=True)
    assert (await context.accept(model="fast")).call.lightning
    assert not (await context.accept(model="fast", lightning=False)).call.lightning


@pytest.mark.parametrize(("steps", "file"), [(None, "8steps"), (8, "8steps"), (4, "4steps")])
def test_lightning_steps_choose_the_lora(steps, file):
    lightning = build_registry(Settings(lightning_steps=steps)).find(EDITOR).lightning
    assert file in lightning.lora
    assert lightning.steps == (steps or 8)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_id": "demo", "use_lightning_lora": True}, "USE_LIGHTNING_LORA: demo has no Lightning LoRA"),
        ({"model_id": "demo", "lightning_steps": 4}, "LIGHTNING_STEPS: demo has no Lightning LoRA of 4 steps"),
        ({"model_id": "org/model", "use_lightning_lora": True}, "USE_LIGHTNING_LORA: org/model"),
        ({"default_steps": 500}, "DEFAULT_STEPS=500: num_inference_steps"),
        ({"default_guidance": 99}, "DEFAULT_GUIDANCE=99.0: guidance_scale"),
    ],
)
def test_what_cannot_work_stops_the_start(changes, said):
    with pytest.raises(SettingsError, match=said):
        build_registry(Settings(**changes))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PRECISION_MODE", "nonsense"),
        ("LIGHTNING_STEPS", "6"),
        ("USE_LIGHTNING_LORA", "perhaps"),
        ("DEFAULT_STEPS", "x"),
        ("DEFAULT_GUIDANCE", "nan"),
        ("PRESET", "fire"),
    ],
)
def test_an_unknown_value_is_refused_by_name(environment, name, value):
    os.environ[name] = value
    with pytest.raises(SettingsError, match=f"{name}: .*{value}"):
        read_settings()


@pytest.mark.parametrize(
    ("precision", "model", "dtype", "held"),
    [
        (None, "sdxl", "float16", "fp16"),
        ("bf16", "sdxl", "bfloat16", "bf16"),
        ("fp8", "sdxl", "float16", "fp8"),
        ("fp8", "small", "float16", "fp16"),  # stored as GGUF already
        ("fp8", "upscaler", "bfloat16", "bf16"),
        ("fp8", "own", "bfloat16", "int8"),
    ],
)
def test_the_precision_of_the_environment_is_every_models_that_can_have_it(precision, model, dtype, held):
    spec = ModelSpec(id=model, source=ModelSource(scheme="hf", locator="a/m"))
    spec = spec.model_copy(update={"dtype": "float16" if model in ("sdxl", "small") else None})
    spec = spec.model_copy(update={"precision": "int8" if model == "own" else None})
    kind = Kind.UPSCALER if model == "upscaler" else Kind.PIPELINE
    found = Detection(kind, "diffusers", quantization="gguf" if model == "small" else None)
    known = settled(Model(spec, found), precision)
    files = ModelFiles(Path("m"), 0, parameters={"unet": 1_000}, reducible={"unet": Reducible(960)})
    plan = make_plan(known, files, DeviceInfo("cuda", "a GPU", 80 * GIB, 80 * GIB), megapixels=1.0)
    assert (plan.dtype, plan.precision) == (dtype, held)


def test_the_file_env_is_read_and_what_is_set_goes_before_it(environment):
    os.environ |= {"MAX_IMAGES": "3", "MAX_LORAS": ""}
    (environment / ".env").write_text('# mine\nMAX_IMAGES=5\nexport MAX_LORAS="2"\nDIFFUSERS_A10G_TIMEOUT=7\n\n')
    settings = read_settings()
    assert (settings.max_images, settings.max_loras) == (3, 2)
    assert build_registry(settings).tiers["A10G"].timeout_s == 7


@pytest.mark.parametrize("line", ["MAX_IMAGES", "nothing at all", "=5"])
def test_a_line_of_env_that_says_nothing_stops_the_start(environment, line):
    (environment / ".env").write_text(f"MAX_LORAS=2\n{line}\nMAX_IMAGES=4\n")
    with pytest.raises(SettingsError, match=r"\.env:2: "):
        read_settings()


def test_a_preset_is_one_line_and_what_is_set_goes_before_it(environment):
    os.environ["PRESET"] = "firered"
    settings = read_settings()
    assert settings.standalone_mode
    assert settings.listening_ports == (7000,)
    assert (settings.max_concurrent_jobs, settings.timeout_seconds) == (2, 120)
    model = build_registry(settings).find(settings.default_model_id)
    assert model.id == "FireRedTeam/FireRed-Image-Edit-1.0"
    assert model.defaults == {"num_inference_steps": 28, "guidance_scale": 7.0}
    os.environ |= {"API_PORT": "7001", "DEFAULT_STEPS": "9"}
    settings = read_settings()
    assert (settings.listening_ports, settings.default_steps, settings.timeout_seconds) == ((7001,), 9, 120)


def test_the_presets_model_is_that_of_edits(tmp_path):
    preset = Settings(preset="firered")
    with WebWorker(tmp_path, models_yaml=PROJECT_DIR / "models.yaml", default_model=preset.default_model) as served:
        answer = served.http.post(
            "/edit", data={"prompt": "a hat"}, files={"image": ("i.png", png(64, 64), "image/png")}
        )
    assert "FireRedTeam/FireRed-Image-Edit-1.0" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("BATCH_TIMEOUT", "BATCH_TIMEOUT_MS"),
        ("MAX_CONCURENT_JOBS", "MAX_CONCURRENT_JOBS"),
        ("PRECISON_MODE", "PRECISION_MODE"),
        ("HF_TOKN", "HF_TOKEN"),
        ("LIGHTNING_STEP", "LIGHTNING_STEPS"),
    ],
)
def test_a_typo_is_warned_of(environment, name, meant):
    assert Settings().warnings() == []
    os.environ[name] = "5"
    assert [text for text in Settings().warnings() if name in text and meant in text]


@pytest.mark.parametrize(
    "name",
    ["HF_XET_CACHE", "HF_HUB_OFFLINE", "RUNPOD_POD_ID", "OTEL_SERVICE_NAME", "LOG_LEVEL", "PYTHONPATH", "max_images"],
)
def test_other_programs_variables_are_left_alone(environment, name):
    os.environ[name] = "1"
    assert Settings().warnings() == []


@pytest.mark.slow
def test_any_asgi_server_may_run_the_worker(tmp_path):
    code = (
        "import asyncio, httpx\n"
        "from worker.asgi import app\n"
        "async def ask():\n"
        "    transport = httpx.ASGITransport(app)\n"
        "    async with httpx.AsyncClient(transport=transport, base_url='http://x') as http:\n"
        "        return (await http.get('/health')).json()\n"
        "print(asyncio.run(ask())['status'])\n"
    )
    variables = {**os.environ, "VOLUME_DIR": str(tmp_path), "PYTHONPATH": str(PROJECT_DIR)}
    asked = {"capture_output": True, "text": True, "cwd": tmp_path, "timeout": 60}
    done = subprocess.run([sys.executable, "-c", code], env=variables | {"WARM_UP": "false"}, **asked)
    assert done.stdout.strip() in ("starting", "ready"), done.stderr
    for name, value in (("API_PORT", "none"), ("API_WORKERS", "2")):
        done = subprocess.run([sys.executable, "-c", "import worker.asgi"], env=variables | {name: value}, **asked)
        assert (done.returncode, done.stderr.startswith(f"error: {name}")) == (1, True)


@pytest.mark.parametrize(
    ("variables", "processes", "chosen", "warned"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, 2, ["0", "1"], None),
        ({"CUDA_VISIBLE_DEVICES": "GPU-a, GPU-b"}, 2, ["GPU-a", "GPU-b"], None),
        ({"CUDA_VISIBLE_DEVICES": "2,3"}, 3, ["2", "3", "2"], "API_WORKERS=3 and 2 GPUs: some processes share a GPU"),
        ({"CUDA_VISIBLE_DEVICES": ""}, 2, [None, None], "API_WORKERS=2 and no GPU: all processes share the CPU"),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, 2, [None, None], "API_WORKERS=2 and no GPU"),
    ],
)
def test_each_process_has_a_gpu_and_sharing_one_is_warned_of(tmp_path, variables, processes, chosen, warned):
    gpus = visible_gpus(variables)
    assert [place.gpu for place in places(processes, tmp_path, gpus)] == chosen
    warnings = sharing_warnings(processes, len(gpus))
    assert warnings[0].startswith(warned) if warned else warnings == []
    environment = dict(variables)
    choose_gpu(environment, chosen[-1])
    assert environment["CUDA_VISIBLE_DEVICES"] == (chosen[-1] or variables["CUDA_VISIBLE_DEVICES"])

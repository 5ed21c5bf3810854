"""What ships agrees with itself and the code: Hub files, image, requirements, make targets, the deployment page."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.contract.deploy_page import DEPLOY_PAGE, SETTINGS, table
from tests.contract.test_image import DOCKERFILE
from worker.app.posture import FLOORS
from worker.app.settings import PROJECT_DIR, Settings

HUB = json.loads((PROJECT_DIR / ".runpod" / "hub.json").read_text())
HUB_TESTS = json.loads((PROJECT_DIR / ".runpod" / "tests.json").read_text())

SCALAR = {"type": ["string", "number", "boolean"]}
ENV_PAIR = {
    "type": "object",
    "required": ["key", "value"],
    "properties": {"key": {"type": "string"}, "value": {"type": "string"}},
    "additionalProperties": False,
}
ENV_INPUT = {
    "type": "object",
    "required": ["key", "input"],
    "additionalProperties": False,
    "properties": {
        "key": {"type": "string", "pattern": "^[A-Z][A-Z0-9_]*$"},
        "input": {
            "type": "object",
            "required": ["type", "name", "description"],
            "additionalProperties": False,
            "properties": {
                "type": {"enum": ["string", "number", "boolean", "huggingface"]},
                "name": {"type": "string", "minLength": 1},
                "description": {"type": "string", "minLength": 1},
                "default": SCALAR,
                "options": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["label", "value"],
                        "properties": {"label": {"type": "string"}, "value": {"type": "string"}},
                        "additionalProperties": False,
                    },
                },
                "min": {"type": "number"},
                "max": {"type": "number"},
                "trueValue": {"type": "string"},
                "falseValue": {"type": "string"},
                "required": {"type": "boolean"},
                "advanced": {"type": "boolean"},
            },
        },
    },
}
CUDA_VERSIONS = {"type": "array", "minItems": 1, "items": {"type": "string", "pattern": r"^\d+\.\d+$"}}
POOL = "(AMPERE_(16|24|48|80)|ADA_(24|32_PRO|48_PRO|80_PRO)|HOPPER_141|BLACKWELL_(96|180))"
HUB_SCHEMA = {
    "type": "object",
    "required": ["title", "description", "type", "category", "config"],
    "additionalProperties": False,
    "properties": {
        "title": {"type": "string", "minLength": 1},
        "description": {"type": "string", "minLength": 1},
        "type": {"const": "serverless"},
        "category": {"enum": ["audio", "embedding", "language", "video", "image"]},
        "iconUrl": {"type": "string", "pattern": "^https://"},
        "config": {
            "type": "object",
            "required": ["runsOn", "containerDiskInGb", "gpuIds", "gpuCount"],
            "additionalProperties": False,
            "properties": {
                "runsOn": {"const": "GPU"},
                "endpointType": {"const": "LB"},
                "containerDiskInGb": {"type": "integer", "minimum": 1},
                "gpuCount": {"type": "integer", "minimum": 1},
                "gpuIds": {"type": "string", "pattern": f"^{POOL}(,{POOL}|,-NVIDIA [^,]+)*$"},
                "allowedCudaVersions": CUDA_VERSIONS,
                "presets": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["name", "defaults"],
                        "additionalProperties": False,
                        "properties": {
                            "name": {"type": "string", "minLength": 1},
                            "defaults": {"type": "object", "minProperties": 1, "additionalProperties": SCALAR},
                        },
                    },
                },
                "env": {"type": "array", "items": {"oneOf": [ENV_PAIR, ENV_INPUT]}},
            },
        },
    },
}
TESTS_SCHEMA = {
    "type": "object",
    "required": ["tests", "config"],
    "additionalProperties": False,
    "properties": {
        "tests": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["name", "input"],
                "additionalProperties": False,
                "properties": {
                    "name": {"type": "string", "minLength": 1},
                    # The inner object: a further "input" would be sent as an unknown field.
                    "input": {"type": "object", "not": {"required": ["input"]}},
                    "timeout": {"type": "integer", "minimum": 10_000},  # milliseconds
                },
            },
        },
        "config": {
            "type": "object",
            "required": ["gpuTypeId", "gpuCount"],
            "additionalProperties": False,
            "properties": {
                "gpuTypeId": {"type": "string", "pattern": "^NVIDIA "},
                "gpuCount": {"type": "integer", "minimum": 1},
                "env": {"type": "array", "items": ENV_PAIR},
                "allowedCudaVersions": CUDA_VERSIONS,
            },
        },
    },
}


def shown_default(name: str) -> str:
    """The default of a setting as the deployment page shows it."""
    default = SETTINGS[name].get_default()
    if default is None or default == ():
        return "–"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, Path) and default.is_relative_to(PROJECT_DIR):
        default = default.relative_to(PROJECT_DIR)
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def hub_env() -> dict[str, dict]:
    return {entry["key"]: entry for entry in HUB["config"]["env"]}


def registered_models() -> set[str]:
    models = yaml.safe_load((PROJECT_DIR / "models.yaml").read_text())["models"]
    return set(models) | {alias for spec in models.values() for alias in (spec or {}).get("aliases", ())}


@pytest.mark.parametrize(
    ("document", "schema"), [(HUB, HUB_SCHEMA), (HUB_TESTS, TESTS_SCHEMA)], ids=["hub.json", "tests.json"]
)
def test_hub_files_follow_the_publishing_guide(document: dict, schema: dict) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)] == []


def test_every_variable_of_the_hub_files_means_something() -> None:
    known = set(SETTINGS) | set(table("Variables that others read"))
    named = [entry["key"] for entry in HUB["config"]["env"]]
    assert len(named) == len(set(named))
    used = set(named) | {entry["key"] for entry in HUB_TESTS["config"]["env"]}
    for preset in HUB["config"]["presets"]:
        used |= set(preset["defaults"])
    assert used - known == set()


def test_presets_set_only_what_the_form_shows() -> None:
    shown = {key for key, entry in hub_env().items() if "input" in entry}
    for preset in HUB["config"]["presets"]:
        assert set(preset["defaults"]) <= shown, preset["name"]


@pytest.mark.parametrize("key", [key for key, entry in hub_env().items() if "input" in entry and key in SETTINGS])
def test_hub_inputs_show_the_true_default_and_lie_in_bounds(key: str) -> None:
    shown = hub_env()[key]["input"]
    default = SETTINGS[key].get_default()
    assert shown["default"] == ("" if default is None or default == () else default)
    kind = {bool: "boolean", int: "number", float: "number"}.get(type(default), "string")
    assert shown["type"] == ("huggingface" if key == "MODEL_ID" else kind)
    for bound in ("min", "max"):
        if bound in shown:
            value = shown[bound]
            assert getattr(Settings(**{key.lower(): value}), key.lower()) == value


def test_presets_are_settings_that_the_worker_accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    for preset in HUB["config"]["presets"]:
        with monkeypatch.context() as environment:
            for key, value in preset["defaults"].items():
                environment.setenv(key, str(value).lower() if isinstance(value, bool) else str(value))
            settings = Settings()
        for key, value in preset["defaults"].items():
            got = getattr(settings, key.lower())
            assert got == (tuple(value.split(",")) if isinstance(got, tuple) else value), (preset["name"], key)


def test_models_of_presets_and_tests_are_registered() -> None:
    defaults = [preset["defaults"] for preset in HUB["config"]["presets"]]
    defaults.append({entry["key"]: entry["value"] for entry in HUB_TESTS["config"]["env"]})
    named = {values["DEFAULT_MODEL"] for values in defaults if "DEFAULT_MODEL" in values}
    named |= {model for values in defaults for model in values.get("PRELOAD_MODELS", "").split(",") if model}
    assert named - registered_models() == set()


# The pools' GPUs (RunPod's table of GPU types) and what each has, in GB.
POOLS = {
    "AMPERE_16": (16, ("NVIDIA RTX A4000", "NVIDIA RTX A4500", "NVIDIA RTX 4000 Ada Generation")),
    "AMPERE_24": (24, ("NVIDIA L4", "NVIDIA RTX A5000", "NVIDIA GeForce RTX 3090")),
    "ADA_24": (24, ("NVIDIA GeForce RTX 4090",)),
    "AMPERE_48": (48, ("NVIDIA RTX A6000", "NVIDIA A40")),
    "ADA_48_PRO": (48, ("NVIDIA L40", "NVIDIA L40S", "NVIDIA RTX 6000 Ada Generation")),
    "AMPERE_80": (80, ("NVIDIA A100 80GB PCIe", "NVIDIA A100-SXM4-80GB")),
    "ADA_80_PRO": (80, ("NVIDIA H100 PCIe", "NVIDIA H100 80GB HBM3", "NVIDIA H100 NVL")),
    "HOPPER_141": (141, ("NVIDIA H200",)),
}
CHOSEN_POOLS = [pool for pool in HUB["config"]["gpuIds"].split(",") if not pool.startswith("-")]


def offered_models() -> list[str]:
    options = [option["value"] for option in hub_env()["DEFAULT_MODEL"]["input"]["options"]]
    return options + [
        p["defaults"]["DEFAULT_MODEL"] for p in HUB["config"]["presets"] if "DEFAULT_MODEL" in p["defaults"]
    ]


@pytest.mark.parametrize("model", sorted(set(offered_models())))
def test_what_the_form_offers_fits_the_smallest_gpu_that_the_listing_asks_for(model: str) -> None:
    registry = yaml.safe_load((PROJECT_DIR / "models.yaml").read_text())
    spec = registry["models"][model]
    tier = registry["tiers"][spec.get("tier", registry["defaults"]["tier"])]
    smallest = min(POOLS[pool][0] for pool in CHOSEN_POOLS)
    assert max(tier["vram_gb"], spec.get("min_vram_gb", 0)) <= smallest


def test_the_form_lists_todays_models_and_every_preset() -> None:
    options = [option["value"] for option in hub_env()["DEFAULT_MODEL"]["input"]["options"]]
    assert len(options) == len(set(options))
    assert {"Tongyi-MAI/Z-Image-Turbo", "black-forest-labs/FLUX.2-klein-4B", "krea/Krea-2-Turbo"} <= set(options)
    assert set(offered_models()) == set(options)
    assert set(options) <= registered_models()
    assert hub_env()["DEFAULT_MODEL"]["input"]["default"] in options


def test_the_hubs_test_runs_on_a_gpu_of_the_listings_pools() -> None:
    assert HUB_TESTS["config"]["gpuTypeId"] in {gpu for pool in CHOSEN_POOLS for gpu in POOLS[pool][1]}


def test_cuda_version_is_the_same_everywhere() -> None:
    declared = [arguments for name, arguments in DOCKERFILE if name == "ARG" and arguments.startswith("CUDA_VERSION=")]
    assert declared == ["CUDA_VERSION=13.0"]
    assert HUB["config"]["allowedCudaVersions"] == HUB_TESTS["config"]["allowedCudaVersions"] == ["13.0"]
    assert "CUDA 13.0" in (PROJECT_DIR / "requirements-gpu.txt").read_text()
    assert "CUDA 13.0" in DEPLOY_PAGE


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-gpu.txt", "requirements-spandrel.txt"])
def test_requirements_are_exact(file: str) -> None:
    lines = [line.split("#")[0].strip() for line in (PROJECT_DIR / file).read_text().splitlines()]
    packages = [line for line in lines if line and line != "-r requirements.txt"]
    loose = [line for line in packages if not re.fullmatch(r"[A-Za-z0-9._-]+(\[[a-z]+\])?==\d[\w.]*", line)]
    assert loose == []
    names = [line.split("==")[0].lower().replace("_", "-") for line in packages]
    assert len(names) == len(set(names))
    # It would let a model's config.json name a Hub kernel to download and run.
    assert "kernels" not in names


def test_requirements_are_at_or_above_the_safe_versions() -> None:
    pinned = dict(line.split("==") for line in (PROJECT_DIR / "requirements.txt").read_text().split() if "==" in line)
    for name, floor in FLOORS.items():
        assert tuple(int(part) for part in pinned[name].split(".")[:2]) >= floor, name


def test_make_targets_exist_and_say_what_they_do() -> None:
    shown = subprocess.run(["make", "help"], cwd=PROJECT_DIR, capture_output=True, text=True, check=True).stdout
    targets = set(re.findall(r"^  make ([a-z-]+) +\S", shown, flags=re.MULTILINE))
    expected = {
        "help",
        "run",
        "draw",
        "serve",
        "test",
        "test-slow",
        "test-all",
        "test-zoo",
        "test-clients",
        "test-ray",
        "test-page",
        "test-precision",
        "test-training",
        "test-faces",
        "faults",
        "mutations",
        "check",
        "bench",
        "bench-gpu",
        "signatures",
        "schedulers",
        "rooms",
        "errors",
        "lock",
        "clean",
    }
    assert targets == expected


def test_ci_is_make_check_and_the_slow_tests() -> None:
    script = PROJECT_DIR / ".ci" / "run"
    text = script.read_text()
    assert script.stat().st_mode & 0o111
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in text
    assert re.findall(r"^make (\S+)", text, flags=re.MULTILINE) == ["check", "test-slow"]
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_test_input_is_what_the_sdk_reads() -> None:
    job = json.loads((PROJECT_DIR / "test_input.json").read_text())
    assert set(job) == {"input"}
    assert job["input"]["prompt"]


def test_deploy_page_lists_every_setting_with_its_default() -> None:
    listed = table("Settings")
    assert listed.keys() - SETTINGS.keys() == set(), "not a setting"
    assert SETTINGS.keys() - listed.keys() == set(), "not on the page"
    assert {name: cells[0] for name, cells in listed.items()} == {name: shown_default(name) for name in SETTINGS}
    assert [name for name, cells in listed.items() if len(cells) != 2 or not cells[1]] == []


def test_security_page_names_real_switches() -> None:
    page = (PROJECT_DIR / "SECURITY.md").read_text()
    named = set(re.findall(r"`([A-Z][A-Z0-9]*_[A-Z0-9_]+)(?:=\w+)?`", page))
    assert named >= {"ALLOW_UNREGISTERED_MODELS", "ALLOW_PRIVATE_URLS", "ALLOWED_MODEL_DIRS"}
    assert named - SETTINGS.keys() - set(table("Variables that others read")) == set()


def test_licence_is_the_one_that_is_declared() -> None:
    text = (PROJECT_DIR / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert 'license = "Apache-2.0"' in (PROJECT_DIR / "pyproject.toml").read_text()
    assert 'image.licenses="Apache-2.0"' in (PROJECT_DIR / "Dockerfile").read_text()


def test_a_fresh_copy_without_uv_on_path_tries_open_webui_too(tmp_path: Path) -> None:
    """uv comes with .venv, which is not there yet when make reads its file."""
    for name in ("requirements.txt", "requirements-gpu.txt", "requirements-spandrel.txt", "pyproject.toml"):
        (tmp_path / name).touch()
    for name in ("requirements.txt", "open-webui.txt", "open-webui-overrides.txt", "javascript/package.json"):
        (tmp_path / "tests/clients" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tests/clients" / name).touch()
    tools = tmp_path / "tools-on-path"
    tools.mkdir()
    for name in ("make", "bash", "sh", "sed", "pwd"):
        (tools / name).symlink_to(str(shutil.which(name)))
    shown = subprocess.run(
        ["make", "-n", "-f", PROJECT_DIR / "Makefile", "test-clients"],
        cwd=tmp_path,
        env={**os.environ, "PATH": str(tools)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "tests/clients/open-webui.txt" in shown

"""What ships agrees with itself and the code: Hub files, image, requirements, make targets, the deployment page."""

import fnmatch
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
import yaml

from worker.app.settings import PROJECT_DIR, Settings

HUB = json.loads((PROJECT_DIR / ".runpod" / "hub.json").read_text())
HUB_TESTS = json.loads((PROJECT_DIR / ".runpod" / "tests.json").read_text())
SETTINGS = {name.upper(): field for name, field in Settings.model_fields.items()}
DEPLOY_PAGE = (PROJECT_DIR / "docs" / "deploy.md").read_text()

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


def table(heading: str) -> dict[str, list[str]]:
    """The rows of the table under `heading` of the deployment page, by the name in their first cell."""
    section = DEPLOY_PAGE.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| `([A-Z0-9_]+)` \|(.*)\|$", section, flags=re.MULTILINE)
    assert len(rows) == len({name for name, _ in rows}), f"{heading}: a variable is listed twice"
    return {name: [cell.strip() for cell in rest.split("|")] for name, rest in rows}


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


def instructions(dockerfile: str) -> Iterator[tuple[str, str]]:
    """Each instruction of a Dockerfile with its arguments on one line."""
    lines = (line for line in dockerfile.splitlines() if not line.lstrip().startswith("#"))
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        if line.strip():
            name, _, arguments = line.strip().partition(" ")
            yield name.upper(), arguments.strip()


DOCKERFILE = list(instructions((PROJECT_DIR / "Dockerfile").read_text()))
IMAGE_ENV = dict(
    re.match(r'([A-Z_]+)="?([^"]*)"?', pair).groups()
    for name, arguments in DOCKERFILE
    if name == "ENV"
    for pair in arguments.split()
)


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


def test_cuda_version_is_the_same_everywhere() -> None:
    declared = [arguments for name, arguments in DOCKERFILE if name == "ARG" and arguments.startswith("CUDA_VERSION=")]
    assert declared == ["CUDA_VERSION=13.0"]
    assert HUB["config"]["allowedCudaVersions"] == HUB_TESTS["config"]["allowedCudaVersions"] == ["13.0"]
    assert "CUDA 13.0" in (PROJECT_DIR / "requirements-gpu.txt").read_text()
    assert "CUDA 13.0" in DEPLOY_PAGE


def test_image_starts_the_worker_so_that_signals_arrive() -> None:
    assert [arguments for name, arguments in DOCKERFILE if name == "CMD"] == ['["python", "-u", "handler.py"]']
    assert not [name for name, _ in DOCKERFILE if name == "ENTRYPOINT"]


def test_image_environment() -> None:
    assert IMAGE_ENV["RUNPOD_LOG_LEVEL"] == "INFO"
    assert IMAGE_ENV["RUNPOD_SKIP_GPU_CHECK"] == "true"
    assert "PYTHONDONTWRITEBYTECODE" not in IMAGE_ENV
    assert IMAGE_ENV.keys() & SETTINGS.keys() == {"MODEL_ID", "MODEL_REVISION"}
    foreign = IMAGE_ENV.keys() - SETTINGS.keys()
    conventional = {"PATH", "UV_COMPILE_BYTECODE", "UV_LINK_MODE", "UV_PYTHON_DOWNLOADS", "PIP_NO_CACHE_DIR"}
    conventional |= {"PIP_DISABLE_PIP_VERSION_CHECK"}
    assert foreign - conventional - set(table("Variables that others read")) == set()


def test_no_secret_is_a_build_argument_or_in_the_environment() -> None:
    secret = re.compile(r"TOKEN\b(?!IZERS)|SECRET|KEY|PASSWORD")
    assert [arguments for name, arguments in DOCKERFILE if name in {"ARG", "ENV"} and secret.search(arguments)] == []


def test_base_images_are_exact() -> None:
    bases = [arguments.split()[0] for name, arguments in DOCKERFILE if name == "FROM"]
    assert bases, "no FROM"
    for base in bases:
        assert re.fullmatch(r"[\w./-]+:[\w.-]*\d+\.\d+\.\d+[\w.-]*", base), base


def test_image_copies_only_what_exists_and_is_not_ignored() -> None:
    lines = (PROJECT_DIR / ".dockerignore").read_text().splitlines()
    rules = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    assert rules[0] == "*", ".dockerignore is an allow-list"
    for name, arguments in DOCKERFILE:
        words = arguments.split()
        if name not in {"COPY", "ADD"} or words[0].startswith("--from"):
            continue
        for source in words[:-1]:
            if source != "models.lock*":  # a pattern, because a registry need not be locked
                assert (PROJECT_DIR / source).exists(), source
            ignored = False
            for rule in rules:
                if fnmatch.fnmatchcase(source.rstrip("/"), rule.removeprefix("!")):
                    ignored = not rule.startswith("!")
            assert not ignored, source
    copied = " ".join(arguments for name, arguments in DOCKERFILE if name == "COPY")
    for needed in ("handler.py", "models.yaml", "worker/", "models/", "LICENSE"):
        assert needed in copied.split()


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
    floors = {"torch": (2, 10), "diffusers": (0, 38), "transformers": (5, 3), "pillow": (12, 2), "runpod": (1, 12)}
    for name, floor in floors.items():
        assert tuple(int(part) for part in pinned[name].split(".")[:2]) >= floor, name


def test_make_targets_exist_and_say_what_they_do() -> None:
    shown = subprocess.run(["make", "help"], cwd=PROJECT_DIR, capture_output=True, text=True, check=True).stdout
    targets = set(re.findall(r"^  make ([a-z-]+) +\S", shown, flags=re.MULTILINE))
    expected = {
        "help",
        "run",
        "test",
        "test-slow",
        "test-all",
        "test-zoo",
        "check",
        "bench",
        "signatures",
        "schedulers",
        "rooms",
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

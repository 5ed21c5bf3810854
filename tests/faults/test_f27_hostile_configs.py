"""Configs that describe what no model is: refused at a glance, by file and key, before anything is fetched or loaded.

What only building it shows is in test_f27_hostile_loads.py.
"""

import asyncio
import inspect
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.asking import perform
from tests.counting import calls_of
from tests.fakes.engine import make_context
from tests.faults.table import Figures
from worker.catalog.config_bounds import check_description, check_files, check_numbers, least_parameters
from worker.core.errors import CorruptFile, UnsupportedModel, WorkerError
from worker.service.local.weights import count_parameters
from worker.wire.errors import encode_error

PROJECT = Path(__file__).resolve().parents[2]
DEMO = PROJECT / "models/demo"

UNET, VAE, TEXT = "unet/config.json", "vae/config.json", "text_encoder/config.json"
SCHEDULER = "scheduler/scheduler_config.json"
# In which config of the demo model, what is changed, and the key that is named.
HOSTILE = {
    "layers": (UNET, {"layers_per_block": 1_000_000}, "layers_per_block"),
    "layers of one block": (UNET, {"layers_per_block": [2, 2, 10**6]}, "layers_per_block"),
    "layers of all blocks": (UNET, {"layers_per_block": 900, "transformer_layers_per_block": 900}, "layers_per_block"),
    "heads": (UNET, {"attention_head_dim": 10**7}, "attention_head_dim"),
    "channels": (UNET, {"block_out_channels": [10**6] * 3}, "block_out_channels"),
    "blocks": (UNET, {"down_block_types": ["DownBlock2D"] * 2_000}, "down_block_types"),
    "sample size": (UNET, {"sample_size": 10**8}, "sample_size"),
    "a negative number": (UNET, {"cross_attention_dim": -(10**9)}, "cross_attention_dim"),
    "a number of 40 digits": (UNET, {"whatever": 10**40}, "whatever"),
    "lists in lists": (UNET, {"mult": [[[10**12]]]}, "mult"),
    "VAE channels": (VAE, {"latent_channels": 10**9}, "latent_channels"),
    "VAE layers": (VAE, {"layers_per_block": 10**9}, "layers_per_block"),
    "encoder layers": (TEXT, {"num_hidden_layers": 1_000_000}, "num_hidden_layers"),
    "words": (TEXT, {"vocab_size": 10**9}, "vocab_size"),
    "positions": (TEXT, {"max_position_embeddings": 10**9}, "max_position_embeddings"),
    "nested": (TEXT, {"text_config": {"num_hidden_layers": 10**6}}, "text_config.num_hidden_layers"),
    "timesteps": (SCHEDULER, {"num_train_timesteps": 10**9}, "num_train_timesteps"),
    "betas": (SCHEDULER, {"trained_betas": [0.1] * 20_000}, "trained_betas"),
}


def changed(folder: Path, config: str, values: dict[str, Any]) -> Path:
    """Return a copy of the demo model with other values in one of its configs."""
    shutil.copytree(DEMO, folder)
    path = folder / config
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


def test_an_impossible_number_is_refused_by_file_and_key_and_nothing_is_loaded(tmp_path, figures: Figures):
    context = make_context(tmp_path)

    async def answers(reference: str) -> list[tuple[str, dict[str, Any]]]:
        actions = ("inspect", "plan", "generate")
        prompt = {"generate": {"prompt": "x"}}
        found = []
        for action in actions:
            try:
                await perform(context.worker, {"action": action, "model": reference} | prompt.get(action, {}))
                found.append((action, {}))
            except WorkerError as error:
                found.append((action, encode_error(error, "x")))
        return found

    wrong = []
    for name, (config, values, key) in HOSTILE.items():
        folder = changed(tmp_path / "volume" / name.replace(" ", "-"), config, values)
        for action, answer in asyncio.run(answers(f"file:{folder}")):
            named = answer.get("code") == "unsupported_model" and f"{config}: {key} " in str(answer.get("error"))
            if not named or answer.get("field") != "model":
                wrong.append((name, action, answer))
    assert wrong == []
    assert context.builder.built == 0
    figures("F27", "hostile configs that were not refused by name", len(wrong), at_most=0)


def test_a_config_of_millions_of_numbers_costs_little(figures: Figures):
    lists = {f"key{index}": [1] * 9_000 for index in range(20)}
    figures("F27", "calls for a config of 180,000 numbers", calls_of(lambda: check_numbers("x", lists)), at_most=1e6)


class TestAgainstItsFiles:
    def test_more_layers_than_the_files_name_are_a_damaged_model(self, tmp_path):
        folder = changed(tmp_path / "m", TEXT, {"num_hidden_layers": 1_000})
        with pytest.raises(CorruptFile, match=r"text_encoder/config\.json names 1,000 layers, and its files hold \d+:"):
            count_parameters(folder)

    def test_wider_layers_than_the_files_hold_are_a_damaged_model(self, tmp_path):
        folder = changed(tmp_path / "m", UNET, {"block_out_channels": [100_000, 100_000, 100_000]})
        with pytest.raises(CorruptFile, match=r"unet/config\.json describes 30,000,000,000 parameters at least"):
            count_parameters(folder)

    def test_a_repository_that_describes_far_more_than_it_holds_is_refused_before_it_is_fetched(self):
        config = {"unet/config.json": {"num_layers": 900, "num_attention_heads": 900, "attention_head_dim": 128}}
        with pytest.raises(CorruptFile, match=r"unet/config\.json describes .* parameters at least"):
            check_description(config, 5_000_000_000)
        check_description(config, None)
        check_description(config, 800_000_000_000)

    def test_the_demo_model_is_what_its_configs_say(self):
        assert count_parameters(DEMO)["unet"] > 0


class TestRealModels:
    def test_every_config_of_this_project_is_within_the_bounds(self, figures: Figures):
        paths = [*(PROJECT / "worker/catalog/configs").rglob("*config.json"), *DEMO.rglob("*config.json")]
        for path in paths:
            check_numbers(str(path), json.loads(path.read_bytes()))
        figures("F27", "real configs that are within the bounds", len(paths), at_least=50)

    def test_large_language_models_are_within_the_bounds(self):
        qwen = {"num_hidden_layers": 80, "hidden_size": 8_192, "vocab_size": 152_064, "rope_theta": 10**9}
        gemma = {"text_config": qwen | {"vocab_size": 262_208, "max_position_embeddings": 10_485_760}}
        for config in (qwen, gemma, {"model_max_length": 10**30, "eos_token_id": 10**9, "lambda_min": float("-inf")}):
            check_numbers("config.json", config)
        assert least_parameters(gemma) == least_parameters(qwen | {"vocab_size": 262_208})

    @pytest.mark.slow
    def test_no_class_of_diffusers_is_refused_as_it_is_made(self, figures: Figures):
        import diffusers
        import torch

        seen = 0
        for name in dir(diffusers):
            cls = getattr(diffusers, name)
            if not (inspect.isclass(cls) and issubclass(cls, diffusers.ModelMixin | diffusers.SchedulerMixin)):
                continue
            parameters = inspect.signature(cls.__init__).parameters.values()
            config = json.loads(json.dumps({item.name: item.default for item in parameters}, default=lambda _: None))
            check_numbers(name, config)
            if not issubclass(cls, diffusers.ModelMixin):
                continue
            try:
                with torch.device("meta"):
                    model = cls()
            except Exception:  # some cannot be made without arguments
                continue
            numbers = [int(part) for key in model.state_dict() for part in re.findall(r"\.(\d+)\.", key)]
            count = sum(parameter.numel() for parameter in model.parameters())
            assert least_parameters(config) <= max(count, 1), name
            check_files(name, config, count, 1 + max(numbers, default=-1))
            seen += 1
        figures("F27", "classes of diffusers whose defaults are taken", seen, at_least=40)


def test_a_refusal_names_no_more_of_a_key_than_is_read():
    with pytest.raises(UnsupportedModel) as caught:
        check_numbers("config.json", {"layers" * 100_000: {"k" * 100_000: 10**40}})
    assert len(caught.value.message) < 400

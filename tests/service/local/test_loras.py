"""LoRA files before anything is loaded: which one is meant, what it is, and why it is refused."""

import hashlib
import json

import pytest

from tests.catalog.corpus import index, sparse_file, stored
from worker.core.errors import WorkerError
from worker.service.local import weights

PLAIN = {"base_model.model.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight": (4, 768)}
PLAIN |= {"base_model.model.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.lora_B.weight": (640, 4)}


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "models/lora"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def adapters(context, monkeypatch):
    """The adapters of every batch that the engine was given."""
    found = []
    run = context.engine.run

    def recording(batch, emit):
        found.extend(batch.adapters_of("loras"))
        return run(batch, emit)

    monkeypatch.setattr(context.engine, "run", recording)
    return found


async def refusal(context, reference, **options):
    """The error that a LoRA ends in; nothing was built for it."""
    with pytest.raises(WorkerError) as failure:
        await context.draw(loras=[{"model": f"file:{reference}", **options}])
    assert failure.value.field == "loras"
    assert context.builder.built == 0
    return failure.value


async def test_of_several_files_one_has_to_be_named(context, adapters, folder):
    for name in ("epoch-1", "epoch-2"):
        sparse_file(folder / f"{name}.safetensors", index(PLAIN))
    error = await refusal(context, folder)
    assert "epoch-1.safetensors, epoch-2.safetensors" in error.message
    assert error.details["files"] == ["epoch-1.safetensors", "epoch-2.safetensors"]
    await context.draw(loras=[{"model": f"file:{folder}", "weight_name": "epoch-2.safetensors"}])
    assert adapters[-1].files.root.name == "epoch-2.safetensors"


async def test_what_the_store_has_held_against_its_digest_is_not_read_for_it_again(
    context, adapters, folder, monkeypatch
):
    path = sparse_file(folder / "style.safetensors", index(PLAIN))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(weights, "_sha256", lambda path: pytest.fail("read as a whole"))
    await context.draw(loras=[f"file:{path}?sha256={digest}"])
    assert adapters[-1].sha256 == digest


@pytest.mark.parametrize("name", ["pytorch_lora_weights.safetensors", "adapter_model.safetensors"])
async def test_the_usual_name_of_a_lora_repository_wins(context, adapters, folder, name):
    for other in (name, "older.safetensors"):
        sparse_file(folder / other, index(PLAIN))
    await context.draw(loras=[f"file:{folder}"])
    assert adapters[-1].files.root.name == name


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"lora_unet_mid_block_attentions_0_proj_in.oft_blocks": (2, 4, 8, 8)}, "BOFT"),
        ({"base_model.model.mid_block.attentions.0.proj_in.oft_R.weight": (4, 6)}, "peft's OFT"),
    ],
)
async def test_what_cannot_be_applied_is_refused_by_name(context, folder, keys, words):
    path = sparse_file(folder / "x.safetensors", index(keys))
    error = await refusal(context, path)
    assert error.code == "unsupported_model"
    assert words in error.message
    assert "LoKr" in error.message  # what would be taken instead


async def test_a_checkpoint_is_no_lora(context, folder):
    error = await refusal(context, sparse_file(folder / "x.safetensors", stored("sd1")))
    assert error.code == "incompatible_adapter"
    assert "is a checkpoint" in error.message


async def test_a_lora_that_is_not_there_is_a_matter_of_loras(context, folder):
    assert (await refusal(context, folder / "none.safetensors")).code == "model_not_found"


async def test_what_the_header_says_goes_to_the_engine(context, adapters, folder):
    header = index(PLAIN, **{"modelspec.trigger_phrase": "mywrd style"})
    sparse_file(folder / "adapter_model.safetensors", header)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 6}))
    await context.draw(loras=[{"model": f"file:{folder}", "weights": {"unet": 0.5}}])
    (adapter,) = adapters
    (module,) = adapter.keys.modules
    assert (module.component, module.algorithm, set(module.keys)) == ("denoiser", "lora", {"down", "up"})
    assert module.name == "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    assert adapter.scaling.factor("unet", [module.name], rank=4, alpha=None) == 1.5
    assert adapter.trigger_words == ("mywrd style",)
    assert adapter.adapter.spec.weights == {"unet": 0.5}


@pytest.mark.parametrize(
    ("weights", "said"),
    [({"unet": 99}, "at most 10"), ({"unet": "one"}, "number"), ({"../x": 1}, "weights"), ({"unet": float("inf")}, "")],
)
async def test_weights_are_checked_at_the_door(context, folder, weights, said):
    sparse_file(folder / "x.safetensors", index(PLAIN))
    with pytest.raises(WorkerError) as failure:
        await context.draw(loras=[{"model": f"file:{folder}/x.safetensors", "weights": weights}])
    assert said in failure.value.message
    assert context.builder.built == 0

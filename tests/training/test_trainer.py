"""Trainers: losses fall, only the adapter learns, and going on is as if nothing had ended."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open

from tests.engine.test_generation import draw
from tests.images import assert_differs, pixels
from tests.training.conftest import CLASSES
from worker.core.errors import InvalidOutput, UnsupportedModel
from worker.core.training import TrainingOptions
from worker.training.adapter import describe, weights_of, write_adapter
from worker.training.checkpoint import Checkpoint, keep_last
from worker.training.objective import Objective
from worker.training.optimizers import Lion


def mean(losses):
    return sum(losses) / len(losses)


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("family", CLASSES)
def test_the_loss_falls_and_nothing_but_the_adapter_changes(trainer, tiny, family):
    before = {name: value.clone() for name, value in tiny(family).components[
        "unet" if family in ("sd1", "sdxl") else "transformer"
    ].state_dict().items()}  # fmt: skip
    made = trainer(family, batch_size=3)
    losses = [made.step() for _ in range(12)]
    assert mean(losses[-4:]) < mean(losses[:4])
    after = {name.replace(".base_layer", ""): value for name, value in made.denoiser.state_dict().items()}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(parameter.grad is None for parameter in made.denoiser.parameters())


@pytest.mark.parametrize("options", [{}, {"lora_plus": 4.0}, {"lora_plus": 4.0, "optimizer": "lion"}])
def test_going_on_from_a_checkpoint_ends_in_the_same_bits(trainer, tmp_path, options):
    options = {"batch_size": 2, **options}
    whole = trainer(**options)
    expected = [whole.step() for _ in range(5)]
    first = trainer(**options)
    losses = [first.step() for _ in range(2)]
    first.checkpoint(losses=losses).write(tmp_path)
    checkpoint = Checkpoint.latest(tmp_path)
    second = trainer(checkpoint=checkpoint, **options)
    assert second.steps_done == 2
    assert checkpoint.facts["losses"] + [second.step() for _ in range(3)] == expected
    ends = [weights_of(each.denoiser) for each in (whole, second)]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


@pytest.mark.parametrize("optimizer", ["adamw", "lion"])
def test_the_mean_of_the_steps_is_delivered_and_goes_on_with_them(trainer, tmp_path, optimizer):
    options = {"batch_size": 2, "optimizer": optimizer, "ema": 0.9, "learning_rate": 1e-3}
    whole, first = trainer(**options), trainer(**options)
    values = []
    for _ in range(4):
        whole.step()
        values.append({key: value.clone() for key, value in weights_of(whole.denoiser).items()})
    [first.step() for _ in range(2)]
    first.checkpoint().write(tmp_path)
    second = trainer(checkpoint=Checkpoint.latest(tmp_path), **options)
    [second.step() for _ in range(2)]
    mean = values[0]
    for step, value in enumerate(values[1:], 1):
        share = 1 - min(0.9, (1 + step) / (10 + step))
        mean = {key: mean[key] + share * (value[key] - mean[key]) for key in mean}
    for made in (whole, second):
        with made.averaged():
            delivered = weights_of(made.denoiser)
        assert all(torch.allclose(delivered[key], mean[key], atol=1e-6) for key in mean)
        after = weights_of(made.denoiser)
        assert all(torch.equal(after[key], values[-1][key]) for key in after), "it goes on from its own"
    assert any(not torch.equal(delivered[key], after[key]) for key in after)


def test_lion_takes_steps_of_one_size_along_its_momentum():
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    lion = Lion([parameter], lr=0.1, weight_decay=0.0)
    for gradient in ([4.0, -0.001, 0.0], [-1.0, 0.0, 0.0]):
        parameter.grad = torch.tensor(gradient)
        lion.step()
    # Momentum after the first is 0.01 of it: 0.04 and -0.00001; 0.9 of that and 0.1 of the second: -0.064, -0.000009.
    assert torch.allclose(parameter, torch.tensor([1.0 - 0.1 + 0.1, -2.0 + 0.1 + 0.1, 3.0]))


def test_half_a_checkpoint_is_none(trainer, tmp_path):
    made = trainer()
    made.step()
    made.checkpoint().write(tmp_path)
    (tmp_path / ".step-000009.partial").mkdir()
    (tmp_path / "step-000010").mkdir()  # of another program: it has no state
    assert Checkpoint.latest(tmp_path).step == 1
    made.step()
    made.checkpoint().write(tmp_path)
    keep_last(tmp_path, 1)
    assert not (tmp_path / "step-000001").exists()


def test_every_image_is_seen_once_a_round_in_an_order_of_its_own(trainer):
    made = trainer(batch_size=2)
    rounds = []
    for _ in range(3):
        seen = []
        for _ in range(2):
            seen += [lesson.words for lesson in made._next(made._lessons)]
            made.steps_done += 1
        rounds.append(seen)
    assert all(len(set(seen)) == 4 for seen in rounds)
    assert len({tuple(seen) for seen in rounds}) > 1


def test_a_loss_that_is_no_number_ends_it_before_the_weights_are_spoilt(trainer):
    made = trainer()
    made.step()
    good = weights_of(made.denoiser)
    made._learning[0][1].data.fill_(float("nan"))
    poisoned = weights_of(made.denoiser)
    with pytest.raises(InvalidOutput, match="learning_rate"):
        made.step()
    assert made.steps_done == 1
    after = weights_of(made.denoiser)
    assert all(torch.equal(after[key], poisoned[key]) or torch.isnan(poisoned[key]).any() for key in good)


def test_a_gradient_that_is_no_number_ends_it_before_the_weights_are_spoilt(trainer):
    made = trainer()
    real = made._objective

    def steep(predicted, *others):
        return real.loss(predicted, *others) + (predicted.sum() * 0).sqrt()  # a finite loss whose slope is not

    made._objective = SimpleNamespace(times=real.times, noisy=real.noisy, loss=steep)
    good = weights_of(made.denoiser)
    with pytest.raises(InvalidOutput, match=r"gradient.*under another name with a lower learning_rate"):
        made.step()
    assert made.steps_done == 0
    assert all(torch.equal(weights_of(made.denoiser)[key], good[key]) for key in good)


def test_batches_that_make_one_step_learn_as_one_batch_of_all_and_fewer_are_on_the_device(trainer):
    ends, at_once = [], []

    def count(module, args, kwargs):
        at_once.append(len(kwargs["sample"]))

    for batch_size, accumulation in ((3, 1), (1, 3)):
        made = trainer(batch_size=batch_size, accumulation=accumulation, caption_dropout=0.5)
        forward = made.denoiser.register_forward_pre_hook(count, with_kwargs=True)
        losses = [made.step() for _ in range(3)]
        forward.remove()
        ends.append((losses, weights_of(made.denoiser), max(at_once)))
        at_once.clear()
    (one, weights, most), (other, others, fewest) = ends
    assert (most, fewest) == (3, 1)
    assert one == pytest.approx(other, rel=1e-4)
    assert all(torch.allclose(weights[key], others[key], atol=1e-4) for key in weights)


def test_images_held_out_are_measured_at_the_same_times_and_noise_each_time(trainer):
    made = trainer(held_out=0.5)
    seen, predicted = [], made._losses

    def losses(call, noise, times):
        seen.append((noise.flatten()[0].item(), times.item()))
        return predicted(call, noise, times)

    made._losses = losses
    first = made.held_out_loss()
    assert (len(seen), len(set(seen))) == (8, 8), "each of two images at four times"
    assert made.held_out_loss() == first
    assert seen[8:] == seen[:8]
    for _ in range(3):
        made.step()
    assert made.held_out_loss() != first


def test_quantized_layers_are_not_taken_for_plain_ones(trainer):
    with pytest.raises(UnsupportedModel, match="targets"):
        from worker.training.adapter import targets_in

        targets_in(torch.nn.Sequential(torch.nn.Embedding(2, 2)), "linear")


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("method", ["lora", "dora", "loha", "lokr"])
async def test_the_file_lands_whole_and_serving_generates_with_it(trainer, worker, zoo, tmp_path, method):
    made = trainer("sd1", method=method, batch_size=2, learning_rate=0.02)
    for _ in range(3):
        made.step()
    options = TrainingOptions(method=method, trigger="sks")
    path = worker.settings.volume / "mine.safetensors"
    write_adapter(path, {made.prefix: made.denoiser}, 2, describe(options, "tiny", "sd1", "ab" * 32, 4))
    plain = pixels(await draw(worker))
    answers = [await draw(worker, loras=[f"file:{each}"]) for each in (path, path.with_name("mine-kohya.safetensors"))]
    for answer in answers:
        assert answer["loras"][0]["matched"] == answer["loras"][0]["total"] > 0
        assert_differs(pixels(answer), plain)
    assert np.abs(pixels(answers[0]).astype(int) - pixels(answers[1]).astype(int)).max() <= 1, (
        "two spellings, one effect"
    )
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_base_model_version"] == "sd1"
    assert metadata["modelspec.trigger_phrase"] == "sks"
    assert len(metadata["sshs_model_hash"]) == 64


def test_what_is_noisy_and_predicted_leads_back_to_the_image():
    clean, noise = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)
    alphas = torch.linspace(0.9999, 0.005, 1000, dtype=torch.float64)
    flow, times = Objective("flow"), torch.tensor([10.0, 500.0, 990.0])
    noisy = flow.noisy(clean, noise, times)
    assert torch.allclose(noisy - (times / 1000).reshape(-1, 1, 1, 1) * (noise - clean), clean, atol=1e-5)
    for kind, target in (("epsilon", noise), ("sample", clean)):
        objective = Objective(kind, alphas)
        assert objective.loss(target, clean, noise, torch.tensor([1, 500, 999])).abs().max() < 1e-9
    v = Objective("v_prediction", alphas)
    steps = torch.tensor([1, 500, 999])
    signal = alphas[steps].sqrt().float().reshape(-1, 1, 1, 1)
    share = (1 - alphas[steps]).sqrt().float().reshape(-1, 1, 1, 1)
    assert v.loss(signal * noise - share * clean, clean, noise, steps).abs().max() < 1e-9
    assert torch.allclose(
        signal * v.noisy(clean, noise, steps) - share * (signal * noise - share * clean), clean, atol=1e-4
    )


def test_times_are_spread_over_a_batch_and_min_snr_weighs_the_easy_ones_less():
    random = torch.Generator().manual_seed(0)
    times = Objective("epsilon", torch.ones(1000)).times(8, random)
    assert sorted(int(time) // 125 for time in times) == list(range(8))
    middle = Objective("flow").times(2_000, random)
    assert 0.3 < float(((middle > 333) & (middle < 667)).float().mean()) < 0.6
    alphas = torch.linspace(0.9999, 0.005, 1000, dtype=torch.float64)
    weights = Objective("epsilon", alphas, 5.0)._weight(torch.tensor([1, 999]))
    assert weights[0] < 0.01
    assert weights[1] == 1


def test_the_b_of_an_adapter_learns_faster_where_that_is_asked_for(trainer):
    """The first step of AdamW is as long as the learning rate, and A has no gradient yet."""
    farthest = {}
    for ratio in (None, 16.0):
        made = trainer(lora_plus=ratio, learning_rate=1e-4)
        made.step()
        weights = made.checkpoint().weights
        farthest[ratio] = max(float(value.abs().max()) for name, value in weights.items() if "lora_B" in name)
    assert farthest[16.0] == pytest.approx(16 * farthest[None], rel=0.01)

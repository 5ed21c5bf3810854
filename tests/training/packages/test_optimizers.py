"""Optimizers of packages, which `make test-training` installs: they learn, and go on to the bit."""

from importlib.util import find_spec

import pytest
import torch

from worker.training.adapter import weights_of
from worker.training.checkpoint import Checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
PACKAGES = {"prodigy": "prodigyopt", "adamw8bit": "bitsandbytes"}


@pytest.fixture
def trained(trainer):
    """A function that makes a trainer with an optimizer, whose larger layers bitsandbytes holds in 8 bits."""

    def make(optimizer, **options):
        if find_spec(PACKAGES[optimizer]) is None:
            pytest.skip("make test-training has it")
        rate = 1.0 if optimizer == "prodigy" else 3e-3
        return trainer(**{"optimizer": optimizer, "rank": 64, "batch_size": 2, "learning_rate": rate} | options)

    return make


@pytest.mark.parametrize("optimizer", PACKAGES)
def test_going_on_from_a_checkpoint_ends_in_the_same_bits(trained, tmp_path, capsys, optimizer):
    whole = trained(optimizer, ema=0.9)
    expected = [whole.step() for _ in range(6)]
    first = trained(optimizer, ema=0.9)
    losses = [first.step() for _ in range(3)]
    first.checkpoint(losses=losses).write(tmp_path)
    second = trained(optimizer, ema=0.9, checkpoint=Checkpoint.latest(tmp_path))
    assert losses + [second.step() for _ in range(3)] == expected
    ends = [weights_of(each.denoiser) for each in (whole, second)]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    states = [each.checkpoint().optimizer for each in (whole, second)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert capsys.readouterr().out == "", "what a program reads is on stdout"


def test_prodigy_finds_its_own_rate_and_the_loss_falls(trained):
    made = trained("prodigy", batch_size=4)
    losses = [made.step() for _ in range(60)]
    group = made._optimizer.param_groups[0]
    assert group["d"] > 10 * group["d0"]
    assert sum(losses[-8:]) < sum(losses[:8])


def test_the_state_of_larger_layers_has_8_bits(trained):
    made = trained("adamw8bit")
    made.step()
    state = made.checkpoint().optimizer
    sizes = {key: value for key, value in state.items() if key.endswith("|state1")}
    large = [value for value in sizes.values() if value.numel() >= 4096]
    assert large
    assert {value.dtype for value in large} == {torch.uint8}

"""The names of a file's tensors without what training code left before them."""

import pytest

from worker.core.single_file import unwrapped


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (["module.a.weight", "module.b"], ["a.weight", "b"]),
        (["module._orig_mod.a", "module._orig_mod.b"], ["a", "b"]),
        (["difference", "module.a.b", "module.c.d"], ["difference", "a.b", "c.d"]),
        (["lora_controlnet", "_fsdp_wrapped_module.a.b"], ["lora_controlnet", "a.b"]),
        (["difference", "params.a.b", "params_ema.a.b"], ["difference", "a.b"]),
        (["difference"], ["difference"]),
        (["difference", "a.b", "module.c"], ["difference", "a.b", "module.c"]),
        (["params_ema.module.a", "params_ema.module.b"], ["a", "b"]),
        (["params.a", "params.b"], ["a", "b"]),
        (["module.a", "b"], ["module.a", "b"]),
        ([], []),
    ],
)
def test_what_stands_before_every_name_goes(names, kept):
    assert [*unwrapped(dict.fromkeys(names, 0))] == kept


def test_of_weights_and_their_moving_average_the_average_is_kept():
    assert unwrapped({"params.a": 1, "params_ema.a": 2}) == {"a": 2}

"""Control files in real sizes, by their headers: each becomes the control of its base, tensor for tensor."""

import json

import diffusers
import pytest
import torch

from tests.catalog.corpus import NAMES, stored
from tests.engine.test_lora_headers import FAMILIES, model
from worker.catalog.detector import detect_header
from worker.core.errors import IncompatibleAdapter, UnsupportedModel
from worker.engine.adapters.control_files import build_control
from worker.service.completing import CONFIGS

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# With another structure than their base, or one that shapes do not tell: these come as repositories with a config.json.
_NEED_CONFIG = {"controlnet-sdxl-small", "controlnet-z-image", "controlnet-sparse"}
_PARTS_OF_A_HEADER = {"controlnet-sd1", "t2i-adapter-sd1-original"}
FILES = [
    name
    for name in NAMES
    if name.startswith(("controlnet-", "t2i-adapter-"))
    and name not in _NEED_CONFIG | _PARTS_OF_A_HEADER
    and not name.endswith("-xlabs")
]


def weights(name):
    return {
        key: torch.empty(shape, dtype=_DTYPES[dtype], device="meta")
        for key, (dtype, shape) in stored(name).tensors.items()
    }


def base_of(architecture):
    kind, config = FAMILIES.get(architecture, ("SanaTransformer2DModel", {}))
    if kind == "unet":
        return json.loads((CONFIGS / str(config) / "unet" / "config.json").read_text())
    if architecture == "sana":
        with torch.device("meta"):
            return dict(diffusers.SanaTransformer2DModel().config)
    return dict(model(architecture).components["transformer"].config)


@pytest.mark.parametrize("name", FILES)
def test_a_single_file_is_put_together_from_its_base(name):
    found = detect_header(stored(name))
    cls = getattr(diffusers, found.component_class)
    net, named = build_control(cls, weights(name), base_of(found.architecture), name)
    assert named.keys() == net.state_dict().keys()


def test_a_file_of_another_structure_is_refused_with_what_differs():
    with pytest.raises(IncompatibleAdapter, match=r"tensors of small are not those of a ControlNetModel") as failure:
        build_control(diffusers.ControlNetModel, weights("controlnet-sdxl-small"), base_of("sdxl"), "small")
    assert failure.value.field == "controlnets"
    with pytest.raises(UnsupportedModel, match=r"diffusers repository"):
        build_control(diffusers.ZImageControlNetModel, weights("controlnet-z-image"), base_of("z-image"), "z")

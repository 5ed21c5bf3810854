"""Marigold: what an image shows, as a map of depth, normals or materials."""

from typing import Any

from tests.zoo.families.stable_diffusion import bare
from tests.zoo.recipe import Image, Recipe

_REQUEST = {"image": Image(), "num_inference_steps": 2, "processing_resolution": 64}
_SEVERAL = {"ensemble_size": 3}  # fewer have no uncertainty
_MATERIALS = {
    "target_names": ["albedo", "material"],
    "albedo": {"prediction_space": "srgb", "up_to_scale": False},
    "material": {"prediction_space": "stack", "sub_target_names": ["roughness", "metallicity", None]},
}


def _marigold(**unet: object) -> dict[str, Any]:
    return bare(**{"in_channels": 8, **unet})


RECIPES = (
    Recipe("MarigoldDepthPipeline", lambda: {**_marigold(), "prediction_type": "depth"}, _REQUEST, values=_SEVERAL),
    Recipe("MarigoldNormalsPipeline", lambda: {**_marigold(), "prediction_type": "normals"}, _REQUEST, values=_SEVERAL),
    Recipe(
        "MarigoldIntrinsicsPipeline",
        lambda: {
            **_marigold(in_channels=12, out_channels=8),
            "prediction_type": "intrinsics",
            "target_properties": _MATERIALS,
        },
        _REQUEST,
        values=_SEVERAL,
    ),
)

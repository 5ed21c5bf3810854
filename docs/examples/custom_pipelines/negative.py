"""A pipeline of one's own: Stable Diffusion 1, whose colours can be turned into their opposites."""

from typing import Any

import torch
from diffusers import StableDiffusionPipeline


class NegativePipeline(StableDiffusionPipeline):
    """Draws as its parent does; `inversion` is how much of the negative is mixed in, 0 to 1."""

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 16,
        guidance_scale: float = 2.5,
        inversion: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        callback_on_step_end: Any = None,
    ) -> Any:
        """Return the images in whatever form is asked for: the worker asks for arrays or tensors of 0 to 1."""
        output = super().__call__(
            prompt,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            generator=generator,
            output_type="pt",
            callback_on_step_end=callback_on_step_end,
        )
        images = output.images * (1 - inversion) + (1 - output.images) * inversion
        output.images = self.image_processor.postprocess(images * 2 - 1, output_type=output_type)
        return output

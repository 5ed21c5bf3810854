"""Prompts that change from step to step, and prompts composed by AND: the denoiser hears another text at each step.

The pipeline is called with the first step's prompt. Its denoiser's `forward` is exchanged for the call: it puts the
embeddings of the present step in place of the pipeline's, and asks once for each prompt of a composition. What it
returns for `a :w AND b :v` is the unguided part plus w and v times each prompt's own difference to it, so that the
pipeline's guidance then amplifies them together. Without guidance it is their weighted mean.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from worker.core.job import Job
from worker.core.prompt_mixing import Mixture, mixture_at, text_at

_SOME = 100  # steps, where their number is not known yet
Embeddings = Mapping[str, Tensor]
# Returns the call's embeddings for these prompts: prompt and negative prompt.
Encode = Callable[[str, str | None], Embeddings]


@contextmanager
def mixed(pipe: Any, job: Job, encode: Encode) -> Iterator[None]:
    """Let the denoiser of `pipe` hear the prompts of `job` as they are at each step."""
    if not job.mixes:
        yield
        return
    unet, forward = pipe.unet, pipe.unet.forward
    own = unet.__dict__.get("forward")  # accelerate puts one there
    unet.forward = _Mixing(pipe, job, encode, forward)
    try:
        yield
    finally:
        if own is None:
            del unet.forward
        else:
            unet.forward = own


def first_texts(job: Job) -> tuple[str, str | None]:
    """Return prompt and negative prompt as they are about the first step; the denoiser hears them anew in any case."""
    negative = job.negative_prompt
    first = mixture_at(job.prompt, 1, _SOME)[0][0]
    return first, None if negative is None else text_at(negative, 1, _SOME)


class _Mixing:
    """A denoiser's `forward` for one call."""

    def __init__(self, pipe: Any, job: Job, encode: Encode, forward: Callable[..., Any]) -> None:
        self._pipe, self._job, self._forward = pipe, job, forward
        self._encode = encode
        self._known: dict[tuple[str, str | None], Embeddings] = {}
        self._seen: list[float] = []

    def __call__(self, sample: Tensor, timestep: Any, encoder_hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return the denoiser's output for the prompts of this step."""
        mixture, negative = self._now(timestep)
        outputs, guided = [], False
        for text, _ in mixture:
            hidden, added, guided = self._heard(self._embeddings(text, negative), encoder_hidden_states, kwargs)
            outputs.append(self._forward(sample, timestep, hidden, *args, **(kwargs | added)))
        if len(outputs) == 1:
            return outputs[0]
        whole = _composed([_noise(output) for output in outputs], [weight for _, weight in mixture], guided)
        return (whole,) if isinstance(outputs[0], tuple) else type(outputs[0])(sample=whole)

    def _now(self, timestep: Any) -> tuple[Mixture, str | None]:
        """Return the prompts of the present step. A scheduler that looks at a step twice counts it once."""
        now = float(torch.as_tensor(timestep).flatten()[0])
        if not self._seen or self._seen[-1] != now:
            self._seen.append(now)
        count = self._pipe.num_timesteps  # fewer where the call begins in the middle
        steps = len(dict.fromkeys(float(step) for step in self._pipe.scheduler.timesteps[-count:]))
        step = min(len(self._seen), steps)
        negative = self._job.negative_prompt
        return (
            mixture_at(self._job.prompt, step, steps),
            None if negative is None else text_at(negative, step, steps),
        )

    def _embeddings(self, text: str, negative: str | None) -> Embeddings:
        if (text, negative) not in self._known:
            self._known[text, negative] = self._encode(text, negative)
        return self._known[text, negative]

    def _heard(
        self, embeddings: Embeddings, hidden: Tensor, kwargs: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Any], bool]:
        """Return embeddings laid out as the pipeline's own `hidden`, its added conditions, and whether it is guided."""
        guided = bool(self._pipe.do_classifier_free_guidance) and "negative_prompt_embeds" in embeddings
        signs = ("negative_", "") if guided else ("",)
        each = hidden.shape[0] // len(signs)
        new = torch.cat([embeddings[f"{sign}prompt_embeds"].expand(each, -1, -1) for sign in signs]).to(hidden)
        added = kwargs.get("added_cond_kwargs") or {}
        if "text_embeds" not in added:
            return new, {}, guided
        pooled = [embeddings[f"{sign}pooled_prompt_embeds"].expand(each, -1) for sign in signs]
        text = torch.cat(pooled).to(added["text_embeds"])
        return new, {"added_cond_kwargs": {**added, "text_embeds": text}}, guided


def _noise(output: Any) -> Tensor:
    noise: Tensor = output[0] if isinstance(output, tuple) else output.sample
    return noise


def _composed(noises: Sequence[Tensor], weights: Sequence[float], guided: bool) -> Tensor:
    """Return one prediction for several prompts: unguided part and guided part, as the pipeline expects them."""
    if not guided:
        total = sum(weights)
        return sum(noise * (weight / total if total else weight) for noise, weight in zip(noises, weights, strict=True))
    unguided = noises[0].chunk(2)[0]
    whole = unguided.clone()
    for noise, weight in zip(noises, weights, strict=True):
        without, with_ = noise.chunk(2)
        whole = whole + weight * (with_ - without)
    return torch.cat([unguided, whole])

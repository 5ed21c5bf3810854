"""A rehearsal: the model's own image-to-image pipeline shows how its denoiser is called for one image and caption.

The pipeline encodes image and words, packs latents, makes ids and masks, and scales the time: all as when it generates.
Its scheduler adds no noise meanwhile, so the denoiser's first call holds the clean latents in the form that it reads,
and every other argument that it needs. What is learnt on these calls is what serving will do; no family is told apart.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from worker.core.errors import UnsupportedModel
from worker.engine.devices import is_out_of_memory

Tensors = Any  # a tensor, or lists, tuples and mappings of them, as a denoiser takes it
_TIME_NAMES = ("timestep", "timesteps", "t")
_STEPS = 4
_SAME = 1e-6


class _Seen(Exception):
    """The end of a rehearsal: the first step was seen."""


@dataclass(frozen=True, slots=True)
class DenoiserCall:
    """The arguments of one call of a denoiser, by name. `clean` (1, …) are the latents without noise."""

    arguments: Mapping[str, Any]
    sample_name: str
    time_name: str

    @property
    def clean(self) -> torch.Tensor:
        """The image's latents, as the denoiser reads them; a list of one is seen as a batch of one."""
        sample = self.arguments[self.sample_name]
        return torch.stack(list(sample)) if isinstance(sample, list | tuple) else sample


@dataclass(frozen=True, slots=True)
class Habits:
    """A pipeline's ways around its denoiser.

    The time that it tells is `slope` x timestep + `offset`; `sign` is that of the denoiser's output in what the
    scheduler gets; `unguided` is the guidance scale at which one image is one call.
    """

    slope: float
    offset: float
    sign: float
    unguided: float

    def told(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Return the times that the denoiser is told at these timesteps of the scheduler (0 to 1000)."""
        return timesteps * self.slope + self.offset


def denoiser_of(pipe: Any) -> tuple[str, torch.nn.Module]:
    """Return name and module of the part that is trained. Raises UnsupportedModel unless there is exactly one."""
    names = [name for name, part in pipe.components.items() if name.split("_")[0] in ("unet", "transformer") and part]
    if len(names) != 1:
        raise UnsupportedModel(
            f"{type(pipe).__name__} has {len(names) or 'no'} denoisers; only models with one can be trained.",
            field="model",
        )
    return names[0], getattr(pipe, names[0])


def rehearse(pipe: Any, habits: Habits, image: Image.Image, prompt: str, seed: int) -> DenoiserCall:
    """Return the denoiser's call for `image` and `prompt`."""
    return _run(pipe, image, prompt, seed, 1.0, habits.unguided).call


def habits_of(pipe: Any, image: Image.Image, seed: int) -> Habits:
    """Learn a pipeline's habits from rehearsals at different times. Raises UnsupportedModel for ways that are unknown.

    A guidance scale of 1 is none for most pipelines, and what a distilled model is told; for others 0 is none.
    """
    try:
        unguided = 1.0 if len(_run(pipe, image, "", seed, 1.0, 1.0).call.clean) == 1 else 0.0
        early, late = (_run(pipe, image, "", seed, strength, unguided) for strength in (1.0, 0.5))
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise _unknown(pipe) from error
    one_call = all(len(each.call.clean) == 1 for each in (early, late))
    if not one_call or early.timestep == late.timestep or not _alike(early, late):
        raise _unknown(pipe)
    slope = (early.told - late.told) / (early.timestep - late.timestep)
    return Habits(_plain(slope), _plain(early.told - slope * early.timestep), early.sign, unguided)


def _unknown(pipe: Any) -> UnsupportedModel:
    return UnsupportedModel(
        f"{type(pipe).__name__} asks for inputs, or mixes noise, guidance or time, in a way of its own; models of this "
        "class cannot be trained here.",
        field="model",
    )


def _alike(one: "_Rehearsal", other: "_Rehearsal") -> bool:
    return one.sign == other.sign and torch.allclose(one.call.clean, other.call.clean, atol=_SAME)


def _plain(number: float) -> float:
    """Return a number without what float32 left at its end."""
    return round(number, 6)


@dataclass(frozen=True, slots=True)
class _Rehearsal:
    """A call, the scheduler's timestep, the time that the denoiser was told, and the sign of its output."""

    call: DenoiserCall
    timestep: float
    told: float
    sign: float


def _run(pipe: Any, image: Image.Image, prompt: str, seed: int, strength: float, guidance: float) -> _Rehearsal:
    """Let the pipeline begin, up to its first step."""
    (_, denoiser), seen = denoiser_of(pipe), dict[str, Any]()

    def listen(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        bound = inspect.signature(type(module).forward).bind(module, *args, **kwargs).arguments
        seen["arguments"] = {key: value for key, value in list(bound.items())[1:] if key != "return_dict"}
        seen["output"] = output

    takes = inspect.signature(type(pipe).__call__).parameters
    wanted = {
        "prompt": prompt,
        "image": image,
        "strength": strength,
        "guidance_scale": guidance,
        "num_inference_steps": _STEPS,
        "height": image.height,
        "width": image.width,
        "generator": torch.Generator("cpu").manual_seed(seed),
        "output_type": "latent",
    }
    handle = denoiser.register_forward_hook(listen, with_kwargs=True)
    try:
        with torch.no_grad(), _without_noise(pipe.scheduler, seen):
            pipe(**{key: value for key, value in wanted.items() if key in takes})
    except _Seen:
        pass
    finally:
        handle.remove()
    return _read(type(pipe).__name__, seen)


def _read(name: str, seen: Mapping[str, Any]) -> _Rehearsal:
    arguments = seen.get("arguments", {})
    time_name = next((key for key in _TIME_NAMES if key in arguments), None)
    if "step" not in seen or time_name is None:
        raise UnsupportedModel(f"{name} shows no step that could be learnt; it cannot be trained here.", field="model")
    call = DenoiserCall(arguments, next(iter(arguments)), time_name)
    output, (model_output, timestep) = output_of(seen["output"]), seen["step"]
    told = float(torch.as_tensor(arguments[time_name]).reshape(-1)[0])
    sign = 1.0
    if model_output.numel() == output.numel():
        sign = 1.0 if torch.dot(output.reshape(-1).float(), model_output.reshape(-1).float()) >= 0 else -1.0
    return _Rehearsal(call, float(timestep), told, sign)


def output_of(output: Any) -> torch.Tensor:
    """Return what a denoiser predicts, as one tensor: its first value, and a list of images as a batch."""
    value = output[0] if isinstance(output, tuple) or hasattr(output, "to_tuple") else output
    return torch.stack(list(value)) if isinstance(value, list | tuple) else value


@contextmanager
def _without_noise(scheduler: Any, seen: dict[str, Any]) -> Iterator[None]:
    """Let a scheduler add no noise, and end the call at its first step. By class: a pipeline may copy its scheduler."""
    cls = type(scheduler)

    def clean(_: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        return sample

    def step(_: Any, model_output: Any, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        seen["step"] = (model_output, torch.as_tensor(timestep).reshape(-1)[0])
        raise _Seen

    def add_noise(_: Any, original_samples: Any, noise: Any, timesteps: Any) -> Any:
        return original_samples

    def scale_noise(_: Any, sample: Any, timestep: Any = None, noise: Any = None) -> Any:
        return sample

    quiet = {"step": step, "add_noise": add_noise, "scale_noise": scale_noise, "scale_model_input": clean}
    scheduler.__class__ = type(cls.__name__, (cls,), {key: each for key, each in quiet.items() if hasattr(cls, key)})
    try:
        yield
    finally:
        scheduler.__class__ = cls

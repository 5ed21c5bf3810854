"""A rehearsal: the model's own pipeline shows how its denoiser is called for one image and caption.

The pipeline encodes image and words, packs latents, makes ids and masks, and scales the time: all as when it generates.
Its scheduler adds no noise meanwhile, so the denoiser's first call holds the clean latents in the form that it reads,
and every other argument that it needs. A class that starts from text alone never holds an image's latents: there they
are led to their places on the way back from its VAE. An editor's denoiser reads its source behind them: that part stays
as it is, and noise and loss are of the other alone. What is learnt on these calls is what serving will do; no family is
told apart.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image

from worker.core.errors import UnsupportedModel
from worker.core.training import UntrainableClass
from worker.engine.devices import is_out_of_memory
from worker.training.way_back import latents_of

Tensors = Any  # a tensor, or lists, tuples and mappings of them, as a denoiser takes it
_TIME_NAMES = ("timestep", "timesteps", "t")
_STEPS = 4
_SAME = 1e-6


class _Seen(Exception):
    """The end of a rehearsal: what it is for was seen."""


class _Stepped(tuple[Any]):
    """What a scheduler's step returns, in both forms that pipelines read it in."""

    @property
    def prev_sample(self) -> Any:
        """The sample after the step."""
        return self[0]


@dataclass(frozen=True, slots=True)
class DenoiserCall:
    """The arguments of one call of a denoiser, by name. `clean` (1, …) are the latents without noise.

    `weight` has their shape: how much each counts. Where the sample holds a source behind them, `beside` has the axis
    along which it does, and how many places there are the latents' own.
    """

    arguments: Mapping[str, Any]
    sample_name: str
    time_name: str
    weight: torch.Tensor | None = None
    beside: tuple[int, int] | None = None

    @property
    def clean(self) -> torch.Tensor:
        """The image's latents, as the denoiser reads them; a list of one is seen as a batch of one."""
        sample = self.arguments[self.sample_name]
        return self.own(torch.stack(list(sample)) if isinstance(sample, list | tuple) else sample)

    def own(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the latents' part of what a denoiser reads or predicts, without the source's."""
        if self.beside is None or tensor.shape[self.beside[0]] <= self.beside[1]:
            return tensor
        axis, count = self.beside
        return tensor.narrow(axis, 0, count)

    def at(self, latents: torch.Tensor) -> "DenoiserCall":
        """Return the same call for other latents of the same form."""
        sample, latents = self.arguments[self.sample_name], latents.to(self.clean)
        if self.beside is not None:
            axis, count = self.beside
            latents = torch.cat([latents, sample.narrow(axis, count, sample.shape[axis] - count)], axis)
        taken = list(latents) if isinstance(sample, list | tuple) else latents
        return replace(self, arguments={**self.arguments, self.sample_name: taken})


@dataclass(frozen=True, slots=True)
class Habits:
    """A pipeline's ways around its denoiser.

    The time that it tells is `slope` x timestep + `offset`; `sign` is that of the denoiser's output in what the
    scheduler gets; `unguided` is the guidance scale at which one image is one call. `from_text` is True for classes
    that start from text alone.
    """

    slope: float
    offset: float
    sign: float
    unguided: float
    from_text: bool = False

    def told(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Return the times that the denoiser is told at these timesteps of the scheduler (0 to 1000)."""
        return timesteps * self.slope + self.offset


def denoiser_of(pipe: Any) -> tuple[str, torch.nn.Module]:
    """Return name and module of the part that is trained. Raises UntrainableClass unless there is exactly one."""
    names = [name for name, part in pipe.components.items() if name.split("_")[0] in ("unet", "transformer") and part]
    if len(names) != 1:
        raise UntrainableClass(
            f"{type(pipe).__name__} has {len(names) or 'no'} denoisers; only models with one can be trained.",
            field="model",
        )
    return names[0], getattr(pipe, names[0])


def rehearse(
    pipe: Any, habits: Habits, image: Image.Image, prompt: str, seed: int, source: Image.Image | None = None
) -> DenoiserCall:
    """Return the denoiser's call for `image` and `prompt`, or for making `image` of `source`."""
    asked = _asked(pipe, image, prompt, seed, habits.unguided, source)
    call = _run(pipe, asked).call
    return call.at(_clean(pipe, image, asked)) if habits.from_text else call


def habits_of(pipe: Any, image: Image.Image, seed: int, source: Image.Image | None = None) -> Habits:
    """Learn a pipeline's habits from rehearsals at different times. Raises UntrainableClass for ways that are unknown.

    With a `source` they are those of an editor, which starts from noise. A guidance scale of 1 is none for most
    pipelines, and what a distilled model is told; for others 0 is none.
    """
    from_text, unguided = not _starts_from_images(pipe), 1.0
    if source is not None and not takes_sources(pipe):
        raise UnsupportedModel(
            f"{type(pipe).__name__} takes no source to make an image of; train a model that edits images, or take the "
            "sources out of data.",
            field="data",
        )

    def asked() -> dict[str, Any]:
        return _asked(pipe, image, "", seed, unguided, source)  # with a generator that nothing was drawn from yet

    try:
        unguided = 1.0 if _run(pipe, asked()).is_one_call else 0.0
        early = _run(pipe, asked())
        late = _run(pipe, asked(), after=1) if from_text else _run(pipe, {**asked(), "strength": 0.5})
        is_known = not from_text or (early.is_whole and _clean(pipe, image, asked()).shape == early.call.clean.shape)
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise _unknown(pipe) from error
    if not (is_known and early.is_one_call and late.is_one_call and _alike(early, late)):
        raise _unknown(pipe)
    slope = (early.told - late.told) / (early.timestep - late.timestep)
    return Habits(_plain(slope), _plain(early.told - slope * early.timestep), early.sign, unguided, from_text)


def _starts_from_images(pipe: Any) -> bool:
    return {"image", "strength"} <= inspect.signature(type(pipe).__call__).parameters.keys()


def takes_sources(pipe: Any) -> bool:
    """True for a class that reads an image beside the words, and does not start from it."""
    return "image" in inspect.signature(type(pipe).__call__).parameters and not _starts_from_images(pipe)


def _unknown(pipe: Any) -> UntrainableClass:
    return UntrainableClass(
        f"{type(pipe).__name__} asks for inputs, or mixes noise, guidance or time, in a way of its own; models of this "
        "class cannot be trained here.",
        field="model",
    )


def _alike(one: "_Rehearsal", other: "_Rehearsal") -> bool:
    same = torch.allclose(one.call.clean, other.call.clean, atol=_SAME)
    return one.sign == other.sign and one.timestep != other.timestep and same


def _plain(number: float) -> float:
    """Return a number without what float32 left at its end."""
    return round(number, 6)


@dataclass(frozen=True, slots=True)
class _Rehearsal:
    """A call, the scheduler's timestep, the time that the denoiser was told, and the sign of its output.

    `calls` were made before the step; `is_whole` is True if the denoiser read just what the scheduler goes on from.
    """

    call: DenoiserCall
    timestep: float
    told: float
    sign: float
    calls: int
    is_whole: bool

    @property
    def is_one_call(self) -> bool:
        """True if an image was one call of its own, as without guidance."""
        return self.calls == 1 and len(self.call.clean) == 1


def _run(pipe: Any, asked: Mapping[str, Any], after: int = 0) -> _Rehearsal:
    """Let the pipeline begin, up to its first step or the one `after` so many."""
    (_, denoiser), seen = denoiser_of(pipe), dict[str, Any](calls=0)

    def listen(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        bound = inspect.signature(type(module).forward).bind(module, *args, **kwargs).arguments
        seen["arguments"] = {key: value for key, value in list(bound.items())[1:] if key != "return_dict"}
        seen["output"], seen["calls"] = output, seen["calls"] + 1

    def step(_: Any, model_output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> _Stepped:
        seen["steps"] = seen.get("steps", -1) + 1
        if seen["steps"] == after:
            seen["step"] = (model_output, torch.as_tensor(timestep).reshape(-1)[0], sample)
            raise _Seen
        seen["calls"] = 0
        return _Stepped((sample,))

    handle = denoiser.register_forward_hook(listen, with_kwargs=True)
    try:
        with torch.no_grad(), _without_noise(pipe.scheduler, step):
            pipe(**asked)
    except _Seen:
        pass
    finally:
        handle.remove()
    return _read(type(pipe).__name__, seen)


def _asked(
    pipe: Any, image: Image.Image, prompt: str, seed: int, guidance: float, source: Image.Image | None = None
) -> dict[str, Any]:
    """Return a pipeline's arguments: of these, the ones that it takes."""
    takes = inspect.signature(type(pipe).__call__).parameters
    wanted = {
        "prompt": prompt,
        "guidance_scale": guidance,
        "num_inference_steps": _STEPS,
        "height": image.height,
        "width": image.width,
        "max_area": image.width * image.height,  # as serving has it
        "generator": torch.Generator("cpu").manual_seed(seed),
        "output_type": "latent",
    }
    if _starts_from_images(pipe):
        wanted |= {"image": image, "strength": 1.0}
    elif source is not None:
        wanted |= {"image": source}
    return {key: value for key, value in wanted.items() if key in takes}


def _clean(pipe: Any, image: Image.Image, asked: Mapping[str, Any]) -> torch.Tensor:
    """Return an image's latents as the denoiser of a class reads them that starts from text alone."""

    def lead(latents: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        return _led(pipe, {**asked, "num_inference_steps": 1, "output_type": "pt"}, latents)

    return latents_of(image, pipe.vae, lead)


def _led(pipe: Any, asked: Mapping[str, Any], latents: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Let a pipeline go on from these latents, or from zeros, after its only step, up to its VAE.

    Returns what it went on from, and what the VAE is given. The denoiser's work has no gradients.
    """
    seen: list[torch.Tensor] = []

    def step(_: Any, model_output: Any, timestep: Any, sample: torch.Tensor, *args: Any, **kwargs: Any) -> _Stepped:
        start = torch.zeros_like(sample, dtype=torch.float32) if latents is None else latents
        seen.append(start.requires_grad_(latents is None))
        torch.set_grad_enabled(True)
        return _Stepped((start,))

    def decode(z: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        seen.append(z)
        raise _Seen

    pipe.vae.decode = decode  # of this very object, before its class's
    try:
        with torch.no_grad(), _without_noise(pipe.scheduler, step):
            inspect.unwrap(type(pipe).__call__)(pipe, **asked)
    except _Seen:
        pass
    finally:
        del pipe.vae.decode
    start, arrived = seen
    return start, arrived


def read_anew(
    pipe: Any, habits: Habits, image: Image.Image, prompt: str, seed: int, source: Image.Image | None = None
) -> DenoiserCall:
    """Return the denoiser's call for `image` and `prompt` as `rehearse` does, with the gradients of how words are read.

    The pipeline runs without the `torch.no_grad` around it, and no further than to its denoiser.
    """
    (_, denoiser), seen = denoiser_of(pipe), dict[str, Any]()
    asked = _asked(pipe, image, prompt, seed, habits.unguided, source)

    def listen(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        bound = inspect.signature(type(module).forward).bind(module, *args, **kwargs).arguments
        seen.update({key: value for key, value in list(bound.items())[1:] if key != "return_dict"})
        raise _Seen

    handle = denoiser.register_forward_pre_hook(listen, with_kwargs=True)
    try:
        with _without_noise(pipe.scheduler):
            inspect.unwrap(type(pipe).__call__)(pipe, **asked)
    except _Seen:
        pass
    finally:
        handle.remove()
    call = DenoiserCall(seen, next(iter(seen)), next(key for key in _TIME_NAMES if key in seen))
    if not habits.from_text:
        return call
    clean = _clean(pipe, image, asked)
    return replace(call, beside=_beside(call.arguments[call.sample_name], clean)).at(clean)


def learns(value: Any) -> bool:
    """True if gradients flow from a denoiser's arguments."""
    if isinstance(value, torch.Tensor):
        return bool(value.requires_grad)
    values = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return any(learns(each) for each in values)


def _read(name: str, seen: Mapping[str, Any]) -> _Rehearsal:
    arguments = seen.get("arguments", {})
    time_name = next((key for key in _TIME_NAMES if key in arguments), None)
    if "step" not in seen or time_name is None:
        raise UntrainableClass(f"{name} shows no step that could be learnt; it cannot be trained here.", field="model")
    sample_name, (model_output, timestep, sample) = next(iter(arguments)), seen["step"]
    call = DenoiserCall(arguments, sample_name, time_name, beside=_beside(arguments[sample_name], sample))
    output = call.own(output_of(seen["output"]))
    told = float(torch.as_tensor(arguments[time_name]).reshape(-1)[0])
    sign = 1.0
    if model_output.numel() == output.numel():
        sign = 1.0 if torch.dot(output.reshape(-1).float(), model_output.reshape(-1).float()) >= 0 else -1.0
    is_whole = call.clean.shape == sample.shape and torch.equal(call.clean, sample.to(call.clean))
    return _Rehearsal(call, float(timestep), told, sign, seen["calls"], is_whole)


def _beside(whole: Tensors, latents: torch.Tensor) -> tuple[int, int] | None:
    """Return the axis along which something stands behind `latents` in what a denoiser reads, and how many are theirs.

    None where nothing does.
    """
    if not isinstance(whole, torch.Tensor) or whole.ndim != latents.ndim:
        return None
    longer = [axis for axis, count in enumerate(latents.shape) if whole.shape[axis] != count]
    if len(longer) != 1 or longer[0] == 0 or whole.shape[longer[0]] < latents.shape[longer[0]]:
        return None
    return longer[0], latents.shape[longer[0]]


def output_of(output: Any) -> torch.Tensor:
    """Return what a denoiser predicts, as one tensor: its first value, and a list of images as a batch."""
    value = output[0] if isinstance(output, tuple) or hasattr(output, "to_tuple") else output
    return torch.stack(list(value)) if isinstance(value, list | tuple) else value


@contextmanager
def _without_noise(scheduler: Any, step: Callable[..., Any] | None = None) -> Iterator[None]:
    """Let a scheduler add no noise, and have `step` for its own. By class: a pipeline may copy its scheduler."""
    cls = type(scheduler)

    def clean(_: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        return sample

    def add_noise(_: Any, original_samples: Any, noise: Any, timesteps: Any) -> Any:
        return original_samples

    def scale_noise(_: Any, sample: Any, timestep: Any = None, noise: Any = None) -> Any:
        return sample

    quiet = {"add_noise": add_noise, "scale_noise": scale_noise, "scale_model_input": clean}
    replaced = {key: each for key, each in quiet.items() if hasattr(cls, key)} | ({"step": step} if step else {})
    scheduler.__class__ = type(cls.__name__, (cls,), replaced)
    try:
        yield
    finally:
        scheduler.__class__ = cls

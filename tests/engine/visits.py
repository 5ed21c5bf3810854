"""Jobs of every kind, to be drawn after one another: none may see that another was there before it.

A new field, adapter or task gets a row in `visits`, and `test_isolation` draws it in all orders.
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from tests.answers import files_of
from tests.asking import perform
from tests.images import encoded, gradient
from worker.app.build import Worker
from worker.core.errors import WorkerError
from worker.core.job import Job
from worker.core.result import Emit, Progress
from worker.core.turn import StopSignal

Mishap = Literal["breaks", "nan", "short of memory", "tight", "cancelled", "late"]
_ids = itertools.count()


@dataclass(frozen=True)
class Visit:
    """A request, and what goes wrong with it at the step `at`, if anything."""

    name: str
    fields: Mapping[str, Any]
    mishap: Mishap | None = None
    at: int = 1
    fails: str | None = field(default=None)  # the error's code


def visits(models: Path) -> tuple[Visit, ...]:
    """The rows. Files lie in `models`; the models' names are those of `test_isolation`'s registry."""
    image, other = encoded(gradient(64, 64)), encoded(255 - gradient(64, 64))
    mask = {"image": image, "mask_image": encoded(gradient(64, 64) // 128 * 255)}
    lora, kohya = f"file:{models}/lora.safetensors", f"file:{models}/kohya.safetensors"
    beside = f"file:{models}/companions"
    control = {"model": f"{beside}/control-sd1", "image": image}
    sketch = {"model": f"{beside}/t2i-sd1", "image": other, "scale": 0.7}
    xl_control = {"model": f"{beside}/control-sdxl", "image": image, "end": 0.5}
    flux_control = {"model": f"{beside}/control-flux", "image": image}
    shown = {"model": f"{beside}/ip-sd1.safetensors", "images": [image, other], "scale": 0.8}
    xl_shown = {"model": f"{beside}/ip-sdxl.safetensors", "image": other}
    word = {"prompt": "a zzz apple", "embeddings": [{"model": f"{beside}/word-sd1.safetensors", "token": "zzz"}]}
    xl_word = {"prompt": "a zzz apple", "embeddings": [{"model": f"{beside}/word-sdxl.safetensors", "token": "zzz"}]}
    style = {"model": f"{beside}/style.safetensors", "weight": 0.7}
    everything = {"controlnets": [control], "ip_adapters": [shown], **word, "hypernetworks": [style], "loras": [lora]}
    polished = {"refiner": {"model": "refiner", "start": 0.4}, "num_inference_steps": 4}
    xl_lora, flux_lora = f"file:{models}/lora-sdxl.safetensors", f"file:{models}/lora-flux.safetensors"
    return (
        Visit("plain", {"model": "sd1"}),
        Visit("words", {"model": "sd1", "negative_prompt": "blue", "guidance_scale": 3, "clip_skip": 1}),
        Visit("two", {"model": "sd1", "num_images": 2, "width": 96, "height": 32}),
        Visit("lora", {"model": "sd1", "loras": [{"model": lora, "weight": 0.8}]}),
        Visit("two loras", {"model": "sd1", "loras": [lora, {"model": kohya, "weights": {"unet.mid_block": 0}}]}),
        Visit("lightning", {"model": "fast"}),
        Visit("no lightning", {"model": "fast", "lightning": False}),
        Visit("sampled", {"model": "sd1", "scheduler": "DPM++ 2M Karras", "num_inference_steps": 5}),
        Visit("ancestral", {"model": "sd1", "scheduler": "euler_a"}),
        Visit("from an image", {"model": "sd1", "image": image, "strength": 0.7, "loras": [lora]}),
        Visit("masked", {"model": "sd1", **mask, "strength": 1.0}),
        Visit("masked and cropped", {"model": "sd1", **mask, "strength": 1.0, "padding_mask_crop": 8}),
        Visit("edited", {"model": "edit", "image": image}),
        Visit("controlled", {"model": "control", "control_image": image, "controlnet_conditioning_scale": 0.5}),
        Visit("enlarged", {"model": "upscaler", "image": encoded(gradient(16, 16)), "noise_level": 10}),
        Visit("filmed", {"model": "video", "width": 64, "height": 64, "num_frames": 5}),
        Visit("wordless", {"model": "ddim"}),
        Visit("xl", {"model": "sdxl"}),
        Visit("xl lora", {"model": "sdxl", "loras": [xl_lora], "scheduler": "euler_a"}),
        Visit("xl masked", {"model": "sdxl", **mask, "strength": 1.0}),
        Visit("sd3", {"model": "sd3"}),
        Visit("sd3 from an image", {"model": "sd3", "image": other, "strength": 0.7}),
        Visit("flux", {"model": "flux"}),
        Visit("flux lora", {"model": "flux", "loras": [flux_lora]}),
        Visit("flux masked", {"model": "flux", **mask, "strength": 1.0}),
        # What goes beside a model, and the fields of every model.
        Visit("followed", {"model": "sd1", "controlnets": [control]}),
        Visit("followed by edges", {"model": "sd1", "controlnets": [control | {"preprocess": "canny", "scale": 0.6}]}),
        Visit("sketched", {"model": "sd1", "controlnets": [sketch]}),
        Visit("followed from an image", {"model": "sd1", "image": other, "strength": 0.7, "controlnets": [control]}),
        Visit("shown", {"model": "sd1", "ip_adapters": [shown]}),
        Visit("worded", {"model": "sd1", **word}),
        Visit("worded differently", {"model": "sd1", "prompt": "a zzz apple"}),
        Visit("styled", {"model": "sd1", "hypernetworks": [style]}),
        Visit("everything", {"model": "sd1", **everything}),
        Visit("decoded", {"model": "sd1", "vae": f"{beside}/vae"}),
        Visit("weighted", {"model": "sd1", "prompt": "a (red:1.4) [apple] BREAK on a table"}),
        Visit("unweighted", {"model": "sd1", "prompt": "a (red:1.4) [apple]", "prompt_weighting": "none"}),
        Visit("long", {"model": "sd1", "prompt": "a red apple beside a green pear, " * 12}),
        Visit("skipped", {"model": "sd1", "clip_skip": 2, "scheduler": "dpmpp_sde"}),
        Visit("scheduled", {"model": "sd1", "scheduler": "euler", "schedule": "beta", "num_inference_steps": 4}),
        Visit("listed", {"model": "sd1", "scheduler": "heun", "timesteps": [900, 500, 100]}),
        Visit("outpainted", {"model": "sd1", "image": image, "outpaint": {"right": 32}}),
        Visit("untouched", {"model": "sd1", "image": image, "strength": 0}),
        Visit("watched", {"model": "sd1", "previews": True, "scheduler": "lms"}),
        Visit("made larger", {"model": "sd1", "upscale": "esrgan"}),
        Visit("xl followed", {"model": "sdxl", "controlnets": [xl_control]}),
        Visit("xl shown", {"model": "sdxl", "ip_adapters": [xl_shown]}),
        Visit("xl worded", {"model": "sdxl", **xl_word}),
        Visit("xl weighted", {"model": "sdxl", "prompt": "a (red:1.4) apple", "clip_skip": 1}),
        Visit("xl polished", {"model": "sdxl", **polished}),
        Visit("xl made larger", {"model": "sdxl", "upscale": "esrgan", "previews": True}),
        Visit("sd3 shifted", {"model": "sd3", "shift": 7.0}),
        Visit("flux followed", {"model": "flux", "controlnets": [flux_control]}),
        Visit("flux scheduled", {"model": "flux", "scheduler": "dpmpp_2m", "schedule": "karras"}),
        # And what does not end well, each in the middle of its steps.
        Visit("tight", {"model": "sd1", "loras": [lora]}, "tight"),
        Visit("short", {"model": "sd1", "loras": [lora]}, "short of memory", fails="gpu_oom"),
        Visit("broken", {"model": "sd1", "scheduler": "euler_a", "loras": [lora]}, "breaks", fails="engine_failure"),
        Visit("not a number", {"model": "sd1", "loras": [kohya]}, "nan", fails="invalid_output"),
        Visit("cancelled", {"model": "sd1", **mask, "strength": 1.0}, "cancelled", fails="job_cancelled"),
        Visit("late", {"model": "sd1", "loras": [lora], "num_images": 2}, "late", fails="job_timeout"),
        Visit("xl broken", {"model": "sdxl", "loras": [xl_lora]}, "breaks", fails="engine_failure"),
        Visit("xl not a number", {"model": "sdxl", "image": image, "strength": 1.0}, "nan", fails="invalid_output"),
        Visit("sd3 late", {"model": "sd3"}, "late", fails="job_timeout"),
        Visit("flux cancelled", {"model": "flux", "loras": [flux_lora]}, "cancelled", fails="job_cancelled"),
        Visit("flux short", {"model": "flux"}, "short of memory", fails="gpu_oom"),
        Visit("video broken", {"model": "video", "width": 64, "height": 64}, "breaks", fails="engine_failure"),
        Visit("wordless cancelled", {"model": "ddim"}, "cancelled", fails="job_cancelled"),
        Visit("control late", {"model": "control", "control_image": other}, "late", fails="job_timeout"),
        Visit("followed and broken", {"model": "sd1", "controlnets": [control]}, "breaks", fails="engine_failure"),
        Visit("sketched late", {"model": "sd1", "controlnets": [sketch]}, "late", fails="job_timeout"),
        Visit("shown and cancelled", {"model": "sd1", "ip_adapters": [shown]}, "cancelled", fails="job_cancelled"),
        Visit("worded and broken", {"model": "sd1", **word}, "breaks", fails="engine_failure"),
        Visit("styled and not a number", {"model": "sd1", "hypernetworks": [style]}, "nan", fails="invalid_output"),
        Visit("everything cancelled", {"model": "sd1", **everything}, "cancelled", fails="job_cancelled"),
        Visit("everything short", {"model": "sd1", **everything}, "short of memory", fails="gpu_oom"),
        Visit("decoded late", {"model": "sd1", "vae": f"{beside}/vae"}, "late", fails="job_timeout"),
        Visit("weighted and broken", {"model": "sd1", "prompt": "a (red:1.4) apple"}, "breaks", fails="engine_failure"),
        Visit("skipped and short", {"model": "sd1", "clip_skip": 2}, "short of memory", fails="gpu_oom"),
        Visit("scheduled and cancelled", {"model": "sd1", "scheduler": "heun"}, "cancelled", fails="job_cancelled"),
        Visit(
            "outpainted late", {"model": "sd1", "image": image, "outpaint": {"left": 32}}, "late", fails="job_timeout"
        ),
        Visit("watched and broken", {"model": "sd1", "previews": True}, "breaks", fails="engine_failure"),
        Visit("made larger, late", {"model": "sd1", "upscale": "esrgan"}, "late", 2, fails="job_timeout"),
        Visit("xl followed, broken", {"model": "sdxl", "controlnets": [xl_control]}, "breaks", fails="engine_failure"),
        Visit("xl shown, cancelled", {"model": "sdxl", "ip_adapters": [xl_shown]}, "cancelled", fails="job_cancelled"),
        Visit("xl worded, late", {"model": "sdxl", **xl_word}, "late", fails="job_timeout"),
        Visit("xl polished, late at first", {"model": "sdxl", **polished}, "late", fails="job_timeout"),
        Visit("xl polished, cancelled at last", {"model": "sdxl", **polished}, "cancelled", 3, fails="job_cancelled"),
        Visit("xl polished, broken at last", {"model": "sdxl", **polished}, "breaks", 3, fails="engine_failure"),
        Visit("sd3 shifted, broken", {"model": "sd3", "shift": 7.0}, "breaks", fails="engine_failure"),
        Visit("flux followed, late", {"model": "flux", "controlnets": [flux_control]}, "late", fails="job_timeout"),
        Visit("refused", {"model": "sd1", "loras": [lora, xl_lora]}, fails="incompatible_adapter"),
    )


async def pay(worker: Worker, visit: Visit) -> tuple[str, ...]:
    """What the worker answers to `visit`: its images as base64, or its error's code."""
    signals: list[_Signal] = []
    generation = worker.operations.generation
    accept = generation._accept

    async def accept_and_watch(asked: Any) -> Job:
        job = await accept(asked)
        signals.append(_Signal(600))
        object.__setattr__(job, "stop", signals[0])
        return job

    generation._accept = accept_and_watch  # type: ignore[method-assign]
    payload = {"prompt": "a red apple", "seed": 7, **visit.fields}
    try:
        answer = await perform(worker, payload, f"visit-{next(_ids)}", _trouble(worker, visit, signals))
    except WorkerError as error:
        return (error.code,)
    finally:
        del generation._accept
    return tuple(files_of(answer))


class _Signal(StopSignal):
    """A stop signal whose deadline can be brought about."""

    def expire(self) -> None:
        self.limit(0.0)


def _trouble(worker: Worker, visit: Visit, signals: list[_Signal]) -> Emit:
    """Progress is told from inside the pipeline, in the engine's thread: a place to make anything happen midway."""
    happens: Mapping[Mishap, Callable[[], None]] = {
        "breaks": lambda: _spoil(worker, RuntimeError("a kernel failed")),
        "short of memory": lambda: _spoil(worker, torch.OutOfMemoryError("CUDA out of memory")),
        "tight": lambda: _spoil(worker, torch.OutOfMemoryError("CUDA out of memory")),
        "nan": lambda: _spoil(worker, None),
        "cancelled": lambda: signals[0].cancel(),
        "late": lambda: signals[0].expire(),
    }
    times = 0

    def tell(progress: Progress) -> None:
        nonlocal times
        if visit.mishap and progress.phase == "inference" and progress.step == visit.at:
            times += 1
            if times == 1 or visit.mishap == "short of memory":
                happens[visit.mishap]()

    return tell


def _spoil(worker: Worker, error: Exception | None) -> None:
    """Let the next step's denoiser raise `error`, or return NaN; every later one works."""
    pipe = [*worker.engine._engine._pool._residents.values()][-1].pipe
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    forward = denoiser.forward

    def spoiled(*args: Any, **kwargs: Any) -> Any:
        del denoiser.forward
        if error is not None:
            raise error
        return tuple(part * torch.nan for part in forward(*args, **kwargs | {"return_dict": False}))

    denoiser.forward = spoiled

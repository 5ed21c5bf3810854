"""AUTOMATIC1111's payload of txt2img and img2img, in our fields.

What changes an image and has no counterpart is refused by its name with what to do instead. What its clients always
send and nobody asked for is left out, and named once among the notes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from pydantic import JsonValue

from worker.catalog.interface.values import number_in, truth_in
from worker.catalog.samplers import AUTOMATIC, folded
from worker.core.errors import ParameterOutOfRange, UnknownParameter
from worker.wire.foreign.a1111_images import DEFAULT_STRENGTH, Retouching, retouching_of, sources_of
from worker.wire.foreign.a1111_units import control_units
from worker.wire.foreign.a1111_values import Fields, Payload, object_in, whole

# Their names in our errors' place: what a sentence about our field is about.
NAMES: Mapping[str, str] = {
    "num_inference_steps": "steps",
    "guidance_scale": "cfg_scale",
    "scheduler": "sampler_name",
    "schedule": "scheduler",
    "strength": "denoising_strength",
    "num_images": "batch_size",
    "image": "init_images",
    "mask_image": "mask",
    "model": "override_settings",
    "padding_mask_crop": "inpaint_full_res_padding",
    "controlnets": "alwayson_scripts",
    "upscale": "hr_upscaler",
}
# What only AUTOMATIC1111's API has: a bare payload with one of these is meant for it.
MARKS = frozenset(
    {"sampler_index", "n_iter", "batch_size", "enable_hr", "override_settings", "alwayson_scripts", "init_images",
     "denoising_strength", "restore_faces", "inpainting_fill", "resize_mode", "script_name", "hr_scale"}
)  # fmt: skip

_SAME = ("prompt", "negative_prompt", "width", "height", "seed")
_RENAMED = {"steps": "num_inference_steps", "cfg_scale": "guidance_scale"}
_HANDLED = frozenset(
    {*_SAME, *_RENAMED, "sampler_name", "sampler_index", "scheduler", "batch_size", "n_iter", "denoising_strength",
     "override_settings", "alwayson_scripts", "refiner_checkpoint", "refiner_switch_at", "init_images", "mask",
     "mask_blur", "mask_blur_x", "mask_blur_y", "inpainting_fill", "inpaint_full_res", "inpaint_full_res_padding",
     "inpainting_mask_invert", "resize_mode", "enable_hr", "eta", "send_images", "loras", "embeddings"}
)  # fmt: skip
# Bookkeeping of its server, and numbers that do nothing beside others: nobody misses them.
_SILENT = frozenset(
    {"save_images", "do_not_save_samples", "do_not_save_grid", "override_settings_restore_afterwards", "script_args",
     "force_task_id", "comments", "include_init_images", "subseed", "firstphase_width", "firstphase_height",
     "disable_extra_networks", "s_tmax", "s_min_uncond", "latent_mask", "user", "seed_enable_extras",
     "sampler_noise_scheduler_override", "do_not_reload_embeddings"}
)  # fmt: skip
# What has no counterpart, and does nothing at these values.
_IDLE: Mapping[str, JsonValue] = {"token_merging_ratio": 0, "token_merging_ratio_hr": 0, "hr_additional_modules": []}
# What changes an image: the values that ask for nothing, and what to do in place of any other.
_REFUSED: Mapping[str, tuple[tuple[JsonValue, ...], str]] = {
    "restore_faces": ((False,), "faces are not restored here; leave it out"),
    "tiling": ((False,), "images that tile are not made here; leave it out"),
    "styles": ((), "there are no styles here; write their words into prompt"),
    "script_name": (("None",), "scripts are not run here; send one request for each image that it would make"),
    "subseed_strength": ((0,), "there is no second seed here; send seed alone"),
    "seed_resize_from_w": ((0, -1), "a seed is of one size here; leave it out"),
    "seed_resize_from_h": ((0, -1), "a seed is of one size here; leave it out"),
    "s_churn": ((0,), "noise is not added again here; choose an ancestral sampler_name"),
    "s_tmin": ((0,), "noise is not added again here; leave it out"),
    "s_noise": ((1,), "noise is not added again here; leave it out"),
    "initial_noise_multiplier": ((1,), "the noise has its own strength here; leave it out"),
    "firstpass_image": ((), "send the image to /sdapi/v1/img2img"),
    "infotext": ((), "send its values as fields; /sdapi/v1/png-info reads them"),
}
_HR_UPSCALERS_WITHOUT_MODEL = ("latent", "none", "lanczos", "nearest", "")
_AUTOMATIC = {*AUTOMATIC, "none", ""}


@dataclass(frozen=True, slots=True)
class HiresFix:
    """The second pass of hires fix. `upscaler` is None where the image is only enlarged; `fields` are changes to ours.

    The size is `width` x `height` if both are known, else `scale` times what the first pass made.
    """

    upscaler: str | None
    scale: float
    width: int | None
    height: int | None
    fields: Fields


@dataclass(frozen=True, slots=True)
class Decoded:
    """A payload in our fields, and what is to be done around the job. `batch_size` is of one of its `n_iter`.

    `sources` are the images of img2img where there are several: each of an iteration's images is drawn from its own.
    """

    fields: Fields
    notes: tuple[str, ...] = ()
    hires: HiresFix | None = None
    retouching: Retouching = field(default_factory=Retouching)
    batch_size: int = 1
    sends_images: bool = True
    sources: tuple[JsonValue, ...] = ()


def decode(payload: Payload, options: Payload, *, has_image: bool) -> Decoded:
    """Read a payload; `options` are the caller's settings, which `override_settings` are laid over.

    Raises InvalidRequest and its kin, naming the field of the payload.
    """
    said = {name: value for name, value in payload.items() if value is not None}
    _refuse(said)
    fields: Fields = {name: said[name] for name in _SAME if name in said}
    fields |= {ours: said[name] for name, ours in _RENAMED.items() if name in said}
    fields |= {name: said[name] for name in ("loras", "embeddings") if name in said}
    notes = [*_sampling(said, fields)]
    batch_size = whole(said, "batch_size", 1)
    if (count := batch_size * whole(said, "n_iter", 1)) != 1:
        fields["num_images"] = count
    settings = object_in(said, "override_settings")
    notes += _settings({**options, **settings}, fields)
    _refiner(said, fields)
    units, others = control_units(object_in(said, "alwayson_scripts"))
    if units:
        fields["controlnets"] = [*units]
    notes += _ignored(said, others)
    decoded = Decoded(fields, tuple(notes), batch_size=batch_size, sends_images=said.get("send_images") is not False)
    if has_image:
        return _with_images(said, decoded)
    return _with_hires(said, decoded) if truth_in(said.get("enable_hr", False)) else decoded


def _with_images(said: Payload, decoded: Decoded) -> Decoded:
    """Return what was decoded, with the images and the mask of img2img."""
    first, *others = sources_of(said, decoded.batch_size)
    fields = decoded.fields | {"image": first, "strength": said.get("denoising_strength", DEFAULT_STRENGTH)}
    if mask := said.get("mask"):
        fields["mask_image"] = mask
        if truth_in(said.get("inpaint_full_res", False)):
            fields["padding_mask_crop"] = said.get("inpaint_full_res_padding", 0)
    decoded = replace(decoded, fields=fields, retouching=retouching_of(said))
    if not others:
        return decoded
    sources = (first, *others)
    count = len(sources) * whole(said, "n_iter", 1)
    return replace(decoded, fields=fields | {"num_images": count}, sources=sources, batch_size=len(sources))


def _with_hires(said: Payload, decoded: Decoded) -> Decoded:
    hires = _hires(said)
    upscaler = str(said.get("hr_upscaler") or "Latent")
    told = f"hr_upscaler {upscaler}: the image is enlarged and drawn over, not its latents."
    is_latent = upscaler.lower().startswith("latent")
    return replace(decoded, hires=hires, notes=(*decoded.notes, told) if is_latent else decoded.notes)


def _ignored(said: Payload, scripts: Sequence[str]) -> list[str]:
    """Return a note on what has no effect: fields that nobody here knows, and extensions that were given work."""
    names = [name for name in said if not is_known(name) and said[name] != _IDLE.get(name)]
    names += [f"alwayson_scripts.{name}" for name in scripts]
    return [f"Ignored here: {', '.join(name[:80] for name in sorted(names)[:40])}."] if names else []


def is_known(name: str) -> bool:
    """True for a field of that API, whether it has an effect here or not."""
    return name in _HANDLED or name in _SILENT or name in _REFUSED or name.startswith("hr_")


def _refuse(said: Payload) -> None:
    for name, (usual, instead) in _REFUSED.items():
        value = said.get(name)
        number = number_in(value)
        if value in (None, "", [], {}) or value in usual or (number is not None and number in usual):
            continue
        raise UnknownParameter(f"{name} is not served: {instead}.", field=name)


def _sampling(said: Payload, fields: Fields) -> list[str]:
    sampler = said.get("sampler_name") or said.get("sampler_index")
    if isinstance(sampler, str) and folded(sampler) not in _AUTOMATIC:
        fields["scheduler"] = sampler
    schedule = said.get("scheduler")
    if isinstance(schedule, str) and folded(schedule) not in _AUTOMATIC:
        fields["schedule"] = schedule
    if (eta := said.get("eta")) is None:
        return []
    if isinstance(sampler, str) and folded(sampler) == "ddim":
        fields["eta"] = eta
        return []
    return [] if number_in(eta) in (0, 1) else ["eta has an effect with DDIM only."]


def _settings(settings: Payload, fields: Fields) -> list[str]:
    """Take the settings that a request can have; return a note on the others."""
    left = {name: value for name, value in settings.items() if value not in (None, "")}
    model, vae = left.pop("sd_model_checkpoint", None), left.pop("sd_vae", None)
    if model is not None:
        fields["model"] = named(model)
    if isinstance(vae, str) and folded(vae) not in _AUTOMATIC:
        fields["vae"] = vae
    layers = number_in(left.pop("CLIP_stop_at_last_layers", 1))
    if layers is not None and layers > 1:
        fields["clip_skip"] = layers - 1  # ours counts the layers that are left out
    if (format_ := left.pop("samples_format", None)) is not None:
        fields["output"] = {"format": format_}
    return [f"Ignored of override_settings: {', '.join(sorted(left)[:40])}."] if left else []


def named(title: JsonValue) -> JsonValue:
    """Return the name in a title with a hash behind it: `model.safetensors [6ce0161689]`."""
    return title.partition(" [")[0] if isinstance(title, str) else title


def _refiner(said: Payload, fields: Fields) -> None:
    model = said.get("refiner_checkpoint")
    if isinstance(model, str) and folded(model) not in _AUTOMATIC:
        fields["refiner"] = {"model": named(model), "start": said.get("refiner_switch_at", 0.8)}


def _hires(said: Payload) -> HiresFix:
    """Return the second pass. Another checkpoint or sampler of its own may be named."""
    upscaler = said.get("hr_upscaler") or "Latent"
    if not isinstance(upscaler, str):
        raise ParameterOutOfRange("hr_upscaler must be the name of an upscaler.", field="hr_upscaler")
    is_plain = upscaler.lower().startswith(_HR_UPSCALERS_WITHOUT_MODEL[:-1])
    scale = number_in(said.get("hr_scale", 2.0))
    if scale is None or not 1 <= scale <= 8:
        raise ParameterOutOfRange("hr_scale must be a number between 1 and 8.", field="hr_scale")
    width, height = (whole(said, name, 0, least=0) or None for name in ("hr_resize_x", "hr_resize_y"))
    return HiresFix(None if is_plain else upscaler, float(scale), width, height, _hires_fields(said))


def _hires_fields(said: Payload) -> Fields:
    fields: Fields = {"strength": said.get("denoising_strength", DEFAULT_STRENGTH)}
    for name, ours in {"hr_second_pass_steps": "num_inference_steps", "hr_cfg": "guidance_scale"}.items():
        if number_in(said.get(name)):
            fields[ours] = said[name]
    for name, ours in {
        "hr_prompt": "prompt",
        "hr_negative_prompt": "negative_prompt",
        "hr_sampler_name": "scheduler",
        "hr_scheduler": "schedule",
        "hr_checkpoint_name": "model",
    }.items():
        value = said.get(name)
        if isinstance(value, str) and value and not value.startswith("Use same") and folded(value) not in _AUTOMATIC:
            fields[ours] = named(value) if ours == "model" else value
    return fields

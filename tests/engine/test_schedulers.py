"""Schedulers against the installed diffusers: the table is true, every name draws, and nothing stays behind."""

import inspect
import itertools

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers

from tests.asking import perform
from tests.images import assert_differs, pixels
from worker.catalog.call import Model
from worker.catalog.interface.sampling import LISTS, choose, fit_of
from worker.catalog.samplers import SAMPLERS
from worker.catalog.schedulers import CLASSES, lists_of
from worker.core.errors import ParameterOutOfRange
from worker.core.model import Detection, Kind, ModelSource, ModelSpec, Task
from worker.engine.arguments import parameters_of
from worker.engine.schedulers import build_scheduler, seeded_steps

_ids = itertools.count()
_PIPELINES = {"sd1": "StableDiffusionPipeline", "sd3": "StableDiffusion3Pipeline", "flux": "FluxPipeline"}


async def draw(worker, **fields):
    job = {"prompt": "a red apple", "seed": 7, "width": 64, "height": 64, **fields}
    return await perform(worker, job, f"scheduled-{next(_ids)}", lambda progress: None)


def loaded(zoo, folder):
    pipe = diffusers.DiffusionPipeline.from_pretrained(zoo / "models" / folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(pipe, scheduler, **arguments):
    """What plain diffusers draws with this scheduler, its own back in place afterwards."""
    own, pipe.scheduler = pipe.scheduler, scheduler
    size = {"width": 64, "height": 64, "num_inference_steps": 4}
    generator = torch.Generator("cpu").manual_seed(7)
    try:
        image = pipe("a red apple", generator=generator, **{**size, **arguments}).images[0]
    finally:
        pipe.scheduler = own
    return np.asarray(image.convert("RGB"))


def fit_for(folder):
    spec = ModelSpec(id="tiny", source=ModelSource(scheme="hf", locator="org/tiny"))
    own = "DDIMScheduler" if folder == "sd1" else "FlowMatchEulerDiscreteScheduler"
    found = Detection(Kind.PIPELINE, "diffusers", pipeline=_PIPELINES[folder], scheduler=own)
    return fit_of(Model(spec, found).call(Task.TEXT_TO_IMAGE))


@pytest.mark.parametrize("row", CLASSES.values(), ids=lambda row: row.name)
def test_a_row_says_what_the_installed_class_takes(row):
    cls = getattr(diffusers, row.name)
    takes = inspect.signature(cls.__init__).parameters
    steps = inspect.signature(cls.set_timesteps).parameters
    for kind in row.noise:
        for options in row.schedules_of(kind).values():
            assert [name for name, value in options.items() if value is not False and name not in takes] == []
    bends = {name for name in ("karras", "exponential", "beta") if f"use_{name}_sigmas" in takes}
    known = {*row.schedules, *row.flow_schedules} & {"karras", "exponential", "beta"}
    assert known == bends or "edm" in row.noise
    assert row.lists <= steps.keys() and row.flow_lists <= steps.keys()
    assert row.zero_snr is ("rescale_betas_zero_snr" in takes)
    assert row.shifts is ("shift" in takes or "flow_shift" in takes)
    assert not row.package or row.package in {"scipy", "torchsde"}


def test_every_other_class_may_be_given_the_lists_that_it_takes():
    others = [name for name in dir(diffusers) if name.endswith("Scheduler") and name not in CLASSES]
    takes = {name: set(parameters_of(getattr(diffusers, name).set_timesteps)) & {*LISTS} for name in others}
    assert len(others) > 15
    assert {name: set(lists_of(name, None)) for name in others} == takes


def test_the_diffusion_classes_are_those_that_diffusers_calls_compatible():
    """Beside them LCM, TCD and SA-Solver, which it lists for no class, and without EDM's, which misread the config."""
    compatible = {member.name for member in KarrasDiffusionSchedulers}
    ours = {row.name for row in CLASSES.values() if "diffusion" in row.noise}
    assert compatible - ours == {"EDMEulerScheduler"}
    beside = {"LCMScheduler", "TCDScheduler", "SASolverScheduler", "DDIMParallelScheduler", "DDPMParallelScheduler"}
    assert ours - compatible == beside
    for name in ours & compatible:
        assert compatible <= {*getattr(diffusers, name)._compatibles, name}


@pytest.mark.parametrize("folder", [pytest.param("sd1", marks=pytest.mark.slow), "sd3"])
def test_every_name_on_offer_draws_an_image(zoo, folder):
    pipe, fit = loaded(zoo, folder), fit_for(folder)
    own, seen = pipe.scheduler, []
    for name in fit.names:
        choice = choose({"scheduler": name}, {}, fit, "tiny")
        if (choice.cls, choice.options) in seen:
            continue
        seen.append((choice.cls, choice.options))
        scheduler = build_scheduler(own, choice)
        assert type(scheduler).__name__ == choice.cls
        image = drawn(pipe, scheduler)
        assert image.std() > 1 and image.shape == (64, 64, 3), name


@pytest.mark.slow
@pytest.mark.parametrize("folder", _PIPELINES)
def test_every_schedule_on_offer_reaches_its_scheduler_and_makes_a_difference(zoo, folder):
    pipe, fit = loaded(zoo, folder), fit_for(folder)
    own = pipe.scheduler
    for sampler in SAMPLERS:
        for schedule in fit.schedules_of(fit.class_of(sampler)):
            choice = choose({"scheduler": sampler.name, "schedule": schedule}, {}, fit, "tiny")
            built = build_scheduler(own, choice)
            options = {name: value for name, value in choice.options.items() if value is not False}
            assert options.items() <= dict(built.config).items(), (sampler.name, schedule)
    plain = drawn(pipe, build_scheduler(own, choose({"scheduler": "euler"}, {}, fit, "tiny")))
    for curved in {"karras", "exponential", "beta"} & set(fit.schedules):
        choice = choose({"scheduler": "euler", "schedule": curved}, {}, fit, "tiny")
        image = drawn(pipe, build_scheduler(own, choice))
        assert_differs(image, plain)
        assert np.abs(image.astype(int) - plain).mean() < 64


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("folder", _PIPELINES)
def test_uni_pc_is_b1_as_uis_draw_it(zoo, folder):
    """They stop a thousandth above no noise at all, where diffusers' B1 divides by zero."""

    class Stopping(diffusers.UniPCMultistepScheduler):
        def set_timesteps(self, *args, **kwargs):
            super().set_timesteps(*args, **kwargs)
            self.sigmas[-1] = 1e-3

    pipe, fit = loaded(zoo, folder), fit_for(folder)
    own = pipe.scheduler
    first, second = [
        build_scheduler(own, choose({"scheduler": name}, {}, fit, "tiny")) for name in ("uni_pc", "uni_pc_bh2")
    ]
    image = drawn(pipe, first, num_inference_steps=6)
    assert first.config.solver_type == "bh1"
    assert np.abs(image.astype(int) - drawn(pipe, Stopping.from_config(first.config), num_inference_steps=6)).max() <= 1
    assert_differs(image, drawn(pipe, second, num_inference_steps=6))


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize(
    ("model", "folder", "said", "cls", "options"),
    [
        ("tiny", "sd1", {"scheduler": "DPM++ 2M Karras"}, "DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
        ("tiny", "sd1", {"scheduler": "K_EULER"}, "EulerDiscreteScheduler", {}),
        (
            "tiny",
            "sd1",
            {"scheduler": "euler", "schedule": "Beta"},
            "EulerDiscreteScheduler",
            {"use_beta_sigmas": True, "timestep_spacing": "linspace"},
        ),
        (
            "tiny",
            "sd1",
            {"scheduler": "dpmpp_2m_sde_heun", "schedule": "exponential"},
            "DPMSolverMultistepScheduler",
            {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun", "use_exponential_sigmas": True},
        ),
        ("tiny", "sd1", {"scheduler": "DPM++ SDE"}, "DPMSolverSDEScheduler", {"noise_sampler_seed": 7}),
        ("tiny", "sd1", {"scheduler": "uni_pc_bh2"}, "UniPCMultistepScheduler", {"solver_type": "bh2"}),
        ("tiny-sd3", "sd3", {"shift": 5}, "FlowMatchEulerDiscreteScheduler", {"shift": 5.0}),
        ("tiny-sd3", "sd3", {"schedule": "karras"}, "FlowMatchEulerDiscreteScheduler", {"use_karras_sigmas": True}),
        (
            "tiny-sd3",
            "sd3",
            {"scheduler": "dpmpp_2m", "shift": 2},
            "DPMSolverMultistepScheduler",
            {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 2.0},
        ),
        (
            "tiny-flux",
            "flux",
            {"scheduler": "euler", "shift": 1.5},
            "FlowMatchEulerDiscreteScheduler",
            {"shift": 1.5, "use_dynamic_shifting": False},
        ),
    ],
)
async def test_a_job_is_bit_equal_to_diffusers_with_that_scheduler(worker, zoo, model, folder, said, cls, options):
    answer = await draw(worker, model=model, num_inference_steps=4, **said)
    pipe = loaded(zoo, folder)
    scheduler = getattr(diffusers, cls).from_config(pipe.scheduler.config, **options)
    assert np.array_equal(pixels(answer), drawn(pipe, scheduler))
    again = await draw(worker, **answer["reproduce"]["input"])
    assert np.array_equal(pixels(again), pixels(answer))
    plain = await draw(worker, model=model, num_inference_steps=4)
    assert np.array_equal(pixels(plain), drawn(pipe, pipe.scheduler))  # and its own is back


async def test_lists_of_the_jobs_own_are_drawn_as_diffusers_draws_them(worker, zoo):
    pipe = loaded(zoo, "sd1")
    euler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    answer = await draw(worker, scheduler="euler", timesteps=[900, 500, 100])
    direct = drawn(pipe, euler, timesteps=[900, 500, 100])
    assert np.array_equal(pixels(answer), direct)


async def test_what_fits_no_part_of_the_model_is_refused_before_anything_is_loaded(worker):
    for said in ({"scheduler": "res_multistep"}, {"scheduler": "flow_heun_karras"}, {"schedule": "karras"}):
        with pytest.raises(ParameterOutOfRange):
            await draw(worker, **said)
    assert worker.engine.resident_models == []


async def test_v_prediction_and_zero_snr_of_the_models_own_config_stay(zoo):
    own = diffusers.DDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing", beta_end=0.02
    )
    spec = ModelSpec(id="tiny", source=ModelSource(scheme="hf", locator="org/tiny"))
    found = Detection(
        Kind.PIPELINE, "diffusers", pipeline=_PIPELINES["sd1"], scheduler="DDIMScheduler",
        prediction_type="v_prediction", zero_snr=True,
    )  # fmt: skip
    fit = fit_of(Model(spec, found).call(Task.TEXT_TO_IMAGE))
    assert len(fit.classes) > 5
    for name in fit.classes:
        built = build_scheduler(own, choose({"scheduler": name}, {}, fit, "tiny")).config
        assert (built.prediction_type, built.rescale_betas_zero_snr) == ("v_prediction", True), name
        assert (built.timestep_spacing, built.beta_end) == ("trailing", 0.02), name


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("name", ["DPM++ SDE", "lcm", "euler_a"])
async def test_noise_of_the_steps_is_each_images_own(worker, name):
    several = await draw(worker, scheduler=name, num_images=2)
    alone = await draw(worker, scheduler=name, seed=8)
    difference = np.abs(pixels(alone).astype(int) - pixels(several, 1))
    assert difference.max() <= 1 and (difference > 0).mean() <= 1e-3  # LCM makes more of rounding than others


async def test_noise_of_a_flows_steps_is_drawn_from_the_seed_and_is_not_that_of_its_start(worker, zoo):
    first = pixels(await draw(worker, model="tiny-sd3", scheduler="lcm"))
    assert np.array_equal(first, pixels(await draw(worker, model="tiny-sd3", scheduler="lcm")))
    assert_differs(first, pixels(await draw(worker, model="tiny-sd3", scheduler="lcm", seed=8)))
    scheduler = diffusers.FlowMatchLCMScheduler()
    holder = type("Pipe", (), {"scheduler": scheduler})()
    scheduler.set_timesteps(3)
    start = torch.randn(1, 4, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(7)
    torch.randn(1, 4, generator=generator)  # what the pipeline's start takes
    with seeded_steps(holder, [7], [generator]):
        stepped = scheduler.step(torch.zeros(1, 4), scheduler.timesteps[0], start, return_dict=False)[0]
    sigma = scheduler.sigmas[1]
    noise = (stepped - (1 - sigma) * start) / sigma
    assert not torch.allclose(noise, start)
    assert type(scheduler) is diffusers.FlowMatchLCMScheduler


@pytest.mark.parametrize("steps", [5, 10, 20, 25])
def test_schedules_are_where_the_uis_have_them(steps):
    """ComfyUI's formulas, in timesteps from 999 to 0; less than one of the thousand apart."""
    uis = {
        "normal": np.linspace(999, 0, steps),
        "simple": np.array([999 - int(index * 1000 / steps) for index in range(steps)]),
        "sgm_uniform": np.linspace(999, 0, steps + 1)[:-1],
        "ddim_uniform": np.array([*range(1, 1000, 1000 // steps)][::-1]),
    }
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    for row in CLASSES.values():
        if "diffusion" not in row.noise or row.name.startswith(("KDPM2", "DPMSolverSDE")):
            continue  # these take steps between the steps
        for name, wanted in uis.items():
            if name not in row.schedules:
                continue
            cls = getattr(diffusers, row.name)
            taken = inspect.signature(cls.__init__).parameters
            options = {key: value for key, value in row.schedules[name].items() if key in taken}
            scheduler = cls(**config, **options)
            scheduler.set_timesteps(steps)
            found = np.unique(scheduler.timesteps.numpy())[::-1]
            assert np.abs(found - wanted).max() <= 1.01, (row.name, name)


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler"])
def test_one_step_of_a_schedule_whose_end_is_stretched_is_the_whole_way(name):
    cls = getattr(diffusers, name)
    own = cls(use_dynamic_shifting=True, shift_terminal=0.1)
    for steps in (1, 4):
        sigmas = np.linspace(1, 1 / steps, steps)
        scheduler, plain = build_scheduler(own, None), cls(use_dynamic_shifting=True, shift_terminal=0.1)
        scheduler.set_timesteps(sigmas=sigmas, mu=1.0)
        assert type(scheduler).__name__ == name
        if steps == 1:
            assert scheduler.sigmas.tolist() == [1.0, 0.0]
        else:
            plain.set_timesteps(sigmas=sigmas, mu=1.0)
            assert torch.equal(scheduler.sigmas, plain.sigmas)

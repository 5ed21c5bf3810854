"""Models whose configs describe what can never be loaded: found out in a process that can be killed.

The static half, numbers that a glance at the configs refuses, is in test_f27_hostile_configs.py.
"""

import asyncio
import json
import resource
import shutil
import threading
import time
import tracemalloc

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.asking import perform
from tests.upscalers import upscaler
from worker.app import build
from worker.catalog.formats.headers import read_header
from worker.core.errors import CorruptFile, JobCancelled, LoadFailed, WorkerError
from worker.core.result import ignore_progress
from worker.core.turn import StopSignal
from worker.engine.sizes import sizes_of
from worker.engine.trial import TrialLimits, Trials

LIMITS = TrialLimits(cpu_s=4, wall_s=8, memory_mib=1_024)

# What is changed in which config of a tiny Stable Diffusion, and what becomes of it.
CONFIGS = {
    "layers": ("unet/config.json", {"layers_per_block": 1_000_000}, LoadFailed),
    "encoder layers": ("text_encoder/config.json", {"num_hidden_layers": 1_000_000}, LoadFailed),
    "widths": ("unet/config.json", {"cross_attention_dim": 10**9}, CorruptFile),
    "positions": ("text_encoder/config.json", {"max_position_embeddings": 10**9}, CorruptFile),
    "schedule": ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**9}, LoadFailed),
}


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    """Trials with a process that lives for the module: it imports the libraries once."""
    trials = Trials(tmp_path_factory.mktemp("tried"), LIMITS)
    yield trials
    trials.close()


def changed(sound, folder, config, values):
    """A copy of a model with other values in one of its configs."""
    shutil.copytree(sound, folder)
    path = folder / config
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


def slow_tokenizer(sound, folder):
    """A copy whose tokenizer has a million words that were added: each costs it more than the one before."""
    shutil.copytree(sound, folder)
    added = {f"<w{number}>": 10**5 + number for number in range(1_000_000)}
    (folder / "tokenizer/added_tokens.json").write_text(json.dumps(added))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CONFIGS, "tokenizer"])
def test_a_hostile_config_ends_with_its_process(name, zoo, tmp_path, trials, figures):
    if name == "tokenizer":
        folder, refused = slow_tokenizer(zoo / "models/sd1", tmp_path / "hostile"), LoadFailed
    else:
        config, values, refused = CONFIGS[name]
        folder = changed(zoo / "models/sd1", tmp_path / "hostile", config, values)
    trials.check(zoo / "models/sd1", None, "sd1", StopSignal(300))  # the libraries are imported
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    tracemalloc.start()
    with pytest.raises(refused) as raised:
        trials.check(folder, None, "x/hostile", StopSignal(300))
    allocated = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    figures("F27", f"allocated by the worker itself for hostile {name}", allocated, "MB", at_most=150)
    figures("F27", f"trial of hostile {name} ended", time.monotonic() - started, "s", at_most=60, momentary=True)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    figures("F27", f"worker's own memory for hostile {name}", grown, "MB", at_most=150, momentary=True)
    assert not raised.value.retryable
    assert str(tmp_path) not in raised.value.message


@pytest.mark.slow
def test_an_upscaler_of_a_million_blocks_ends_with_its_process(tmp_path, trials, figures):
    """Of 5 KB, by the name of one tensor."""
    sound = upscaler(tmp_path / "sound.safetensors", "esrgan")
    weights = load_file(sound)
    name = next(name for name in weights if ".sub.0." in name or "body.0." in name)
    weights[name.replace("sub.0.", "sub.1000000.").replace("body.0.", "body.1000000.")] = torch.zeros(1)
    save_file(weights, tmp_path / "hostile.safetensors")
    trials.check(sound, None, "sound", StopSignal(300))
    started = time.monotonic()
    with pytest.raises(LoadFailed) as raised:
        trials.check(tmp_path / "hostile.safetensors", None, "x/hostile", StopSignal(300))
    figures("F27", "trial of a hostile upscaler ended", time.monotonic() - started, "s", at_most=60, momentary=True)
    assert not raised.value.retryable


@pytest.mark.slow
def test_a_refused_model_is_not_tried_again_and_a_sound_one_only_once(zoo, tmp_path, trials, monkeypatch):
    hostile = changed(zoo / "models/sd1", tmp_path / "hostile", "unet/config.json", {"cross_attention_dim": 10**9})
    folder = tmp_path / "tried"
    first = Trials(folder, LIMITS)
    first._forks = trials._forks
    for model, refused in ((hostile, True), (zoo / "models/sd1", False)):
        try:
            first.check(model, None, "x", StopSignal(300))
        except CorruptFile:
            assert refused
    later = Trials(folder, LIMITS)  # another worker on the same volume
    for trials_of in (first, later):
        monkeypatch.setattr(trials_of, "_forks", None)  # neither may ask for a process
    with pytest.raises(CorruptFile):
        first.check(hostile, None, "x", StopSignal(300))
    first.check(zoo / "models/sd1", None, "x", StopSignal(300))
    later.check(zoo / "models/sd1", None, "x", StopSignal(300))
    moved = shutil.copytree(zoo / "models/sd1", tmp_path / "elsewhere")
    later.check(moved, None, "x", StopSignal(300))  # the volume is mounted at another place
    with pytest.raises(AttributeError):
        later.check(hostile, None, "x", StopSignal(300))


@pytest.mark.slow
def test_a_cancelled_job_does_not_wait_for_its_trial(zoo, tmp_path, trials):
    hostile = changed(zoo / "models/sd1", tmp_path / "h", "unet/config.json", {"layers_per_block": 1_000_001})
    trials.check(zoo / "models/sd1", None, "sd1", StopSignal(300))
    stop = StopSignal(300)
    threading.Timer(0.5, stop.cancel).start()
    started = time.monotonic()
    with pytest.raises(JobCancelled):
        trials.check(hostile, None, "x", stop)
    assert time.monotonic() - started < LIMITS.wall_s


@pytest.mark.slow
async def test_jobs_on_other_models_are_answered_while_a_hostile_one_is_tried(
    settings, zoo, trials, figures, monkeypatch
):
    monkeypatch.setattr(build, "Trials", lambda folder: trials)
    folder = slow_tokenizer(zoo / "models/sd1", settings.volume / "hostile")  # no number to be found by a glance
    worker = build.build_worker(settings.model_copy(update={"trial_loads": "unregistered"}))
    await perform(worker, {"prompt": "warm", "model": "tiny"})
    held = []

    async def hostile():
        with pytest.raises(WorkerError) as raised:
            await perform(worker, {"prompt": "x", "model": f"file:{folder}"}, "hostile")
        return raised.value

    attack = asyncio.create_task(hostile())
    answered = 0
    while not attack.done():
        answer = await perform(worker, {"prompt": "a red apple", "model": "tiny", "seed": 7}, f"innocent-{answered}")
        held.append(answer["timings"]["queue_s"])
        answered += 1
        await asyncio.sleep(0.05)
    assert attack.result().code == "load_failed"
    assert worker.engine.resident_models == ["tiny"]
    figures("F27", "innocent jobs answered during a hostile load", answered, "", at_least=2)
    figures("F27", "longest wait of an innocent job", max(held), "s", at_most=60, momentary=True)


@pytest.mark.parametrize(
    ("trial_loads", "tried"),
    [("unregistered", ["own", "up.safetensors"]), ("all", ["own", "up.safetensors", "sd1"]), ("off", [])],
)
async def test_what_nobody_vouches_for_is_tried(settings, zoo, trial_loads, tried, monkeypatch):
    seen = []

    class Recorded:
        def __init__(self, folder):
            assert folder.is_relative_to(settings.volume)

        def check(self, root, variant, name, stop):
            seen.append(root.name)

    monkeypatch.setattr(build, "Trials", Recorded)
    own = shutil.copytree(zoo / "models/sd1", settings.volume / "own")
    upscaling = upscaler(settings.volume / "up.safetensors", "compact")
    worker = build.build_worker(settings.model_copy(update={"trial_loads": trial_loads}))
    for name in (f"file:{own}", f"file:{upscaling}", "tiny"):
        model = await asyncio.to_thread(worker.resolver.known, worker.resolver.resolve(name))
        await asyncio.to_thread(worker.provisioner.model_files, model, ignore_progress, StopSignal(60))
    assert seen == tried


def test_a_size_that_no_byte_stands_for_is_refused(tmp_path):
    """Whoever builds a layer as wide as such a tensor says makes it real."""
    save_file({"a.weight": torch.zeros(10**9, 0)}, tmp_path / "empty.safetensors")
    with pytest.raises(CorruptFile, match="empty"):
        read_header(tmp_path / "empty.safetensors")


def test_names_of_blocks_do_not_make_blocks():
    weights = {"transformer_blocks.999999999.attn.to_q.weight": torch.zeros(1)}
    with pytest.raises(CorruptFile, match="999999999"):
        sizes_of("FluxTransformer2DModel", weights, {})

"""Caches of steps: most of a step's work is guessed from the steps before it. They change the image."""

from contextlib import ExitStack
from importlib.util import find_spec

from diffusers import TaylorSeerCacheConfig
from diffusers.models.cache_utils import CacheMixin

from worker.engine.levers.row import Ground, Undo

# Every third step is computed, after four whole ones: the schedule is the same for all images of a call.
_INTERVAL, _WHOLE_STEPS = 3, 4


def keeps_features(ground: Ground) -> bool:
    """True if diffusers has hooks for caches in every denoiser."""
    return bool(ground.denoisers) and all(isinstance(part, CacheMixin) for part in ground.denoisers)


def taylorseer(ground: Ground) -> Undo:
    """Guess the output of attention by a Taylor series between the steps of a fixed schedule."""
    parts = [part for part in ground.denoisers if isinstance(part, CacheMixin) and not part.is_cache_enabled]
    for part in parts:
        dtype = next(part.parameters()).dtype
        part.enable_cache(
            TaylorSeerCacheConfig(
                cache_interval=_INTERVAL, disable_cache_before_step=_WHOLE_STEPS, taylor_factors_dtype=dtype
            )
        )

    # Some pipelines name no context for their calls. Where one calls twice a step its image is wrong: its trial shows.
    contexts = ExitStack()
    for part in parts:
        contexts.enter_context(part.cache_context("call"))

    def off() -> None:
        contexts.close()
        for part in parts:
            part.disable_cache()

    return off


def is_for_cache_dit(ground: Ground) -> bool:
    """True for a transformer without hooks of diffusers', where the package cache-dit is installed.

    Whether it knows the class its trial shows: importing it takes seconds, which no job should wait for."""
    return hasattr(ground.pipe, "transformer") and not keeps_features(ground) and find_spec("cache_dit") is not None


def cache_dit_blocks(ground: Ground) -> Undo:
    """Skip the middle blocks of a step in which the first ones hardly changed, by the package cache-dit."""
    import cache_dit

    cache_dit.enable_cache(ground.pipe)
    return lambda: cache_dit.disable_cache(ground.pipe)

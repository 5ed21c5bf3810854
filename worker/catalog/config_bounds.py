"""Bounds on the numbers of models' configs, and what a config describes held against what its files hold.

A config is code of a kind: `layers_per_block: 1000000` makes a loader build a million layers before it misses the first
weight. What is refused here is refused by name, before anything is fetched or loaded. Bounds are a few times the
largest model that is known, and every formula counts less than there is.
"""

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from math import prod

from worker.core.errors import CorruptFile, UnsupportedModel

_FREE = re.compile(r"theta|param|bytes|total_size|max_length|seed|version|token|_ids?$|shift|pixels|date")
# A key's pattern -> the most that it may be; the first that matches counts. Numbers in lists count one by one.
_BOUNDS: tuple[tuple[re.Pattern[str], int], ...] = (
    (re.compile(r"timesteps|_steps$"), 1_000_000),
    (re.compile(r"vocab|codebook|vq_embed"), 2**25),
    (re.compile(r"position|window|context"), 2**24),
    (re.compile(r"(^|_)(num|n)_.*(layer|block|head|stage|group|level|resnet)|depths?$"), 1_024),
    (re.compile(r"(^|_)layers?$|blocks?$|(layers|resnets|blocks)_per_"), 1_024),
    (re.compile(r"channel|hidden|width|dims?$|intermediate|embed|feature|filter|^d_"), 2**18),
    (re.compile(r"size|kernel|stride|frames|rank|expert"), 2**20),
)
_MOST = 2**31
_LIST, _MODULES = 10_000, 1_024  # entries of a list; of one that says which modules are built
_BUILDS = re.compile(r"block|layer|channel|types|mult|depth")
_STACK = 8_192  # layers of all blocks together
# What a layer's count and width are called; the first that is there counts.
_LAYERS = ("num_hidden_layers", "num_layers", "n_layers", "depth")
_SINGLE = ("num_single_layers", "num_refiner_layers", "num_layers_single")
_WIDTHS = ("hidden_size", "d_model", "inner_dim", "dim")
_SMALLEST = 0.5  # bytes of a parameter in 4 bits
_SLACK = 2 * 10**9  # bytes: parts may lie elsewhere
_SPARE = 64  # layers that a config may name beyond its files: some share their weights


def check_numbers(file: str, config: Mapping[str, object]) -> None:
    """Raise UnsupportedModel, naming the key, for a number or a list in a config beyond any model's."""
    for path, key, values in _values(config):
        most, longest = _limits(key)
        if len(values) > longest:
            raise _beyond(file, path, f"has {len(values):,} entries", longest)
        extreme = max((value for value in values if type(value) is int), key=abs, default=0)
        if most is not None and abs(extreme) > most:
            shown = f"{extreme:,}" if abs(extreme) < 10**20 else "a number of more than 20 digits"
            raise _beyond(file, path, f"is {shown}", most)
    if (layers := _stacked(config)) > _STACK:
        raise _beyond(file, "layers_per_block", f"makes {layers:,} layers of all blocks", _STACK)


def check_description(configs: Mapping[str, Mapping[str, object]], weight_bytes: int | None) -> None:
    """Raise CorruptFile if the configs of a repository describe far more than all of its weights are."""
    if not weight_bytes:
        return
    for file, config in configs.items():
        count = least_parameters(config)
        if count * _SMALLEST > 8 * weight_bytes + _SLACK:
            raise CorruptFile(
                f"{file} describes {count:,} parameters at least, and all weights of the model are {weight_bytes:,} "
                "bytes: they do not belong together; name another revision or model.",
                field="model",
                retryable=False,
            )


def check_files(file: str, config: Mapping[str, object], parameters: int, names: int) -> None:
    """Raise CorruptFile if a component's config describes far more than its files hold.

    `parameters` are theirs, and `names` is the number of layers that the names of their tensors count.
    """
    if not parameters:
        return
    count, layers = least_parameters(config), _most_layers(config)
    if layers > 2 * names + _SPARE:
        fault = f"names {layers:,} layers, and its files hold {names:,}"
    elif count > 8 * parameters + 10_000_000:
        fault = f"describes {count:,} parameters at least, and its files hold {parameters:,}"
    else:
        return
    raise CorruptFile(
        f"{file} {fault}: they do not belong together; name another revision or model.", field="model", retryable=False
    )


def least_parameters(config: Mapping[str, object]) -> int:
    """Return fewer parameters than a component of this config has: one square matrix for each layer, and the words."""
    heads, size = _number(config, ("num_attention_heads",)), _number(config, ("attention_head_dim",))
    width = _number(config, _WIDTHS) or heads * size
    layers = _number(config, _LAYERS) + _number(config, _SINGLE)
    channels = [value for value in _numbers(config.get("block_out_channels")) if value > 0]
    blocks = sum(value**2 for value in channels) * max(1, min(_numbers(config.get("layers_per_block")), default=1))
    own = layers * width**2 + blocks + _number(config, ("vocab_size",)) * width
    # Models of text and images describe each in a config of its own; some repeat the one at the top.
    return max(own, sum(least_parameters(part) for part in config.values() if isinstance(part, Mapping)))


@lru_cache(maxsize=1_024)
def _limits(key: str) -> tuple[int | None, int]:
    """Return the most that a number of this key may be, None for no bound, and the most entries of a list."""
    most = None if _FREE.search(key) else next((most for pattern, most in _BOUNDS if pattern.search(key)), _MOST)
    return most, _MODULES if _BUILDS.search(key) else _LIST


def _values(config: Mapping[str, object]) -> Iterator[tuple[str, str, list[object]]]:
    """Yield every list of a config, and every other value as a list of it, with its path and its key in lower case."""
    todo: list[tuple[str, str, object]] = [(name, name, value) for name, value in config.items()]
    while todo:
        path, key, value = todo.pop()
        if isinstance(value, Mapping):
            todo += [(f"{path}.{name}", str(name), item) for name, item in value.items()]
            continue
        values = value if isinstance(value, list) else [value]
        yield path, key[:120].lower(), values
        todo += [(path, key, item) for item in values if isinstance(item, list | Mapping)]


def _stacked(config: Mapping[str, object]) -> int:
    blocks = max(len(_list(config.get("block_out_channels"))), len(_list(config.get("down_block_types"))))
    per_block = [_most(config.get(name)) for name in ("layers_per_block", "transformer_layers_per_block")]
    return blocks * prod(max(1, count) for count in per_block)


def _most_layers(config: Mapping[str, object]) -> int:
    own = [_most(config.get(name)) for name in (*_LAYERS, *_SINGLE, "layers_per_block")]
    return max(own + [_most_layers(part) for part in config.values() if isinstance(part, Mapping)])


def _most(value: object) -> int:
    return max(_numbers(value), default=0)


def _numbers(value: object) -> list[int]:
    """Return the whole numbers in a value, a list or lists in a list."""
    if isinstance(value, list):
        return [number for item in value for number in _numbers(item)]
    return [value] if type(value) is int else []


def _number(config: Mapping[str, object], names: tuple[str, ...]) -> int:
    """Return the first of these that is a count above 0; 0 without one."""
    values = (config.get(name) for name in names)
    return next((value for value in values if type(value) is int and value > 0), 0)


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _beyond(file: str, path: str, fact: str, limit: int) -> UnsupportedModel:
    return UnsupportedModel(
        f"{file[:80]}: {path[:120]} {fact}; at most {limit:,} are taken, more than any model has; name another model.",
        field="model",
    )

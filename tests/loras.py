"""LoRA files of every dialect and algorithm, with the ΔW that each stands for, computed here by hand in float64.

Nothing of the worker is used: a name or a formula that is wrong there cannot be right here by the same mistake.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.single_files import ldm_unet_name

RANK, ALPHA = 4, 2.5
Names = Callable[[str, str], str]  # component and diffusers path -> the file's name of the module
Numbers = dict[tuple[str, str], tuple[Tensor, Tensor, float]]  # component and path -> down, up, alpha


@dataclass
class Lora:
    """A file's tensors and metadata, and what they add: (component, path) -> (ΔW, Δb)."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    config: dict[str, object] | None = None
    deltas: dict[tuple[str, str], tuple[Tensor | None, Tensor | None]] = field(default_factory=dict)

    def save(self, path: Path) -> Path:
        """Write the file, and peft's config beside it where there is one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: tensor.clone().contiguous() for name, tensor in self.tensors.items()}, path, self.metadata or None
        )
        if self.config is not None:
            path.with_name("adapter_config.json").write_text(json.dumps(self.config))
        return path


@contextmanager
def merged(pipe: Any, loras: Iterable[tuple[Lora, float]]):
    """The reference: `pipe` with W + Σ weight · ΔW in its weights, put back afterwards."""
    before: dict[nn.Parameter, Tensor] = {}
    total: dict[nn.Parameter, Tensor] = {}
    for lora, weight in loras:
        for (component, path), (delta_w, delta_b) in lora.deltas.items():
            for leaf, delta in (("weight", delta_w), ("bias", delta_b)):
                if delta is None:
                    continue
                owner = getattr(pipe, component)
                try:
                    parameter = owner.get_parameter(f"{path}.{leaf}")
                except AttributeError:
                    parameter = owner.get_parameter(path)
                before.setdefault(parameter, parameter.data)
                sum_ = total.get(parameter, parameter.data.double())
                total[parameter] = sum_ + weight * delta.reshape(parameter.shape)
    for parameter, value in total.items():
        parameter.data = value.to(before[parameter].dtype)
    try:
        yield pipe
    finally:
        for parameter, value in before.items():
            parameter.data = value


# --- the numbers -----------------------------------------------------------------------------------------------------


def normal(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    """Random numbers that depend on the seed alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def weight_of(pipe: Any, component: str, path: str) -> Tensor:
    """A module's own weight, in float64."""
    return getattr(pipe, component).get_parameter(f"{path}.weight").detach().double()


def groups_of(paths: Mapping[str, Iterable[str]]) -> dict[str, list[list[str]]]:
    """Modules that the original model fuses, by component: they share one `down` in every dialect of a test."""
    found: dict[str, dict[str, list[str]]] = {component: {} for component in paths}
    for component, names in paths.items():
        for path in names:
            name = native_flux(path)[0] if component == "transformer" else path
            found[component].setdefault(name, []).append(path)
    return {component: list(by_name.values()) for component, by_name in found.items()}


def low_rank(pipe: Any, paths: Mapping[str, Iterable[str]], seed: int, *, mixed: bool = False) -> Numbers:
    """`down`, `up` and alpha for each module; with `mixed`, rank and alpha differ from module to module."""
    numbers: Numbers = {}
    for component, groups in groups_of(paths).items():
        for index, group in enumerate(groups):
            rank = RANK + (index % 3 if mixed else 0)
            alpha = ALPHA + (0.5 * (index % 4) if mixed else 0)
            for place, path in enumerate(group):
                shape = weight_of(pipe, component, path).shape
                fan = shape[1:].numel()
                down = normal(rank, *shape[1:], seed=seed + 97 * index, scale=fan**-0.5)
                up = normal(shape[0], rank, *(1 for _ in shape[2:]), seed=seed + 97 * index + place + 1, scale=0.5)
                numbers[component, path] = (down, up, alpha)
    return numbers


def deltas_of(numbers: Numbers) -> dict[tuple[str, str], tuple[Tensor, None]]:
    """alpha / rank · up · down."""
    return {
        place: ((up.double().flatten(1) @ down.double().flatten(1)) * (alpha / down.shape[0]), None)
        for place, (down, up, alpha) in numbers.items()
    }


# --- spelling --------------------------------------------------------------------------------------------------------

_TE = {"text_encoder": "1", "text_encoder_2": "2", "text_encoder_3": "3"}


def with_text_model(component: str, path: str) -> str:
    """CLIP's modules as files call them, whatever this version of transformers does."""
    return (
        f"text_model.{path.removeprefix('text_model.')}" if path.startswith(("text_model.", "encoder.layers")) else path
    )


def dotted(prefix: str) -> Names:
    """`prefix.` before the denoiser's modules, the component's name before an encoder's."""

    def name(component: str, path: str) -> str:
        if component.startswith("text_encoder"):
            return f"{component}.{with_text_model(component, path)}"
        return f"{prefix}{path}"

    return name


def kohya(component: str, path: str) -> str:
    """lora_unet_ and lora_te1_, dots as underscores."""
    start = f"lora_te{_TE[component]}_" if component in _TE else "lora_unet_"
    return start + with_text_model(component, path).replace(".", "_")


def kohya_ldm(component: str, path: str) -> str:
    """kohya with the block names of the original UNet, as its SDXL files have them."""
    return kohya(component, ldm(path) if component == "unet" else path)


def ldm(path: str) -> str:
    """The original UNet's name of a module."""
    return ldm_unet_name(f"{path}.weight", 1, ()).removesuffix(".weight")


_FLUX_PARTS = {
    "attn.to_q": ("img_attn.qkv", 0), "attn.to_k": ("img_attn.qkv", 1), "attn.to_v": ("img_attn.qkv", 2),
    "attn.add_q_proj": ("txt_attn.qkv", 0), "attn.add_k_proj": ("txt_attn.qkv", 1),
    "attn.add_v_proj": ("txt_attn.qkv", 2), "attn.to_out.0": ("img_attn.proj", 0),
    "attn.to_add_out": ("txt_attn.proj", 0), "ff.net.0.proj": ("img_mlp.0", 0), "ff.net.2": ("img_mlp.2", 0),
    "ff_context.net.0.proj": ("txt_mlp.0", 0), "ff_context.net.2": ("txt_mlp.2", 0), "norm1.linear": ("img_mod.lin", 0),
    "norm1_context.linear": ("txt_mod.lin", 0),
}  # fmt: skip
_FLUX_SINGLE = {
    "attn.to_q": ("linear1", 0), "attn.to_k": ("linear1", 1), "attn.to_v": ("linear1", 2), "proj_mlp": ("linear1", 3),
    "proj_out": ("linear2", 0), "norm.linear": ("modulation.lin", 0),
}  # fmt: skip
_FLUX_TOP = {"x_embedder": "img_in", "context_embedder": "txt_in", "proj_out": "final_layer.linear",
             "norm_out.linear": "final_layer.adaLN_modulation.1"}  # fmt: skip


def native_flux(path: str) -> tuple[str, int]:
    """FLUX.1's own name of a module, and which part of it the module is."""
    words = path.split(".", 2)
    if words[0] == "transformer_blocks":
        name, part = _FLUX_PARTS[words[2]]
        return f"double_blocks.{words[1]}.{name}", part
    if words[0] == "single_transformer_blocks":
        name, part = _FLUX_SINGLE[words[2]]
        return f"single_blocks.{words[1]}.{name}", part
    return _FLUX_TOP.get(path, path), 0


def fused(numbers: Numbers) -> Numbers:
    """A FLUX.1 LoRA's numbers by native name, the parts of a fused layer below one another."""
    found: dict[tuple[str, str], list[tuple[int, Tensor, Tensor, float]]] = {}
    for (component, path), (down, up, alpha) in numbers.items():
        name, part = native_flux(path) if component == "transformer" else (path, 0)
        if path == "norm_out.linear":  # the original has shift before scale
            up = torch.cat(up.chunk(2)[::-1])
        found.setdefault((component, name), []).append((part, down, up, alpha))
    result = {}
    for place, parts in found.items():
        parts.sort(key=lambda item: item[0])
        result[place] = (parts[0][1], torch.cat([up for _, _, up, _ in parts]), parts[0][3])
    return result


def spelled(
    numbers: Numbers,
    name: Names,
    *,
    ends: tuple[str, str] = (".lora_down.weight", ".lora_up.weight"),
    alphas: bool = True,
) -> dict[str, Tensor]:
    """The tensors of a plain LoRA in one dialect."""
    tensors = {}
    for (component, path), (down, up, alpha) in numbers.items():
        stem = name(component, path)
        tensors |= {f"{stem}{ends[0]}": down, f"{stem}{ends[1]}": up}
        if alphas:
            tensors[f"{stem}.alpha"] = torch.tensor(alpha)
    return tensors


AB = (".lora_A.weight", ".lora_B.weight")


def adapter_metadata(numbers: Numbers) -> dict[str, str]:
    """What diffusers writes beside tensors without alphas: one alpha, and patterns for those that differ."""
    found: dict[str, object] = {}
    for (component, path), (down, _, alpha) in numbers.items():
        found[f"{component}.r"], found[f"{component}.lora_alpha"] = RANK, ALPHA
        alphas, ranks = (found.setdefault(f"{component}.{name}_pattern", {}) for name in ("alpha", "rank"))
        targets = found.setdefault(f"{component}.target_modules", [])
        assert isinstance(alphas, dict) and isinstance(ranks, dict) and isinstance(targets, list)
        targets.append(path)
        if alpha != ALPHA:
            alphas[path] = alpha
        if down.shape[0] != RANK:
            ranks[path] = down.shape[0]
    return {"lora_adapter_metadata": json.dumps(found)}


# --- algorithms: tensors of one module by role, ΔW and Δb -------------------------------------------------------------

Made = tuple[dict[str, Tensor], Tensor | None, Tensor | None]


def _pair(shape: torch.Size, seed: int) -> tuple[Tensor, Tensor]:
    return (
        normal(shape[0], RANK, seed=seed, scale=0.7),
        normal(RANK, shape[1:].numel(), seed=seed + 1, scale=shape[1:].numel() ** -0.5),
    )


def lora(weight: Tensor, seed: int) -> Made:
    """Plain, with a scale of its own."""
    up, down = _pair(weight.shape, seed)
    roles = {"lora_up.weight": up.reshape(*up.shape, *(1 for _ in weight.shape[2:])), "alpha": torch.tensor(ALPHA)}
    roles["lora_down.weight"] = down.reshape(RANK, *weight.shape[1:])
    return roles, ALPHA / RANK * up.double() @ down.double(), None


def locon_tucker(weight: Tensor, seed: int) -> Made:
    """A convolution's LoRA with a core."""
    kernel = weight.shape[2:]
    up, down = normal(weight.shape[0], RANK, seed=seed), normal(RANK, weight.shape[1], seed=seed + 1, scale=0.3)
    mid = normal(RANK, RANK, *kernel, seed=seed + 2, scale=0.3)
    delta = torch.einsum("or,rsxy,si->oixy", up.double(), mid.double(), down.double()) * ALPHA / RANK
    roles = {"lora_up.weight": up[:, :, None, None], "lora_down.weight": down[:, :, None, None], "lora_mid.weight": mid}
    return roles | {"alpha": torch.tensor(ALPHA)}, delta, None


def loha(weight: Tensor, seed: int) -> Made:
    """(w1_a · w1_b) ∘ (w2_a · w2_b), scaled by alpha / rank."""
    (a1, b1), (a2, b2) = _pair(weight.shape, seed), _pair(weight.shape, seed + 5)
    a2 = a2 * weight[0].numel() ** 0.5
    delta = (a1.double() @ b1.double()) * (a2.double() @ b2.double()) * ALPHA / RANK
    roles = {"hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2, "alpha": torch.tensor(ALPHA)}
    return roles, delta, None


def loha_tucker(weight: Tensor, seed: int) -> Made:
    """LoHa of a convolution, with a core in each half."""
    roles: dict[str, Tensor] = {"alpha": torch.tensor(ALPHA)}
    halves = []
    for half in ("1", "2"):
        core = normal(RANK, RANK, *weight.shape[2:], seed=seed + int(half), scale=0.4)
        a = normal(RANK, weight.shape[0], seed=seed + 3 * int(half), scale=0.7)
        b = normal(RANK, weight.shape[1], seed=seed + 7 * int(half), scale=0.5)
        roles |= {f"hada_t{half}": core, f"hada_w{half}_a": a, f"hada_w{half}_b": b}
        halves.append(torch.einsum("ijxy,jr,ip->prxy", core.double(), b.double(), a.double()))
    return roles, halves[0] * halves[1] * ALPHA / RANK, None


def lokr(
    weight: Tensor, seed: int, *, whole: bool = False, both: bool = False, tucker: bool = False, factor: int = 4
) -> Made:
    """w1 ⊗ w2: w2 whole or in halves, w1 whole or (`both`) in halves; whole factors have no scale."""
    rows, columns, kernel = weight.shape[0], weight.shape[1], weight.shape[2:]
    b, d = rows // factor, columns // factor
    roles: dict[str, Tensor] = {"alpha": torch.tensor(ALPHA)}
    if both:
        a1, b1 = normal(factor, RANK, seed=seed), normal(RANK, factor, seed=seed + 1, scale=0.5)
        roles |= {"lokr_w1_a": a1, "lokr_w1_b": b1}
        w1 = a1.double() @ b1.double()
    else:
        roles["lokr_w1"] = normal(factor, factor, seed=seed)
        w1 = roles["lokr_w1"].double()
    if whole:
        roles["lokr_w2"] = normal(b, d, *kernel, seed=seed + 2, scale=(columns * kernel.numel()) ** -0.5)
        w2 = roles["lokr_w2"].double()
    elif tucker:
        core = normal(RANK, RANK, *kernel, seed=seed + 3, scale=0.2)
        left, right = normal(RANK, b, seed=seed + 4, scale=0.5), normal(RANK, d, seed=seed + 5, scale=0.5)
        roles |= {"lokr_t2": core, "lokr_w2_a": left, "lokr_w2_b": right}
        w2 = torch.einsum("ijxy,jr,ip->prxy", core.double(), right.double(), left.double())
    else:
        left = normal(b, RANK, seed=seed + 4, scale=0.5)
        right = normal(RANK, d * kernel.numel(), seed=seed + 5, scale=(columns * kernel.numel()) ** -0.5)
        roles |= {"lokr_w2_a": left, "lokr_w2_b": right}
        w2 = (left.double() @ right.double()).reshape(b, d, *kernel)
    # kron by its definition, entry by entry
    delta = torch.einsum("ac,bd...->abcd...", w1, w2).reshape(weight.shape)
    return roles, delta * (1.0 if whole and not both else ALPHA / RANK), None


def decomposed(made: Made, weight: Tensor, seed: int, *, by_rows: bool = True) -> Made:
    """DoRA around another change: m · (W + ΔW) / ‖W + ΔW‖."""
    roles, delta, _ = made
    assert delta is not None
    whole = weight + delta.reshape(weight.shape)
    dims = tuple(i for i in range(weight.ndim) if i != (0 if by_rows else 1))
    norm = (whole**2).sum(dim=dims, keepdim=True).sqrt()
    magnitude = (norm * (1 + 0.3 * normal(norm.numel(), seed=seed).reshape(norm.shape))).float()
    return roles | {"dora_scale": magnitude}, whole * magnitude.double() / norm - weight, None


def full(weight: Tensor, seed: int, *, with_bias: bool = False) -> Made:
    """Whole differences of the weight, and of the bias."""
    diff = normal(*weight.shape, seed=seed, scale=0.5 * weight[0].numel() ** -0.5)
    if not with_bias:
        return {"diff": diff}, diff.double(), None
    bias = normal(weight.shape[0], seed=seed + 1, scale=0.1)
    return {"diff": diff, "diff_b": bias}, diff.double(), bias.double()


def ia3(weight: Tensor, seed: int, *, on_input: bool = False) -> Made:
    """W times a vector, along its columns or its rows."""
    size = weight.shape[1] if on_input else weight.shape[0]
    vector = normal(size, seed=seed, scale=0.4)
    ones = (1,) * (weight.ndim - 2)
    shaped = vector.double().reshape(*((1, size) if on_input else (size, 1)), *ones)
    stored = vector.reshape(1, size, *ones) if ones else vector
    return {"weight": stored, "on_input": torch.tensor(int(on_input))}, weight * shaped, None


def norm(weight: Tensor, seed: int) -> Made:
    """A norm's weight and bias."""
    w, b = normal(*weight.shape, seed=seed, scale=0.3), normal(*weight.shape, seed=seed + 1, scale=0.3)
    return {"w_norm": w, "b_norm": b}, w.double(), b.double()


def glora(weight: Tensor, seed: int, *, first_layout: bool = False) -> Made:
    """W · a1 · a2 + b1 · b2; in the first layout the halves have each other's names."""
    columns = weight.shape[1]
    a1, a2 = normal(columns, RANK, seed=seed, scale=0.3), normal(RANK, columns, seed=seed + 1, scale=0.3)
    b1, b2 = normal(weight.shape[0], RANK, seed=seed + 2, scale=0.5), normal(RANK, columns, seed=seed + 3, scale=0.2)
    delta = (weight.flatten(1) @ a1.double() @ a2.double() + b1.double() @ b2.double()) * ALPHA / RANK
    ones = (1,) * (weight.ndim - 2)
    if first_layout:
        a1, a2, b1, b2 = a2, a1, b2, b1
    roles = {
        f"{name}.weight": t.reshape(*t.shape, *ones)
        for name, t in zip(("a1", "a2", "b1", "b2"), (a1, a2, b1, b2), strict=True)
    }
    return roles | {"alpha": torch.tensor(ALPHA)}, delta, None


def oft(weight: Tensor, seed: int, *, constraint: float = 0.0, rescaled: bool = False) -> Made:
    """Blocks of rows, each turned by (I + Q)(I - Q)⁻¹; Q is skew, and no longer than the constraint allows."""
    rows, size = weight.shape[0], 8
    blocks = normal(rows // size, size, size, seed=seed, scale=0.2)
    q = blocks.double() - blocks.double().transpose(1, 2)
    limit = constraint * rows
    if 0 < limit < q.norm():
        q = q * limit / q.norm()
    eye = torch.eye(size, dtype=torch.float64)
    turn = (eye + q) @ torch.linalg.inv(eye - q)
    turned = torch.cat([turn[k].T @ part for k, part in enumerate(weight.flatten(1).split(size))])
    roles = {"oft_blocks": blocks, "alpha": torch.tensor(constraint)}
    if rescaled:
        roles["rescale"] = 1 + normal(rows, *(1 for _ in weight.shape[1:]), seed=seed + 1, scale=0.2)
        turned = turned * roles["rescale"].double().reshape(-1, 1)
    return roles, turned.reshape(weight.shape) - weight, None


def build(
    pipe: Any, component: str, paths: Iterable[str], make: Callable[..., Made], name: Names = kohya, seed: int = 0
) -> Lora:
    """A file with the same algorithm on each of `paths`."""
    result = Lora()
    for index, path in enumerate(paths):
        parameter = getattr(pipe, component).get_parameter(f"{path}.weight").detach().double()
        roles, delta_w, delta_b = make(parameter, seed + 31 * index)
        result.tensors |= {f"{name(component, path)}.{role}": tensor for role, tensor in roles.items()}
        result.deltas[component, path] = (delta_w, delta_b)
    return result

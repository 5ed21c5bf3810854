"""Training of the small companions: a grey style LoRA, a token, an edge ControlNet.

Each learns on top of the finished, frozen pipeline folder, in minutes on one CPU core.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import ControlNetModel, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from tools.demo_model.control_lora import save_control_lora
from tools.demo_model.denoiser import new_scheduler
from tools.demo_model.evaluation import load_pipeline
from tools.demo_model.latents import encoded
from tools.demo_model.muon import MuonAdam
from tools.demo_model.scenes import Gallery, Scene, caption, random_placement, random_scene
from tools.demo_model.schedule import Clock
from tools.demo_model.things import THINGS

TOKEN = "<mascot>"
TOKEN_THING, TOKEN_COLOUR = "robot", "purple"
TOKEN_FILE = "mascot-token.safetensors"
LORA_FILE = "grey-style-lora.safetensors"
KOHYA_FILE = "grey-style-lora-kohya.safetensors"
CONTROL_FILE = "edge-control-lora.safetensors"
_LORA_RANK = 8
_LORA_TARGETS = r"(up_blocks\..*\.conv[12]|mid_block\..*\.conv[12]|conv_out)"
_CONTROL_RANK = 8
_CONTROL_TARGETS = r"down_blocks\..*\.(conv|conv1|conv2|conv_shortcut)"
_HINT_WIDTHS = (16, 32, 64)
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def grey(image: np.ndarray) -> np.ndarray:
    """Take the colour out of a uint8 image (height, width, 3)."""
    return np.repeat((image @ _LUMA)[..., None], 3, -1).round().astype(np.uint8)


def edges(image: np.ndarray, threshold: float = 60) -> np.ndarray:
    """Draw the edges of a uint8 image (height, width, 3) in white on black: uint8, the same shape."""
    padded = np.pad(image.astype(np.float32), ((1, 1), (1, 1), (0, 0)), mode="edge")
    across = padded[1:-1, 2:] - padded[1:-1, :-2]
    down = padded[2:, 1:-1] - padded[:-2, 1:-1]
    strength = np.sqrt(across**2 + down**2).max(-1, keepdims=True)
    return np.repeat(np.where(strength > threshold, 255, 0).astype(np.uint8), 3, -1)


class _Lessons:
    """Batches of scenes for the companions, encoded by the finished pipeline."""

    def __init__(self, pipeline: StableDiffusionPipeline, seed: int) -> None:
        self.pipeline = pipeline
        self.scheduler = new_scheduler()
        self.rng = np.random.default_rng(seed)
        torch.manual_seed(seed)
        for part in (pipeline.unet, pipeline.text_encoder, pipeline.vae):
            part.requires_grad_(False)

    def words(self, captions: Sequence[str]) -> Tensor:
        tokens = self.pipeline.tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt")
        return self.pipeline.text_encoder(tokens.input_ids).last_hidden_state

    def latents(self, images: np.ndarray) -> Tensor:
        return encoded(self.pipeline.vae, images) * self.pipeline.vae.config.scaling_factor

    def noisy(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return times, noisy latents and the velocity to predict."""
        spread = (torch.rand(1) + torch.arange(len(latents)) / len(latents)) % 1
        times, noise = (spread * 1000).long(), torch.randn_like(latents)
        noisy = self.scheduler.add_noise(latents, noise, times)
        return times, noisy, self.scheduler.get_velocity(latents, noise, times)


def _practise(
    name: str, parameters: list[tuple[str, nn.Parameter]], minutes: float, rate: float, loss: Callable[[], Tensor]
) -> float:
    """Minimise ``loss`` for ``minutes``; returns the mean of the last losses."""
    torch.set_num_threads(1)
    optimizer, clock, recent = MuonAdam(parameters, weight_decay=0), Clock(minutes), []
    with tqdm(total=100, desc=name, unit="%", mininterval=5) as progress:
        while clock.fraction() < 1:
            with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
                value = loss()
            optimizer.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_([p for _, p in parameters], 1.0)
            optimizer.step(rate * clock.rate(len(recent), rise=20))
            recent.append(value.item())
            progress.update(min(100, int(100 * clock.fraction())) - progress.n)
            progress.set_postfix(refresh=False, steps=len(recent), loss=round(float(np.mean(recent[-50:])), 4))
    return float(np.mean(recent[-50:]))


def train_style_lora(folder: Path, renders: Path, minutes: float, rate: float = 2e-3) -> None:
    """Learn to draw everything in greys; write the LoRA in diffusers' and in kohya's layout."""
    gallery, lessons = Gallery(renders), _Lessons(load_pipeline(folder), seed=21)
    unet = lessons.pipeline.unet
    unet.add_adapter(LoraConfig(r=_LORA_RANK, lora_alpha=_LORA_RANK, target_modules=_LORA_TARGETS))

    def loss() -> Tensor:
        scenes = [random_scene(int(k), lessons.rng) for k in lessons.rng.integers(len(THINGS), size=24)]
        latents = lessons.latents(np.stack([grey(gallery.image(scene)) for scene in scenes]))
        captions = ["" if lessons.rng.random() < 0.15 else caption(scene, lessons.rng) for scene in scenes]
        times, noisy, velocity = lessons.noisy(latents)
        return (unet(noisy, times, lessons.words(captions)).sample.float() - velocity).square().mean()

    _practise("style LoRA", [(n, p) for n, p in unet.named_parameters() if p.requires_grad], minutes, rate, loss)
    layers = {key: value.half() for key, value in get_peft_model_state_dict(unet).items()}
    target = folder / "companions"
    target.mkdir(exist_ok=True)
    StableDiffusionPipeline.save_lora_weights(
        target, unet_lora_layers=convert_state_dict_to_diffusers(layers), weight_name=LORA_FILE
    )
    save_file(kohya_layout(load_file(target / LORA_FILE)), target / KOHYA_FILE)


def kohya_layout(layers: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a diffusers UNet LoRA to kohya's layout and add each layer's alpha (= its rank, so the scale is one)."""
    renamed: dict[str, Tensor] = {}
    for key, value in layers.items():
        module, half = key.removeprefix("unet.").removesuffix(".weight").rsplit(".", 1)
        name = "lora_unet_" + module.removesuffix(".lora").replace(".", "_")
        down = half in ("lora_A", "down")
        renamed[f"{name}.lora_{'down' if down else 'up'}.weight"] = value.contiguous()
        if down:
            renamed[f"{name}.alpha"] = torch.tensor(float(value.shape[0]), dtype=value.dtype)
    return renamed


def train_token(folder: Path, renders: Path, minutes: float, rate: float = 1e-2) -> None:
    """Learn one word vector that stands for the mascot: one known thing in one colour."""
    gallery, lessons = Gallery(renders), _Lessons(load_pipeline(folder), seed=22)
    tokenizer, encoder = lessons.pipeline.tokenizer, lessons.pipeline.text_encoder
    tokenizer.add_tokens(TOKEN)
    encoder.resize_token_embeddings(len(tokenizer))
    place = tokenizer.convert_tokens_to_ids(TOKEN)
    table = encoder.get_input_embeddings()
    start = tokenizer([TOKEN_THING]).input_ids[0][1]
    vector = nn.Parameter(table.weight[start].detach().clone())
    thing = next(k for k, item in enumerate(THINGS) if item.name == TOKEN_THING)

    def put_in(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return torch.where((inputs[0] == place)[..., None], vector.to(output.dtype), output)

    hook = table.register_forward_hook(put_in)

    def loss() -> Tensor:
        scenes = []
        for _ in range(16):
            ground = random_scene(thing, lessons.rng).background
            scenes.append(
                Scene(
                    thing, TOKEN_COLOUR, ground if ground != TOKEN_COLOUR else "white", *random_placement(lessons.rng)
                )
            )
        captions = [caption(Scene(scene.thing, "", scene.background)).replace(TOKEN_THING, TOKEN) for scene in scenes]
        times, noisy, velocity = lessons.noisy(lessons.latents(np.stack([gallery.image(scene) for scene in scenes])))
        return (lessons.pipeline.unet(noisy, times, lessons.words(captions)).sample.float() - velocity).square().mean()

    _practise("token", [("embedding", vector)], minutes, rate, loss)
    hook.remove()
    (folder / "companions").mkdir(exist_ok=True)
    save_file({TOKEN: vector.detach().half()}, folder / "companions" / TOKEN_FILE)


def new_controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """Build a ControlNet that is the UNet's way down, all of it frozen but factors of low rank beside its convolutions.

    What the UNet lacks, the way in for the image and the ways out, is learnt whole.
    """
    control = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=_HINT_WIDTHS).requires_grad_(False)
    control.add_adapter(LoraConfig(r=_CONTROL_RANK, lora_alpha=_CONTROL_RANK, target_modules=_CONTROL_TARGETS))
    for name, parameter in control.named_parameters():
        if name.startswith("controlnet_"):
            parameter.requires_grad_(True)
    # diffusers starts it at zero like the ways out, and one zero behind another is slow to learn.
    control.controlnet_cond_embedding.conv_out.reset_parameters()
    return control


def train_controlnet(folder: Path, renders: Path, minutes: float, rate: float = 2e-3) -> None:
    """Learn to put things where the edges of an image are; write what was learnt as a control LoRA."""
    gallery, lessons = Gallery(renders), _Lessons(load_pipeline(folder), seed=23)
    unet = lessons.pipeline.unet
    control = new_controlnet(unet).train()

    def loss() -> Tensor:
        scenes = [random_scene(int(k), lessons.rng) for k in lessons.rng.integers(len(THINGS), size=16)]
        images = np.stack([gallery.image(scene) for scene in scenes])
        lines = np.stack([edges(image) for image in images]).transpose(0, 3, 1, 2)
        captions = ["" if lessons.rng.random() < 0.15 else caption(scene, lessons.rng) for scene in scenes]
        times, noisy, velocity = lessons.noisy(lessons.latents(images))
        words = lessons.words(captions)
        down, middle = control(noisy, times, words, torch.from_numpy(lines).float() / 255, return_dict=False)
        drawn = unet(
            noisy, times, words, down_block_additional_residuals=down, mid_block_additional_residual=middle
        ).sample
        return (drawn.float() - velocity).square().mean()

    learnt = [(name, parameter) for name, parameter in control.named_parameters() if parameter.requires_grad]
    _practise("ControlNet", learnt, minutes, rate, loss)
    save_control_lora(control, folder / "companions" / CONTROL_FILE)

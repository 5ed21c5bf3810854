"""Training of the UNet together with its text encoder, on latents of scenes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tools.demo_model.crew import Crew
from tools.demo_model.latents import LatentPool, encoded, latent_scale
from tools.demo_model.muon import MuonAdam
from tools.demo_model.scenes import BACKGROUND_NAMES, Gallery, Scene, caption, held_out, random_placement, random_scene
from tools.demo_model.schedule import Clock, ExponentialAverage
from tools.demo_model.things import THINGS
from tools.demo_model.vocabulary import LENGTH, load_tokenizer
from tools.demo_model.word_codes import image_codes, word_codes

BATCH = 64
_POOL = 4096
_RENEWED = 4  # pool entries replaced a step
_LATENESS = 0.3
_UNNAMED = 0.1  # share of empty captions, for guidance
_TEST_TIMES = (50, 250, 500, 750, 900, 990)


def new_scheduler() -> DDIMScheduler:
    """Build the scheduler; next to nothing of the image is left at the last step, so backgrounds can be plain."""
    return DDIMScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.02, beta_schedule="scaled_linear",
        prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True,
        steps_offset=0,
    )  # fmt: skip


class Denoiser(nn.Module):
    """The UNet and the text encoder that are trained as one."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.unet = UNet2DConditionModel(
            sample_size=16, in_channels=4, out_channels=4,
            down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            block_out_channels=(48, 80, 128), layers_per_block=1, cross_attention_dim=128,
            attention_head_dim=[1, 2, 4], norm_num_groups=8,
        )  # fmt: skip
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer), hidden_size=128, intermediate_size=384, projection_dim=128,
                num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=LENGTH,
                bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )  # fmt: skip
        nn.init.normal_(self.text_encoder.get_input_embeddings().weight, std=0.05)
        self.scheduler = new_scheduler()
        self._tokenizer = tokenizer

    def forward(self, captions: list[str], latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Return the squared error of the predicted velocity: (count,).

        ``latents`` and ``noise`` are (count, 4, 16, 16).
        """
        tokens = self._tokenizer(
            captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
        ).input_ids.to(latents.device)
        noisy = self.scheduler.add_noise(latents, noise, times).contiguous(memory_format=torch.channels_last)
        velocity = self.scheduler.get_velocity(latents, noise, times)
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernel's backward is ten times slower for so few tokens on a CPU
            words = self.text_encoder(tokens).last_hidden_state
            predicted = self.unet(noisy, times, words).sample.float()
        return (predicted - velocity).square().mean((1, 2, 3))


def _stratified_times(count: int, device: str, lateness: float) -> Tensor:
    """Draw timesteps 0..999, stratified and shuffled; the more ``lateness`` (0 = even), the more late ones."""
    spread = (torch.rand(1) + torch.arange(count) / count) % 1
    return (spread ** (1 - lateness) * 1000).long().clamp(max=999)[torch.randperm(count)].to(device)


def _test_set(gallery: Gallery, unseen: bool, count: int = 48) -> list[Scene]:
    rng = np.random.default_rng(7 + unseen)
    scenes: list[Scene] = []
    while len(scenes) < count:
        thing = int(rng.integers(len(THINGS)))
        scene = random_scene(thing, rng)
        if unseen:
            scene = Scene(thing, "", str(rng.choice(BACKGROUND_NAMES)), *random_placement(rng))
        if held_out(scene) == unseen:
            scenes.append(scene)
    return scenes


class _Examination:
    """Fixed scenes, noise and times, so that one loss can be compared with the next."""

    def __init__(self, vae: AutoencoderKL, scale: float, gallery: Gallery, device: str) -> None:
        self._sets = []
        for unseen in (False, True):
            scenes = _test_set(gallery, unseen)
            images = np.stack([gallery.image(scene) for scene in scenes])
            self._sets.append(([caption(scene) for scene in scenes], encoded(vae, images, device) * scale))
        self._noise = torch.randn(48, 4, 16, 16, generator=torch.Generator().manual_seed(5)).to(device)
        self._times = torch.tensor(_TEST_TIMES * 8, device=device)

    @torch.no_grad()
    def losses(self, model: Denoiser, device: str) -> tuple[float, float]:
        """Return the loss on scenes like those trained on, and on held-out combinations."""
        with torch.autocast(device, torch.bfloat16):
            seen, unseen = (model(captions, z, self._noise, self._times).mean() for captions, z in self._sets)
        return float(seen), float(unseen)


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write ``state`` so that a crash leaves the old checkpoint whole."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "state.part")
    (folder / "state.part").replace(folder / "state.pt")
    (folder / "log.json").write_text(json.dumps(state["log"]))


def averaged_denoiser(work: Path) -> tuple[Denoiser, float]:
    """Load the averaged weights of the newest checkpoint and the latent scale."""
    model = Denoiser(load_tokenizer(work / "tokenizer"))
    state = torch.load(work / "unet" / "state.pt", map_location="cpu")
    with torch.no_grad():
        for parameter, average in zip(model.parameters(), state["average"], strict=True):
            parameter.copy_(average)
    return model.eval(), state["scale"]


def train(rank: int, size: int, work: Path, minutes: float, rate: float, device: str = "cpu") -> None:
    """Train until ``minutes`` in all are spent; continue from ``work/unet/state.pt`` if it is there."""
    folder = work / "unet"
    gallery = Gallery(work / "render")
    vae = AutoencoderKL.from_pretrained(work / "vae").to(device).eval().requires_grad_(False)
    model = Denoiser(load_tokenizer(work / "tokenizer")).to(device, memory_format=torch.channels_last).train()
    named = list(model.named_parameters())
    optimizer = MuonAdam(named)
    parameters = [parameter for _, parameter in named]
    log: list[dict[str, float]] = []
    samples, spent, scale = 0, 0.0, latent_scale(vae, gallery)
    state = torch.load(folder / "state.pt", map_location=device) if (folder / "state.pt").exists() else None
    if state:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        log, samples, spent, scale = state["log"], state["samples"], state["minutes"], state["scale"]
    else:
        codes = word_codes(image_codes(vae, gallery), load_tokenizer(work / "tokenizer"), 128)
        vectors = model.text_encoder.get_input_embeddings().weight.data
        for token, code in codes.items():
            vectors[token] += code.to(device)
    average = ExponentialAverage(parameters, horizon=24)
    if state:
        average.shadow, average.updates = state["average"], state["updates"]
    seed = [len(log), rank]
    rng = np.random.default_rng(seed)
    torch.manual_seed(len(log) * 100 + rank)
    pool = LatentPool(vae, scale, gallery, rng, _POOL, device)
    examination = _Examination(vae, scale, gallery, device)
    crew = Crew(rank, size, parameters, seconds=5)
    clock = Clock(minutes, spent, report_seconds=60)
    progress = tqdm(total=100, desc="unet", unit="%", disable=rank > 0)
    recent: list[float] = []
    step = 0
    while True:
        pool.renew(_RENEWED)
        scenes, latents = pool.draw(BATCH)
        captions = ["" if rng.random() < _UNNAMED else caption(scene, rng) for scene in scenes]
        lateness = (
            _LATENESS if clock.fraction() < 0.7 else 0.0
        )  # first what the words mean, then how it looks in detail
        with torch.autocast(device, torch.bfloat16):
            loss = model(
                captions, latents, torch.randn_like(latents), _stratified_times(len(latents), device, lateness)
            ).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step(rate * clock.rate(step))
        step += 1
        samples += len(latents) * size
        recent.append(loss.item())
        if not crew.stepped():
            continue
        average.update()
        fraction = crew.agreed(clock.fraction())
        if rank == 0 and (clock.due() or fraction >= 1):
            with average.swapped_in():
                seen, unseen = examination.losses(model, device)
            log.append(
                {"minutes": clock.minutes(), "samples": samples, "loss": float(np.mean(recent)), "seen": seen,
                 "unseen": unseen}
            )  # fmt: skip
            recent = []
            save_checkpoint(folder, {
                "model": model.state_dict(), "average": average.shadow, "updates": average.updates,
                "optimizer": optimizer.state_dict(), "log": log, "samples": samples, "minutes": clock.minutes(),
                "scale": scale,
            })  # fmt: skip
            progress.update(min(100, int(100 * fraction)) - progress.n)
            progress.set_postfix(
                samples=samples, loss=round(log[-1]["loss"], 4), seen=round(seen, 4), unseen=round(unseen, 4)
            )
        if fraction >= 1:
            break

"""Both sites with something of every kind on them: what runs, and what is listed and cannot be had."""

import json
from pathlib import Path

from tests.catalog.corpus import header_of, index, stored
from tests.fakes.civitai import FakeCivitai, Hollow
from tests.fakes.hub import FakeHub

EARLY = {"error": "Early Access", "message": "This asset is in Early Access", "deadline": "2027-01-31T00:00:00Z"}


def hollow(name: str) -> Hollow:
    """A file with one of the stored headers, of its real size."""
    return Hollow(*header_of(stored(name)))


def fill_civitai(site: FakeCivitai) -> None:
    """Publish models, LoRAs and an embedding; a deleted, an early-access, a hosted and a dangerous one among them."""
    terms = {"allowCommercialUse": ["Image", "Rent"], "allowNoCredit": False, "allowDerivatives": True}
    site.add_model(
        10, "Anime Dream", "Checkpoint", tags=["anime", "base model"], downloads=90_000, likes=8_000, **terms
    )
    site.add_version(10, 100, name="v3", trainedWords=["dreamy"])
    site.add_file(100, 1000, hollow("sdxl"), "animeDream_v3.safetensors")
    site.add_version(10, 101, name="v4", availability="EarlyAccess", earlyAccessEndsAt=EARLY["deadline"])
    site.add_file(101, 1001, hollow("sdxl"), "animeDream_v4.safetensors")
    site.refusals[101] = (403, EARLY, {})
    site.add_model(11, "Anime Gone", "Checkpoint", tags=["anime"], downloads=70_000)
    site.add_version(11, 110)
    site.deleted.add(11)
    site.add_model(12, "Anime Cloud", "Checkpoint", tags=["anime"], downloads=60_000)
    site.add_version(12, 120, usageControl="Generation")
    site.add_model(13, "Anime Pickle", "Checkpoint", tags=["anime"], downloads=50_000)
    site.add_version(13, 130)
    site.add_file(130, 1300, b"PK", "anime.ckpt", format="PickleTensor")
    site.add_model(14, "Anime Large", "Checkpoint", tags=["anime"], downloads=40_000)
    site.add_version(14, 140, base="Flux.1 D")
    site.add_file(140, 1400, hollow("flux1"), "animeLarge.safetensors")
    site.add_model(20, "Anime Lines", "LORA", tags=["anime", "style"], downloads=30_000, **terms)
    site.add_version(20, 200, trainedWords=["lines style"])
    site.add_file(200, 2000, hollow("lora-sdxl-kohya"), "lines.safetensors")
    site.add_model(21, "Anime Lines 1.5", "LORA", tags=["anime"], downloads=20_000)
    site.add_version(21, 210, base="SD 1.5", trainedWords=["lines15"])
    site.add_file(210, 2100, hollow("lora-sd1-kohya"), "lines15.safetensors")
    site.add_model(22, "Anime Hands", "TextualInversion", tags=["anime", "negative"], downloads=10_000)
    site.add_version(22, 220)
    site.add_file(220, 2200, hollow("embedding-sdxl"), "hands.safetensors")
    site.add_model(30, "Plain Colours", "VAE")
    site.add_version(30, 300, trainedWords=["plain"])
    site.add_file(300, 3000, hollow("vae-4"), "plain.safetensors")


def fill_hub(hub: FakeHub, root: Path) -> None:
    """Publish an SDXL repository, the same one gated, and one of a class that nothing here can run."""
    sdxl = repository(root / "sdxl", "StableDiffusionXLPipeline")
    tags = ["diffusers", "license:openrail++", "anime"]
    hub.add_repo("org/anime-xl", sdxl, tags=tags, downloads=5_000, likes=40)
    hub.add_repo("org/anime-gated", sdxl, tags=tags, gated=True, downloads=4_000)
    hub.add_repo("org/closed", sdxl, tags=tags, gated=True)
    odd = repository(root / "odd", "MyOwnPipeline")
    hub.add_repo("org/anime-odd", odd, tags=["diffusers"], downloads=3_000)


def repository(folder: Path, pipeline: str) -> Path:
    parts = {
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    }
    for name, content in {
        "model_index.json": {"_class_name": pipeline, **parts},
        "unet/config.json": {"_class_name": "UNet2DConditionModel", "sample_size": 128, "cross_attention_dim": 2048},
        "vae/config.json": {"_class_name": "AutoencoderKL", "block_out_channels": [8, 8, 8, 8]},
        "scheduler/scheduler_config.json": {"_class_name": "EulerDiscreteScheduler"},
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    head, size = header_of(index({"conv_in.weight": (500, 200)}))
    for part in ("unet", "vae"):
        (folder / part / "diffusion_pytorch_model.safetensors").write_bytes(head + bytes(size - len(head)))
    return folder

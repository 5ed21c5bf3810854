"""Train, assemble and measure the embedded demo model.

In order: fetch, render, tokenizer, vae, unet, assemble, companions, vectors, upscaler, eval, sheet. Every step reads
what the one before left in the work folder; vae and unet go on from their last checkpoint if they are started again.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: two processes of one thread beat one of two


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.demo_model", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("build/demo_model"), help="folder for everything on the way")
    parser.add_argument("--folder", type=Path, default=Path("models/demo"), help="the finished pipeline folder")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder for the contact sheet and the plot")
    parser.add_argument("--pid-file", type=Path, help="append the ids of the training processes to this file")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("fetch", help="download the font and the list of names")
    commands.add_parser("render", help="render the artwork")
    commands.add_parser("tokenizer", help="learn the caption vocabulary")
    vae = commands.add_parser("vae", help="train the autoencoder")
    vae.add_argument("--decoder-only", action="store_true", help="leave the encoder, and so all latents, as they are")
    unet = commands.add_parser("unet", help="train the UNet and the text encoder")
    for command, minutes, rate in ((vae, 9.0, 2e-3), (unet, 84.0, 3e-3)):
        command.add_argument("--minutes", type=float, default=minutes, help="wall clock to spend in all")
        command.add_argument("--rate", type=float, default=rate, help="highest learning rate")
        command.add_argument("--device", default="cpu", help="cpu, or cuda with --processes 1")
        command.add_argument("--processes", type=int, default=2, help="training processes, one thread each")
        command.add_argument("--port", type=int, default=29641, help="port on which they meet")
    commands.add_parser("assemble", help="write the pipeline folder from the newest checkpoints")
    companions = commands.add_parser("companions", help="train the LoRA, the token and the ControlNet")
    companions.add_argument("--only", choices=("lora", "token", "controlnet"))
    companions.add_argument("--minutes", type=float, help="wall clock for each (default 3, 2 and 8)")
    commands.add_parser("vectors", help="fetch the artwork's vectors and render them four times as large")
    upscaler = commands.add_parser("upscaler", help="train the upscaler")
    upscaler.add_argument("--minutes", type=float, default=9.0, help="processor time to spend, on one thread")
    single = commands.add_parser("single-file", help="write the whole pipeline as one checkpoint")
    single.add_argument("--out", type=Path, required=True)
    measure = commands.add_parser("eval", help="measure the folder against the true renders")
    measure.add_argument("--quick", action="store_true", help="only the plain names")
    measure.add_argument("--steps", type=int, default=16)
    measure.add_argument("--guidance", type=float, default=2.5)
    commands.add_parser("sheet", help="draw the contact sheet and plot the losses")
    return parser


def _train(options: argparse.Namespace) -> None:
    from tools.demo_model import autoencoder, denoiser
    from tools.demo_model.crew import muster

    arguments = [options.work, options.minutes, options.rate, options.device]
    task: Callable[..., None] = denoiser.train
    if options.command == "vae":
        task = autoencoder.train
        arguments.append(options.decoder_only)
    muster(options.processes, task, *arguments, port=options.port, pid_file=options.pid_file)


def _companions(options: argparse.Namespace) -> None:
    from tools.demo_model import companions

    if options.pid_file:
        with options.pid_file.open("a") as lines:
            lines.write(f"{os.getpid()}\n")
    lessons = {
        "lora": (companions.train_style_lora, 3.0),
        "token": (companions.train_token, 2.0),
        "controlnet": (companions.train_controlnet, 8.0),
    }
    for name, (train, minutes) in lessons.items():
        if options.only in (None, name):
            train(options.folder, options.work / "render", options.minutes or minutes)


def _upscaler(options: argparse.Namespace) -> None:
    renders = options.work / "render"
    if options.command == "vectors":
        from tools.demo_model import vectors

        vectors.fetch_vectors(options.work / "fetch")
        print(vectors.render_vectors(options.work / "fetch", renders), "emoji")
        return
    from tools.demo_model.enlarging import train_upscaler

    train_upscaler(options.folder, renders, options.minutes)


def _evaluate(options: argparse.Namespace) -> None:
    from tools.demo_model.report import print_report

    print_report(options.folder, options.work / "render", options.steps, options.guidance, options.quick)


def _sheet(options: argparse.Namespace) -> None:
    from tools.demo_model import sheets
    from tools.demo_model.enlarging import enlarged
    from tools.demo_model.evaluation import draw, load_pipeline

    images = enlarged(options.folder, draw(load_pipeline(options.folder), sheets.PROMPTS))
    sheets.contact_sheet(images, sheets.PROMPTS, options.docs / "demo.png")
    sheets.loss_plot(options.work, options.docs / "demo-training.png")


def _prepare(options: argparse.Namespace) -> None:
    from tools.demo_model import artwork
    from tools.demo_model.scenes import Gallery

    work = options.work
    if options.command == "fetch":
        artwork.fetch(work / "fetch")
    elif options.command == "render":
        artwork.render(work / "fetch", work / "render")
    else:
        from tools.demo_model.vocabulary import write_vocabulary

        print(write_vocabulary(Gallery(work / "render"), work / "tokenizer"), "tokens")


def _assemble(options: argparse.Namespace) -> None:
    from tools.demo_model.assembly import assemble, write_single_file

    if options.command == "assemble":
        print(f"{assemble(options.work, options.folder):,} bytes in {options.folder}")
    else:
        write_single_file(options.folder, options.out)


def main() -> None:
    """Run one step."""
    options = _parser().parse_args()
    steps: dict[str, Callable[[argparse.Namespace], None]] = {
        "fetch": _prepare, "render": _prepare, "tokenizer": _prepare, "vae": _train, "unet": _train,
        "assemble": _assemble, "single-file": _assemble, "companions": _companions, "vectors": _upscaler,
        "upscaler": _upscaler, "eval": _evaluate, "sheet": _sheet,
    }  # fmt: skip
    steps[options.command](options)


if __name__ == "__main__":
    main()

"""All commands, as one program: what can be typed, and which function answers it."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from worker import __version__
from worker.app.cli.file_commands import add_files
from worker.app.cli.parsers import ENTRY as _ENTRY
from worker.app.cli.parsers import MODEL as _MODEL
from worker.app.cli.parsers import Help, Parser
from worker.app.cli.parsers import add_command as _add
from worker.app.cli.parsers import add_group as _add_group
from worker.app.cli.parsers import add_json as _add_json
from worker.app.cli.terminal import Failure, Terminal
from worker.app.cli.train_options import add_train
from worker.core.unsearched import unsearched


def main(argv: Sequence[str], prog: str = "python -m worker") -> int:
    """Run one command, and return the status to exit with: 0, or 1 where it failed. A line that is none ends with 2."""
    parser = parser_of(prog)
    arguments = parser.parse_args(argv)
    if "function" not in arguments:
        arguments.parser.print_help()
        return 2
    terminal = Terminal(prog, quiet=getattr(arguments, "quiet", False))
    try:
        with terminal:
            module, _, name = arguments.function.partition(":")
            with unsearched():
                function = getattr(importlib.import_module(f"worker.app.cli.{module}"), name)
            status = function(arguments, terminal)
        sys.stdout.flush()
        return status or 0
    except Failure as failure:
        terminal.fail(failure.message)
        if getattr(arguments, "json", False):
            terminal.json(failure.body)
        return 1
    except BrokenPipeError:  # whoever reads the output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered has a place to go
        return 1


def parser_of(prog: str) -> argparse.ArgumentParser:
    """Return the parser of all command lines."""
    parser = Parser(prog, description="Universal Image Model Worker", allow_abbrev=False, formatter_class=Help)
    parser.add_argument("--version", action="version", version=f"imgworker {__version__}")
    parser.set_defaults(parser=parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_run(commands)
    add_train(commands)
    _add_quantize(commands)
    _add_questions(commands)
    _add_server(commands)
    _add_cache(commands)
    add_files(commands)
    _add_recipe(commands)
    _add_share(commands)
    _add_versions(commands)
    _add_deploy(commands)
    return parser


def _add_run(commands: Any) -> None:
    parser = _add(commands, "run", "run:run", "generate images or videos and save them")
    add = parser.add_argument
    add("prompt", metavar="PROMPT", nargs="?", help="what to draw; behind `--` if it begins with a dash")
    add("-m", "--model", help=f"{_MODEL}; else the default model")
    add("-o", "--output", metavar="PATH", help="the file to write, as apple.png, or a folder for files with new names")
    wanted = parser.add_argument_group("what to draw")
    wanted.add_argument("--negative", metavar="TEXT", help="what to keep out")
    wanted.add_argument("--size", metavar="WxH", help="in pixels, as 1024x768; one number is a square")
    wanted.add_argument("-n", "--num-images", metavar="N", help="how many")
    wanted.add_argument("--seed", metavar="N", help="same seed, same image; image i has seed + i")
    wanted.add_argument("--steps", metavar="N", help="denoising steps")
    wanted.add_argument("--guidance", metavar="X", help="how closely the prompt is followed")
    wanted.add_argument("--scheduler", metavar="NAME", help="the sampler; `schedulers` lists them")
    wanted.add_argument("--format", metavar="NAME", help="png, jpeg, webp, gif or mp4; else as --output ends")
    wanted.add_argument(
        "-p",
        "--param",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="any other field of docs/api.md, as JSON",
    )
    media = parser.add_argument_group("images and videos to start from: files, or https URLs")
    media.add_argument("--image", metavar="FILE", action="append", help="an image to change or edit; may be repeated")
    media.add_argument("--strength", metavar="X", help="how much of the image is drawn anew, 0 to 1")
    media.add_argument("--mask", metavar="FILE", help="white where the image is redrawn")
    media.add_argument("--video", metavar="FILE", help="a video to start from")
    media.add_argument("--control", metavar="FILE", help="an image to follow, such as edges or a pose")
    adapters = parser.add_argument_group("adapters: files of this machine, or references")
    adapters.add_argument(
        "--lora",
        metavar="LORA[:WEIGHT]",
        action="append",
        help="a LoRA, and its weight, as style.safetensors:0.8; may be repeated",
    )
    adapters.add_argument("--controlnet", metavar="MODEL", help="the ControlNet that follows --control")
    adapters.add_argument("--ip-adapter", metavar="MODEL", help="the IP-Adapter that draws after --ip-image")
    adapters.add_argument("--ip-image", metavar="FILE", action="append", help="an image to draw after; may be repeated")
    output = parser.add_argument_group("output")
    output.add_argument("--open", action="store_true", help="show what was saved")
    output.add_argument("--profile", metavar="FILE", help="where a trace of the job goes, for Perfetto or Chrome; gzip")
    _add_json(output)


def _add_quantize(commands: Any) -> None:
    text = "make a model's weights smaller once, keep them on the volume, and say what that costs"
    parser = _add(commands, "quantize", "quantize:quantize", text)
    parser.add_argument("model", metavar="MODEL", help=_MODEL)
    parser.add_argument("--to", choices=("fp8", "int8", "8bit", "4bit"), required=True, help="the precision")
    _add_json(parser)


def _add_questions(commands: Any) -> None:
    for name, text in (
        ("inspect", "say what a model is and how that is known, from headers and JSON only"),
        ("plan", "say what running a model here would take"),
        ("schema", "print the JSON Schema of a request for a model"),
        ("schedulers", "list the schedulers that a model can be sampled with"),
    ):
        parser = _add(commands, name, f"questions:{name}", text)
        parser.add_argument("model", metavar="MODEL", nargs="?", help=_MODEL)
        _add_json(parser)
    _add_json(_add(commands, "models", "questions:models", "list the models of models.yaml"))
    _add_discover(commands)
    parser = _add(
        commands, "timeline", "timeline:timeline", "start a worker, generate once, and say what took how long"
    )
    parser.add_argument("model", metavar="MODEL", nargs="?", help=_MODEL)
    parser.add_argument("--prompt", default="a red apple", help="what to draw")
    _add_json(parser)
    parser = _add(commands, "doctor", "doctor:doctor", "say whether this machine can do the work, and what to mend")
    parser.add_argument("--network", action="store_true", help="ask the sources of models, too, whether they answer")
    _add_json(parser)


def _add_discover(commands: Any) -> None:
    parser = _add(commands, "discover", "discover:discover", "find models of others that this worker can run")
    add = parser.add_argument
    add("text", metavar="TEXT", nargs="*", help="what to look for, as `anime sdxl lora`; or one reference")
    add("--kind", help="model, lora, embedding, vae, controlnet, ip-adapter, hypernetwork or upscaler")
    add("--base", metavar="FAMILY", help="the family, as sdxl or `Flux.1 D`")
    add("--for", dest="goes_with", metavar="MODEL", help="what the finds are to go with: a model of models.yaml")
    add("--prompt", metavar="TEXT", help="order what is listed by this prompt, which is sent nowhere")
    add("--image", metavar="FILE", help="find what an image was made with, by the digests in it, and what is like it")
    add("--limit", metavar="N", default="8", help="how many at most, 1 to 20; else 8")
    add(
        "--add",
        metavar="NAME",
        help="write the first one into models.yaml, or MODELS_REVIEW, under this name",
    )
    add("--pick", metavar="N", type=int, default=1, help="with --add: the one of this number")
    add("--accept", metavar="NAME", help="move an entry that was reviewed from MODELS_REVIEW into models.yaml")
    _add_json(parser)
    parser = _add(commands, "updates", "updates:updates", "list newer versions of the models of models.yaml")
    parser.add_argument("model", metavar="MODEL", nargs="?", help="one of models.yaml; else all")
    parser.add_argument("--apply", action="store_true", help="make what runs here the candidate of its model")
    parser.add_argument("--golden", metavar="FOLDER", help="generate its golden prompts by both, and write the images")
    parser.add_argument("--version", metavar="VERSION", help="with --golden: v2 or candidate, instead of the newest")
    _add_json(parser)


def _add_server(commands: Any) -> None:
    _add(commands, "serve", "server:serve", "answer over HTTP until stopped; API_HOST and API_PORT say where")
    parser = _add(commands, "gateway", "server:gateway", "answer over HTTP for other workers, without a device")
    parser.add_argument("--fleet", metavar="FILE", help="the fleet.yaml that names them; else FLEET_FILE")
    parser = _add(commands, "usage", "server:usage", "add up the usage log; every worker of the volume counts")
    parser.add_argument("--by", choices=("day", "model", "caller"), default="day", help="what each line is of")
    parser.add_argument("--days", type=int, default=30, help="how many days back, today included")
    parser.add_argument("--plot", metavar="FILE", help="a PNG to draw GPU seconds into")
    _add_json(parser)
    ray = _add_group(commands, "ray", "the same on Ray Serve: a gateway, and workers that start with their first job")
    parser = _add(ray, "up", "cluster:up", "serve on this machine, or on a Ray cluster, until stopped")
    parser.add_argument("--address", metavar="HOST:PORT", help="the cluster, or auto; else one of this machine alone")
    keys = _add_group(commands, "keys", "API keys of the HTTP server")
    parser = _add(keys, "new", "server:new_keys", "make an API key: for its owner the key, for API_KEYS its line")
    parser.add_argument("name", metavar="NAME", help="whose it is; shown nowhere but in the operator's files")


def _add_cache(commands: Any) -> None:
    parser = _add(commands, "lock", "cache:lock", "pin every model of models.yaml to revision and digests")
    parser.add_argument("--output", metavar="FILE", help="the lockfile; models.lock beside models.yaml by default")
    cache = _add_group(commands, "cache", "models on the volume")
    _add_json(_add(cache, "ls", "cache:list_entries", "list what is on the volume, and in other programs' caches"))
    parser = _add(cache, "pull", "cache:pull", "download a model, so that the first job finds it")
    parser.add_argument("model", metavar="MODEL", help="a model id of models.yaml, or a reference")
    parser.add_argument("--revision", help="a commit, branch or tag")
    for name, function, text in (
        ("rm", "remove", "remove a model from the volume, whether it is in use or not"),
        ("pin", "pin", "never evict a model to make room"),
        ("unpin", "unpin", "let a model be evicted again"),
    ):
        _add(cache, name, f"cache:{function}", text).add_argument("model", metavar="MODEL", help=_ENTRY)
    parser = _add(cache, "verify", "cache:verify", "hash every file again, and name the damaged ones")
    parser.add_argument("model", metavar="MODEL", nargs="?", help=f"{_ENTRY}; else all")
    parser.add_argument("--remove", action="store_true", help="remove them: the next job fetches them again")
    parser = _add(cache, "prune", "cache:prune", "remove leftovers of broken downloads, and files of no model")
    parser.add_argument(
        "--older-than-hours", type=float, metavar="H", help="how long nobody may have touched it; downloads are younger"
    )


def _add_recipe(commands: Any) -> None:
    recipe = _add_group(commands, "recipe", "recipes: images made in several steps, each a file")
    parser = _add(recipe, "check", "recipe:check", "ask its models whether they take what its steps ask of them")
    parser.add_argument("file", metavar="FILE", help="a recipe, or a folder of recipes")
    parser = _add(recipe, "show", "recipe:show", "say what a recipe takes, and what its steps do")
    parser.add_argument("file", metavar="FILE", help="a recipe")
    _add_json(parser)
    parser = _add(recipe, "run", "recipe:run", "make a recipe's images and save them")
    parser.add_argument("file", metavar="FILE", help="a recipe")
    text = "an input, as prompt='a red apple'; a file for an image; or seed=7"
    parser.add_argument("values", metavar="NAME=VALUE", nargs="*", help=text)
    parser.add_argument(
        "-o", "--output", metavar="PATH", help="the file to write, or a folder for files with new names"
    )
    parser.add_argument("--open", action="store_true", help="show what was saved")
    _add_json(parser)


def _add_share(commands: Any) -> None:
    share = _add_group(commands, "share", "hand a recipe on, or take one: one file, with its models pinned, no weights")
    parser = _add(share, "export", "share:export", "write a recipe with the revisions and digests of its models")
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe")
    parser.add_argument("file", metavar="FILE", help="the file to write")
    parser = _add(
        share, "publish", "publish:publish", "put a recipe into a repository on the Hub, with a card; no weights"
    )
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe")
    parser.add_argument("repository", metavar="REPO", help="org/name, which is made if it is not there")
    parser.add_argument("--private", action="store_true", help="a repository that only its owner sees")
    parser = _add(share, "import", "share:take", "verify a shared recipe, and put it where recipes are served from")
    parser.add_argument("file", metavar="FILE", help="what `share export` wrote")
    parser.add_argument("--add", action="store_true", help="write models that models.yaml lacks into it, too")


def _add_versions(commands: Any) -> None:
    versions = _add_group(commands, "versions", "versions of models: which one is served, and since when")

    def add(name: str, text: str, *, changes: bool = False) -> Parser:
        parser = _add(versions, name, "versions:list_versions" if name == "list" else f"versions:{name}", text)
        needs_model = changes or name == "report"
        parser.add_argument("model", metavar="MODEL", nargs=None if needs_model else "?", help="a model of models.yaml")
        if changes:
            parser.add_argument("--why", metavar="TEXT", default="", help="for those who read the history")
        _add_json(parser)
        return parser

    add("list", "list the versions of a model, and what names each")
    history = add("history", "say who changed what is served, when and why")
    history.add_argument("--at", metavar="TIME", help="what was served then: 14:03, or 2026-11-30T14:03")
    history.add_argument("--limit", metavar="N", type=int, default=20, help="how many changes; 20 if not said")
    report = add("report", "compare versions by their jobs: time, errors and cost")
    report.add_argument("--days", metavar="N", type=int, default=7, help="how many days back, today included")
    promote = add("promote", "have @stable, or --as, name another version", changes=True)
    promote.add_argument("version", metavar="VERSION", help="v2, candidate, or entry: what models.yaml has now")
    promote.add_argument("--as", dest="alias", choices=("stable", "candidate"), default="stable", help="else stable")
    rollback = add("rollback", "have @stable name the version that it named before", changes=True)
    rollback.add_argument("--to", dest="version", metavar="VERSION", help="another earlier one")
    split = add("split", "share a model's requests out between versions; without --arm no more", changes=True)
    split.add_argument("--arm", metavar="NAME=SHARE", action="append", default=[], help="as stable=90, candidate=10")
    split.add_argument(
        "--paired", metavar="N", default=0, help="percent of the requests that another arm generates too"
    )
    split.add_argument(
        "--halt-errors", metavar="X", help="the share of failed jobs beyond the other's; 0.2 if not said"
    )
    split.add_argument("--halt-slower", metavar="X", help="how many times the other's seconds; 2, or off for any")
    split.add_argument("--halt-jobs", metavar="N", help="jobs before it is judged; 5 if not said")


def _add_deploy(commands: Any) -> None:
    deploy = _add_group(commands, "deploy", "workers on a platform, from the tiers of models.yaml")
    parser = _add(deploy, "runpod", "deploy:runpod", "create or update RunPod's template, endpoints and volumes")
    add = parser.add_argument
    add("--image", metavar="IMAGE", required=True, help="the worker's image with its version, as registry/name:0.1.0")
    add("--dry-run", action="store_true", help="say what would be done, and change nothing")
    add("--name", metavar="NAME", default="image-worker", help="what every name begins with; image-worker by default")
    add("--tier", metavar="TIER", action="append", help="a tier of models.yaml; else all that its models use")
    add("--data-center", metavar="ID", action="append", help="as EU-RO-1; each gets endpoints of its own")
    add("--volume-gb", metavar="GB", type=int, help="a network volume of this size in each data center")
    add("--env", metavar="NAME[=VALUE]", action="append", help="a variable of the workers; without a value, this one's")
    add(
        "--min-workers", metavar="N", type=int, default=0, help="workers of each endpoint that never stop; 0 by default"
    )
    add("--fleet", metavar="FILE", help="a new file to write the endpoints into, as a gateway's fleet.yaml")
    add("--load-balancing", action="store_true", help="endpoints that pass HTTP on, instead of queues")
    _add_json(parser)

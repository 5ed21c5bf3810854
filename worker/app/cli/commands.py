"""All commands, as one program: what can be typed, and which function answers it."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from worker import __version__
from worker.app.cli.terminal import Failure, Terminal
from worker.app.unsearched import unsearched

_MODEL = "a model id or alias of models.yaml, a reference, or a file or folder of this machine"
_ENTRY = "a name that `cache ls` shows, or org/repo"


class _Parser(argparse.ArgumentParser):
    """Refuses a line in one sentence."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message.removeprefix('argument ')}; see `{self.prog} --help`.\n")


class _Help(argparse.HelpFormatter):
    """Names a value once, behind the last spelling of its option."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"


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
    parser = _Parser(prog, description="Universal Image Model Worker", allow_abbrev=False, formatter_class=_Help)
    parser.add_argument("--version", action="version", version=f"imgworker {__version__}")
    parser.set_defaults(parser=parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_run(commands)
    _add_train(commands)
    _add_questions(commands)
    _add_server(commands)
    _add_cache(commands)
    _add_deploy(commands)
    return parser


def _add(commands: Any, name: str, function: str, text: str) -> _Parser:
    """Add a command. Its function is imported when it is run: `--help` waits for nothing."""
    parser: _Parser = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False, formatter_class=_Help
    )
    parser.set_defaults(function=function)
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress and no warnings")
    return parser


def _add_group(commands: Any, name: str, text: str) -> Any:
    parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False, formatter_class=_Help)
    parser.set_defaults(parser=parser)
    return parser.add_subparsers(title="commands", metavar="COMMAND")


def _add_json(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON, for programs; a failure too")


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
    _add_json(output)


def _add_train(commands: Any) -> None:
    parser = _add(commands, "train", "train:train", "teach a model a style or a thing: images in, a LoRA out")
    add = parser.add_argument
    add("data", metavar="DATA", help="a folder or a ZIP file of images, with captions in .txt files or metadata.jsonl")
    add("-m", "--model", help=f"{_MODEL}; else the default model")
    add(
        "-o",
        "--output",
        metavar="FOLDER",
        help="where to keep it, or what to go on with; else trained/DATA",
    )
    add(
        "--check",
        action="store_true",
        help="only say what is wrong with the data",
    )
    how = parser.add_argument_group("how to learn")
    for option, metavar, text in (
        ("--steps", "N", "how many steps; 1000 if not said"),
        ("--batch-size", "N", "images a step"),
        ("--learning-rate", "X", "0.0001 if not said"),
        ("--method", "NAME", "lora, dora, loha or lokr"),
        ("--rank", "N", "the size of the adapter"),
        ("--targets", "NAME", "the layers that learn: attention, linear or all"),
        ("--resolution", "N", "side of a square of as many pixels as an image is learnt with"),
        ("--trigger", "WORD", "a word that every caption begins with"),
        ("--caption", "TEXT", "the caption of images that have none"),
        ("--caption-dropout", "X", "share of the captions that is left out"),
        ("--min-snr", "X", "gamma of min-SNR weights, such as 5"),
        ("--held-out", "X", "share of the images that is kept to measure with"),
        ("--save-every", "N", "steps between checkpoints"),
        ("--seed", "N", "same seed, same adapter"),
        ("--minutes", "X", "stop with a checkpoint after so long"),
    ):
        how.add_argument(option, metavar=metavar, help=text)
    how.add_argument("--flip", action="store_true", help="learn every image mirrored, too")
    how.add_argument(
        "--sample",
        metavar="PROMPT",
        action="append",
        default=[],
        help="drawn at every checkpoint with that checkpoint's file; may be repeated",
    )
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
    parser = _add(
        commands, "timeline", "timeline:timeline", "start a worker, generate once, and say what took how long"
    )
    parser.add_argument("model", metavar="MODEL", nargs="?", help=_MODEL)
    parser.add_argument("--prompt", default="a red apple", help="what to draw")
    _add_json(parser)
    parser = _add(commands, "doctor", "doctor:doctor", "say whether this machine can do the work, and what to mend")
    parser.add_argument("--network", action="store_true", help="ask the sources of models, too, whether they answer")
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

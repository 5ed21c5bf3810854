"""The commands that write files: what can be typed."""

from typing import Any

from worker.app.cli.parsers import MODEL, add_command, add_group, add_json

_DTYPES = ("fp32", "fp16", "bf16", "fp8", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
_SPELLINGS = ("kohya", "comfy", "omi", "diffusers", "peft")


def add_files(commands: Any) -> None:
    """Add the commands that write models, LoRAs and backups."""
    parser = add_command(
        commands, "convert", "convert:convert", "write a model in another form or precision, and try it"
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help=MODEL)
    add("output", metavar="OUTPUT", help="the folder to write, or the .safetensors or .gguf file")
    add("--to", choices=("diffusers", "single-file", "gguf"), required=True, help="the form")
    add("--dtype", choices=_DTYPES, default="bf16", help="of the weights; bf16 by default")
    add("--vae", metavar="VAE", help="another VAE to put in: a file or folder of this machine, or a reference")
    add("--lora", metavar="LORA[:WEIGHT]", action="append", default=[], help="a LoRA to merge in; may be repeated")
    add("--no-image", action="store_true", help="compare the tensors only")
    add_json(parser)
    lora = add_group(commands, "lora", "write LoRA files for other programs")
    parser = add_command(lora, "convert", "lora:convert", "write a LoRA in another spelling, and try it")
    parser.add_argument("lora", metavar="LORA", help="a file or folder of this machine, or a reference")
    parser.add_argument("output", metavar="OUTPUT", help="the .safetensors file to write; for peft a folder")
    parser.add_argument("--model", metavar="MODEL", required=True, help=f"what it was made for: {MODEL}")
    parser.add_argument("--to", choices=_SPELLINGS, required=True, help="whose names its layers are to have")
    parser.add_argument("--no-image", action="store_true", help="compare the tensors only")
    add_json(parser)
    parser = add_command(lora, "extract", "lora:extract", "write what a tuned model differs by as a LoRA, and try it")
    parser.add_argument("tuned", metavar="TUNED", help="the tuned model: a file or folder, an id, or a reference")
    parser.add_argument("output", metavar="OUTPUT", help="the .safetensors file to write; for peft a folder")
    parser.add_argument("--model", metavar="MODEL", required=True, help=f"what it was tuned from: {MODEL}")
    parser.add_argument("--rank", metavar="N", type=int, default=32, help="of each layer; 32 by default")
    parser.add_argument("--dtype", choices=("fp32", "fp16", "bf16"), default="fp16", help="fp16 by default")
    parser.add_argument("--to", choices=_SPELLINGS, default="diffusers", help="whose names its layers have; diffusers")
    parser.add_argument("--no-image", action="store_true", help="say the share that is kept only")
    add_json(parser)
    parser = add_command(
        commands, "backup", "backup:backup", "write all of the volume that is no download into one file"
    )
    parser.add_argument("file", metavar="FILE", help="the tar file to write")
    parser.add_argument("--no-results", action="store_true", help="without outputs/, the images that were kept")
    parser.add_argument("--replace", action="store_true", help="write over a file that is there")
    add_json(parser)
    parser = add_command(commands, "restore", "backup:restore", "put a backup back, once every file of it is verified")
    parser.add_argument("file", metavar="FILE", help="the tar file that `backup` wrote")
    parser.add_argument("--replace", action="store_true", help="in place of files that are there and differ")
    add_json(parser)

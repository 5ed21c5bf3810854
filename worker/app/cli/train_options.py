"""The command that trains: what can be typed."""

from typing import Any

from worker.app.cli.parsers import MODEL, add_command, add_json

_DATA = (
    "a folder or a ZIP file of images, with captions in .txt files or metadata.jsonl; a file with a URL and a caption "
    "in each line; or hf:org/name, https://….zip, volume:NAME"
)

_HOW = (
    ("--steps", "N", "how many steps; 1000 if not said"),
    ("--batch-size", "N", "images a step"),
    ("--accumulation", "N", "batches whose gradients make one step"),
    ("--learning-rate", "X", "as models.yaml says for the model, else 0.0001"),
    ("--lora-plus", "X", "how many times A's learning rate an adapter's B has, such as 16 (LoRA+)"),
    ("--optimizer", "NAME", "adamw, lion, prodigy or adamw8bit"),
    ("--ema", "X", "deliver a running mean of the steps, with this decay, such as 0.99"),
    ("--method", "NAME", "lora, dora, loha, lokr; embedding: the word of --trigger alone; full: the whole model"),
    ("--rank", "N", "the size of the adapter"),
    ("--precision", "NAME", "how the model's own weights are held: fp8, int8, 8bit, 4bit, bf16, fp16 or fp32"),
    ("--targets", "NAME", "the layers that learn: attention, linear or all"),
    ("--resolution", "N", "side of a square of as many pixels as an image is learnt with"),
    ("--trigger", "WORD", "a word that every caption begins with"),
    ("--caption", "TEXT", "the caption of images that have none"),
    ("--template", "TEXT", "how every caption is written, with {caption}, {trigger} and {name}"),
    ("--caption-dropout", "X", "share of the captions that is left out"),
    ("--crop", "NAME", "what of an image is learnt whose shape does not fit: center, random, or none cut away"),
    ("--crops", "N", "places of each image with --crop random; 4 if not said"),
    ("--mask", "NAME", "where masks are: files by an image's name, its alpha, or off"),
    ("--mask-floor", "X", "the weight of what is outside a mask; 0.1 if not said"),
    ("--min-snr", "X", "gamma of min-SNR weights, such as 5"),
    ("--vectors", "N", "the size of an embedding"),
    ("--like", "TEXT", "the word that an embedding begins as"),
    (
        "--class-prompt",
        "TEXT",
        "what the subject is one of, as `a dog`: the model's images of it are learnt, too",
    ),
    ("--class-images", "N", "how many of them"),
    ("--class-weight", "X", "how much they count"),
    ("--held-out", "X", "share of the images that is kept to measure with"),
    ("--patience", "N", "end once so many checkpoints had no lower loss on these, and deliver the best"),
    ("--save-every", "N", "steps between checkpoints"),
    ("--sample-captions", "N", "without --sample, so many captions of the data are drawn at every checkpoint"),
    ("--seed", "N", "same seed, same adapter"),
    ("--trainer", "NAME", "worker, or ai-toolkit where AI_TOOLKIT names one"),
    ("--minutes", "X", "stop with a checkpoint after so long"),
    ("--max-usd", "X", "or at that price, with GPU_PRICE_PER_HOUR"),
)


def add_train(commands: Any) -> None:
    """Add the command. Its data is behind it, or behind `--data`."""
    parser = add_command(commands, "train", "train:train", "teach a model a style or a thing: images in, a LoRA out")
    add = parser.add_argument
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("data", metavar="DATA", nargs="?", help=_DATA)
    data.add_argument("--data", dest="named_data", metavar="DATA", help="the same, by a name")
    add("-m", "--model", help=f"{MODEL}; else the default model")
    add("-o", "--output", metavar="FOLDER", help="where to keep it, or what to go on with; else trained/DATA")
    add("--check", action="store_true", help="only say what is wrong with the data")
    how = parser.add_argument_group("how to learn")
    for option, metavar, text in _HOW:
        how.add_argument(option, metavar=metavar, help=text)
    how.add_argument("--text-encoder", action="store_true", help="learn in the CLIP text encoders, too")
    how.add_argument("--tensorboard", action="store_true", help="write files for TensorBoard, too")
    how.add_argument("--flip", action="store_true", help="learn every image mirrored, too")
    text = "drawn at every checkpoint with that checkpoint's file; may be repeated"
    how.add_argument("--sample", metavar="PROMPT", action="append", default=[], help=text)
    add("--publish", metavar="ORG/NAME", help="put what came of it into this repository on the Hub, with HF_TOKEN")
    add("--private", action="store_true", help="a repository that only its owner sees, where it is a new one")
    add_json(parser)

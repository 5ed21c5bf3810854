"""The commands for LoRA files: in another program's spelling, or out of two models; each is tried by an image."""

from argparse import Namespace
from pathlib import Path

from worker.app.cli.files import TypedFiles
from worker.app.cli.session import failures, open_worker, settings_of
from worker.app.cli.terminal import Failure, Terminal
from worker.app.cli.trying import distance, lora_file, lora_files, planned, small_image, spoken_distance, told
from worker.app.registry import build_registry

_TYPED = {"model": "--model", "loras": "LORA", "output": "OUTPUT", "to": "--to"}
_LARGEST_RANK = 1_024


def convert(arguments: Namespace, terminal: Terminal) -> None:
    """Write a LoRA in another spelling, read it again, compare every layer, and generate an image with both."""
    settings = settings_of(terminal)
    files = TypedFiles(lambda name: build_registry(settings).find(name) is not None)
    target = Path(arguments.output).absolute()
    with failures(terminal):
        source = files.reference(arguments.model)
        lora = files.reference(arguments.lora)
    if not target.parent.is_dir():
        raise Failure(f"There is no folder {target.parent}; make it first.")
    with open_worker(terminal, unregistered=True, roots=[*files.roots, target], typed=_TYPED) as worker:
        from worker.engine.lora_writing import check_target, respell  # torch, which a mistake need not wait for

        check_target(target, arguments.to)
        model, plan = planned(worker, source, terminal)
        written = respell(plan, lora_files(worker, lora, 1.0, terminal), target, arguments.to, lora_file)
        images = [
            None if arguments.no_image else small_image(worker, model, source, terminal, {"loras": [{"model": name}]})
            for name in (lora, f"file:{written.file}")
        ]
    psnr_db = distance(*images)
    if arguments.json:
        terminal.json(
            {
                "path": str(written.path),
                "layers": written.layers,
                "tensors": written.tensors,
                "bytes": written.bytes,
                "exact": written.exact,
                **told(psnr_db),
            }
        )
        return
    came_back = "to the bit" if written.exact else "within float32's rounding"
    terminal.print(
        f"{written.path}: {written.bytes / 1e6:.1f} MB; read again, all {written.layers} layers came back {came_back}"
    )
    if psnr_db is not None:
        terminal.print(spoken_distance(psnr_db))


def extract(arguments: Namespace, terminal: Terminal) -> None:
    """Write what a tuned model differs by as a LoRA, and say how much of that it holds."""
    settings = settings_of(terminal)
    files = TypedFiles(lambda name: build_registry(settings).find(name) is not None)
    target = Path(arguments.output).absolute()
    with failures(terminal):
        base, tuned = files.reference(arguments.model), files.reference(arguments.tuned)
    if not target.parent.is_dir():
        raise Failure(f"There is no folder {target.parent}; make it first.")
    if not 1 <= arguments.rank <= _LARGEST_RANK:
        raise Failure(f"--rank is {arguments.rank}; give a number from 1 to {_LARGEST_RANK}.")
    with open_worker(terminal, unregistered=True, roots=[*files.roots, target], typed=_TYPED) as worker:
        from worker.engine.lora_writing import check_target, extract_lora  # torch, which a mistake need not wait for

        check_target(target, arguments.to)
        model, plan = planned(worker, base, terminal)
        other, tuned_plan = planned(worker, tuned, terminal)
        place = target, arguments.to
        written, extracted = extract_lora((plan, tuned_plan), arguments.rank, arguments.dtype, place, lora_file)
        wanted = with_lora = without = None
        if not arguments.no_image:
            # The tuned one may stand in no models.yaml: all three are asked for with what the model's own entry says.
            wanted = small_image(worker, other, tuned, terminal, model.spec.defaults)
            without = small_image(worker, model, base, terminal)
            with_lora = small_image(worker, model, base, terminal, {"loras": [{"model": f"file:{written.file}"}]})
    near, far = distance(wanted, with_lora), distance(wanted, without)
    if arguments.json:
        terminal.json(
            {
                "path": str(written.path),
                "layers": written.layers,
                "bytes": written.bytes,
                "kept": round(extracted.kept, 4),
                "left_out": round(extracted.left_out, 4),
                **told(near),
                "psnr_db_without": told(far)["psnr_db"],
            }
        )
        return
    terminal.print(
        f"{written.path}: {written.bytes / 1e6:.1f} MB; {written.layers} layers hold {extracted.kept:.1%} of the "
        f"difference, and {extracted.left_out:.1%} is in tensors that no LoRA changes"
    )
    if near is not None and far is not None:
        terminal.print(f"with it {spoken_distance(near)}, without it {spoken_distance(far)}")

"""`generate` and `edit`: a few images, written where they are wanted."""

import asyncio
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from image_client.budget import Budget
from image_client.cli.options import Drawing, Money, Sending, session_of_today
from image_client.cli.terminal import alerts_shown, err, failures, out
from image_client.client import request_of
from image_client.errors import InvalidRequest
from image_client.image import Image
from image_client.money import shown
from image_client.paying import pay
from image_client.request import ImageRequest


def generate(
    prompt: Annotated[str, typer.Argument(help="What the image shows.")],
    sending: Sending,
    drawing: Drawing,
    money: Money,
    out: Annotated[Path, typer.Option("--out", "-o", help="A file, or a folder.")] = Path("results"),
    n: Annotated[int, typer.Option(min=1, max=100, help="How many.")] = 1,
) -> None:
    """Generate an image of a prompt."""
    with failures():
        _draw(request_of("generate", {"prompt": prompt, **drawing.as_fields()}), sending, money, out, n)


def edit(
    image: Annotated[Path, typer.Argument(help="The image to change.")],
    prompt: Annotated[str, typer.Argument(help="What shall become of it.")],
    sending: Sending,
    drawing: Drawing,
    money: Money,
    mask: Annotated[Path | None, typer.Option(help="White where the image is drawn anew.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="A file, or a folder.")] = Path("results"),
) -> None:
    """Change an image as a prompt says."""
    with failures():
        fields: dict[str, Any] = {"prompt": prompt, "image": _read(image), **drawing.as_fields()}
        if mask is not None:
            fields["mask"] = _read(mask)
        _draw(request_of("inpaint" if mask else "edit", fields), sending, money, out, 1)


def _draw(request: ImageRequest, sending: Sending, money: Money, place: Path, count: int) -> None:
    alerts_shown()
    with money.budget_of(sending, session_of_today()) as budget:
        outcomes = asyncio.run(_images(request, sending, budget, count))
    for number, image in enumerate(outcomes, start=1):
        if isinstance(image, Image):
            _tell(image, image.save(_path(place, image, number, count)))
    for error in outcomes:
        if isinstance(error, BaseException):
            raise error


def _tell(image: Image, path: Path) -> None:
    for change in image.adapted:
        err.print(f"adapted: {change}", markup=False)
    drawn_by = f"{image.provider}/{image.model}" if image.model else image.provider
    seed = "" if image.seed is None else f"  seed {image.seed}"
    out.print(f"{path}  {shown(image.cost)}  {image.seconds:.1f} s  {drawn_by}{seed}", markup=False)


async def _images(request: ImageRequest, sending: Sending, budget: Budget, count: int) -> list[Image | BaseException]:
    """Generate them at once, each paid for by itself: one that fails takes none of the others with it."""
    options = replace(sending.options(), price=budget.prices.of_request)
    stand_ins = sending.fallback or ()
    async with sending.connect(options) as client:
        requests = [
            request if request.seed is None else request.model_copy(update={"seed": request.seed + number})
            for number in range(count)
        ]
        calls = [pay(budget, client, one, uuid.uuid4().hex, stand_ins) for one in requests]
        return await asyncio.gather(*calls, return_exceptions=True)


def _path(place: Path, image: Image, number: int, count: int) -> Path:
    if place.suffix and not place.is_dir():
        return place if count == 1 else place.with_stem(f"{place.stem}-{number}")
    return place / f"{image.request_id[:12]}{image.extension}"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}.") from error

"""A training's losses as an image: thin as they were, thick smoothed, dots for those on images held out."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

_SIZE, _MARGIN = (640, 360), 40
_PAPER, _AXES, _THIN, _THICK, _DOT = "#ffffff", "#444444", "#c6d4ea", "#1f5fbf", "#d2691e"
_SMOOTH = 0.9


def smoothed(losses: Sequence[float]) -> list[float]:
    """Return the exponential mean of the losses at each step, without the bias of its beginning."""
    mean, share, means = 0.0, 1.0, []
    for loss in losses:
        mean, share = _SMOOTH * mean + (1 - _SMOOTH) * loss, share * _SMOOTH
        means.append(mean / (1 - share))
    return means


def plot_losses(losses: Sequence[float], held_out: Sequence[tuple[int, float]] = ()) -> Image.Image:
    """Draw losses by step, the first being step 1; `held_out` has pairs of a step and the loss there."""
    image = Image.new("RGB", _SIZE, _PAPER)
    draw = ImageDraw.Draw(image)
    means = smoothed(losses)
    values = [*losses, *(loss for _, loss in held_out)]
    low, high = min(values), max(values)
    width, height = _SIZE[0] - 2 * _MARGIN, _SIZE[1] - 2 * _MARGIN

    def place(step: int, loss: float) -> tuple[float, float]:
        across = (step - 1) / max(1, len(losses) - 1)
        up = (loss - low) / ((high - low) or 1)
        return _MARGIN + across * width, _MARGIN + (1 - up) * height

    draw.rectangle((_MARGIN, _MARGIN, _MARGIN + width, _MARGIN + height), outline=_AXES)
    for row, thick in ((losses, False), (means, True)):
        points = [place(step, loss) for step, loss in enumerate(row, 1)]
        draw.line(points, fill=_THICK if thick else _THIN, width=2 if thick else 1)
    for step, loss in held_out:
        across, down = place(step, loss)
        draw.ellipse((across - 3, down - 3, across + 3, down + 3), fill=_DOT)
    draw.text((_MARGIN, _MARGIN - 16), f"loss, {high:.4g}", fill=_AXES)
    draw.text((_MARGIN, _MARGIN + height + 4), f"{low:.4g}, step 1", fill=_AXES)
    draw.text((_MARGIN + width - 60, _MARGIN + height + 4), f"step {len(losses)}", fill=_AXES)
    return image

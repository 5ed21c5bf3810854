"""A bar chart as an image, for reports of this worker about itself."""

import io
from collections.abc import Mapping

from PIL import Image, ImageDraw, ImageFont

_WIDTH, _ROW, _MARGIN, _LABEL = 960, 30, 24, 260
_INK, _BAR, _PAPER = (34, 34, 34), (46, 110, 180), (255, 255, 255)


def draw_bars(title: str, values: Mapping[str, float], unit: str) -> bytes:
    """Return PNG bytes of one horizontal bar for each value, with its number beside it. Values are not negative."""
    height = 2 * _MARGIN + _ROW * (len(values) + 1)
    image = Image.new("RGB", (_WIDTH, height), _PAPER)
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(14)
    pen.text((_MARGIN, _MARGIN), title, _INK, ImageFont.load_default(16))
    longest = max(values.values(), default=0.0) or 1.0
    room = _WIDTH - _LABEL - 2 * _MARGIN - 120
    for row, (label, value) in enumerate(values.items(), start=1):
        top = _MARGIN + row * _ROW
        pen.text((_MARGIN, top + 6), label if len(label) <= 32 else f"{label[:31]}…", _INK, font)
        end = _LABEL + round(room * value / longest)
        pen.rectangle((_LABEL, top + 4, end, top + _ROW - 6), _BAR)
        pen.text((end + 8, top + 6), f"{value:,.1f} {unit}", _INK, font)
    target = io.BytesIO()
    image.save(target, "PNG")
    return target.getvalue()

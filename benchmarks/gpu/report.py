"""The figures as a table for people, and as a plot."""

from collections.abc import Iterator, Mapping
from typing import Any
from xml.sax.saxutils import escape

Results = Mapping[str, Any]
_WIDTH, _ROW, _LEFT = 900, 18, 330


def rows(results: Results) -> Iterator[tuple[str, str, float, str]]:
    """Yield model, measure, seconds of a call, and what else there is to say of it."""
    rate = results["machine"].get("matmul_flops", 0.0)
    for model, measures in results["models"].items():
        base = measures.get("plain", {}).get("call_s")
        for name, outcome in measures.items():
            if "error" in outcome:
                yield model, name, 0.0, f"failed: {outcome['error']}"
            elif name == "floor":
                seconds = outcome["call"] / rate if rate else 0.0
                yield model, name, seconds, f"{outcome['step'] / 1e12:.2f} TFLOP a step"
            elif name.startswith("batches"):
                for count, row in outcome["counts"].items():
                    yield model, f"{name}, {count} at once", row["call_s"], f"{row['images_per_s']:.2f} images/s"
            elif name == "lora":
                said = f"again {outcome['again_s'] * 1e3:.1f} ms, a step {outcome['step_ratio']:.3f} times"
                yield model, name, outcome["first_s"], said
            elif name == "loras mixed":
                said = f"a step {outcome['of_apart']:.3f} of one after the other, {outcome['of_plain']:.3f} of none"
                yield model, f"{name}, {outcome['images']} at once", outcome["call_s"], said
            elif name == "loading":
                yield model, name, outcome["load_s"], f"{outcome['of_raw']:.2f} of the disk's speed"
            else:
                yield model, name, outcome["call_s"], _said(outcome, base)


def _said(outcome: Results, base: float | None) -> str:
    words = []
    if base and outcome["call_s"] and "steps" not in outcome:
        words.append(f"{base / outcome['call_s']:.2f} times as fast")
    if "psnr_db" in outcome:
        words.append("equal" if outcome["psnr_db"] is None else f"{outcome['psnr_db']:.1f} dB")
    if "first_call_penalty_s" in outcome:
        words.append(f"first call {outcome['first_call_penalty_s']:.2f} s more")
    if outcome.get("restored") is False:
        words.append("NOT RESTORED")
    return ", ".join(words)


def table(results: Results) -> str:
    """Return a Markdown table."""
    lines = ["| model | measure | seconds | |", "|---|---|---|---|"]
    return "\n".join(
        lines + [f"| {model} | {name} | {seconds:.3f} | {said} |" for model, name, seconds, said in rows(results)]
    )


def plot(results: Results) -> str:
    """Return an SVG: a bar for each measure of a call, beside the floor of its model."""
    bars = [row for row in rows(results) if row[2] > 0 and not row[1].startswith(("lora", "loading"))]
    longest = max((seconds for _, _, seconds, _ in bars), default=1.0)
    parts = []
    for index, (model, name, seconds, said) in enumerate(bars):
        y, width = index * _ROW, (_WIDTH - _LEFT - 170) * seconds / longest
        colour = "#999" if name == "floor" else "#357" if name == "plain" else "#59c"
        parts.append(
            f'<text x="{_LEFT - 6}" y="{y + 13}" text-anchor="end">{escape(f"{model}: {name}")}</text>'
            f'<rect x="{_LEFT}" y="{y + 2}" width="{width:.1f}" height="{_ROW - 5}" fill="{colour}"/>'
            f'<text x="{_LEFT + width + 5:.1f}" y="{y + 13}">{seconds:.2f} s {escape(said[:24])}</text>'
        )
    height = max(1, len(bars)) * _ROW
    size = f'width="{_WIDTH}" height="{height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">'
    return head + "".join(parts) + "</svg>\n"

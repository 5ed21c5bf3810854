"""Decode one AVIF image from stdin. Run as a script, in a process of its own, by `worker.media.avif`.

It imports nothing of the worker. An AVIF of a kilobyte may say 64 pixels and hold 268 million, which its decoder only
notices once it has all of them; limits on memory and time hold for this process alone.
It writes the mode, the size and whether more frames follow, and after a newline the pixels.
Exit statuses: 0 decoded, 3 the size is over the limits and only the first line was written; else it cannot be read.
"""

import io
import resource
import sys

from PIL import AvifImagePlugin, Image, ImageOps

TOO_LARGE = 3
_MIB = 2**20


def main(max_side: int, max_pixels: int) -> int:
    """Decode stdin to stdout. Returns the exit status."""
    limits = {resource.RLIMIT_CPU: 60, resource.RLIMIT_DATA: 768 * _MIB, resource.RLIMIT_CORE: 0}
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # each more has memory of its own
    with Image.open(io.BytesIO(sys.stdin.buffer.read()), formats=("AVIF",)) as image:
        more = int(image.is_animated)  # type: ignore[attr-defined]  # every AVIF file has it
        if max(image.size) > max_side or image.width * image.height > max_pixels:
            sys.stdout.write(f"RGB {image.width} {image.height} {more}\n")
            return TOO_LARGE
        image.load()
        upright = ImageOps.exif_transpose(image)
    pixels = upright.convert("RGBA" if "A" in upright.getbands() else "RGB")
    sys.stdout.buffer.write(f"{pixels.mode} {pixels.width} {pixels.height} {more}\n".encode())
    sys.stdout.buffer.write(pixels.tobytes())
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))

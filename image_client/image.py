"""What comes back: one image and where it comes from."""

import os
import tempfile
import webbrowser
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

if TYPE_CHECKING:
    from PIL import Image as PillowImage

EXTENSIONS = {"image/png": ".png", "image/jpeg": ".jpg", "image/webp": ".webp", "image/gif": ".gif"}


@dataclass(frozen=True, slots=True)
class Image:
    """One image as its provider encoded it, with its lineage.

    `seconds` is the time from the call to the last byte; `cost` is in US dollars for this one image, None where it is
    unknown; `request_id` is ours, `job_id` the provider's; `adapted` says how the request was changed to fit.
    """

    data: bytes = field(repr=False)
    media_type: str
    provider: str
    model: str | None = None
    version: str | None = None
    seed: int | None = None
    cost: Decimal | None = None
    seconds: float = 0.0
    request_id: str = ""
    job_id: str | None = None
    adapted: tuple[str, ...] = ()
    raw: JsonValue = field(default=None, repr=False)

    @property
    def extension(self) -> str:
        """The ending of a file that holds this image, with its dot."""
        return EXTENSIONS.get(self.media_type, ".bin")

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the file, whole or not at all; a `path` without an ending gets the image's own. Return where it is."""
        target = Path(path)
        target = target if target.suffix else target.with_suffix(self.extension)
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(self.data)
            Path(name).chmod(0o644)
            Path(name).replace(target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        return target

    def show(self) -> Path:
        """Open the image in the machine's own viewer; return the file that it was written to."""
        path = self.save(Path(tempfile.mkdtemp(prefix="image-client-")) / "image")
        webbrowser.open(path.as_uri())
        return path

    def pil(self) -> "PillowImage.Image":
        """Return it as a Pillow image; raises ImportError where Pillow is not installed."""
        from io import BytesIO

        from PIL import Image as PillowImage

        return PillowImage.open(BytesIO(self.data))

"""Images and captions out of Parquet files, as the Hub keeps datasets: one row at a time, and nothing of them is run.

A file is a stranger's: what its header says of sizes is bounded before a page is read, each value as it comes, and the
sum of all. pyarrow reads it, an extra of pyproject.toml.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from worker.core.errors import InvalidRequest, UnsupportedModel
from worker.media.kinds import kind_of

# Names of columns, the first that is there.
IMAGES = ("image", "img", "jpg", "png", "picture", "photo", "edited_image", "target_image", "target_img")
CAPTIONS = ("text", "caption", "prompt", "description", "label_text")
MASKS = ("mask",)
SOURCES = ("source", "source_image", "source_img", "input_image")  # of which the images are made
INSTRUCTIONS = ("edit_prompt", "instruction")  # which are the captions of these
MAX_ROWS = 10_000
MAX_CELL_BYTES = 64 * 2**20
_MAX_ROW_GROUP_BYTES = 2 * 2**30  # of its images, uncompressed
_MAX_CAPTION = 2_000
_THRIFT = 16 * 2**20
_SUFFIXES = {"JPEG": ".jpg", "WebP": ".webp", "AVIF": ".avif", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif"}


def check_installed(dataset: str) -> None:
    """Raise UnsupportedModel if no Parquet can be read here."""
    if find_spec("pyarrow") is None:
        raise UnsupportedModel(
            f"data: {dataset} is kept as Parquet, which needs the Python package pyarrow, which is not installed here; "
            "let the operator install the extra train, or send the images.",
            field="data",
            details={"package": "pyarrow"},
        )


@dataclass(slots=True)
class ParquetImages:
    """Writes the rows of a dataset's files into `folder`; `check` is called before each, and raises to end it."""

    dataset: str
    folder: Path
    left: int  # bytes that may be written
    check: Callable[[], None] = lambda: None
    rows: int = 0
    without: int = 0
    seen: set[str] = field(default_factory=set)

    def unpack(self, file: Path) -> None:
        """Write the images of one file, and what belongs to them beside them. Raises InvalidRequest."""
        import pyarrow
        from pyarrow import parquet

        try:
            with parquet.ParquetFile(
                file, pre_buffer=False, buffer_size=2**20,
                thrift_string_size_limit=_THRIFT, thrift_container_size_limit=2**20,
            ) as opened:  # fmt: skip
                columns = self._columns(opened)
                for batch in opened.iter_batches(batch_size=1, columns=[*columns.values()], use_threads=False):
                    self.check()
                    self._write({kind: batch.column(name)[0] for kind, name in columns.items()})
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of the disk
            raise self._refusal("has a Parquet file that cannot be read") from None

    def done(self) -> None:
        """Raise InvalidRequest if no row had an image."""
        if not self.rows:
            links = ": they are links, or empty" if self.without else ""
            raise self._refusal(f"has no row with an image in it{links}")

    def _columns(self, opened: Any) -> dict[str, str]:
        """Return the columns that are read, by what they hold."""
        import pyarrow

        schema, metadata = opened.schema_arrow, opened.metadata
        self.seen |= set(schema.names[:20])
        kinds = {schema.field(index).name: schema.field(index).type for index in range(len(schema))}
        images = {name: kind for name, kind in kinds.items() if _holds_bytes(kind)}
        texts = {name: kind for name, kind in kinds.items() if _is_text(pyarrow, kind)}
        columns: dict[str, str] = {}
        words = (*INSTRUCTIONS, *CAPTIONS) if images.keys() & {*SOURCES} else CAPTIONS
        roles = (("image", IMAGES, images), ("caption", words, texts), ("mask", MASKS, images))
        for role, names, among in (*roles, ("source", SOURCES, images)):
            name = next((name for name in names if name in among), None)
            columns |= {role: name} if name else {}
        if "image" not in columns:
            shown = ", ".join(sorted(name[:40] for name in self.seen))
            raise self._refusal(f"has no column of images named {', '.join(IMAGES[:-1])} or {IMAGES[-1]}, but {shown}")
        for index in range(metadata.num_row_groups):
            if metadata.row_group(index).total_byte_size > _MAX_ROW_GROUP_BYTES:
                raise self._refusal(f"has rows of over {_MAX_ROW_GROUP_BYTES >> 30} GB in one group")
        return columns

    def _write(self, row: Mapping[str, Any]) -> None:
        image = self._bytes(row["image"])
        if image is None:
            self.without += 1
            return
        if self.rows >= MAX_ROWS:
            raise self._refusal(f"has more than {MAX_ROWS:,} images")
        stem = f"{self.rows:06d}"
        self.rows += 1
        self._put(f"{stem}{_SUFFIXES.get(kind_of(image) or '', '.png')}", image)
        for role in ("mask", "source"):
            beside = self._bytes(row[role]) if role in row else None
            if beside is not None:
                self._put(f"{stem}.{role}.png", beside)
        caption = row["caption"].as_py() if "caption" in row else None
        if caption:
            self._put(f"{stem}.txt", str(caption)[:_MAX_CAPTION].encode())

    def _bytes(self, value: Any) -> bytes | None:
        """Return the bytes of a cell: a binary, or the `bytes` of what the Hub calls an image."""
        cell = value["bytes"] if hasattr(value, "keys") and value.is_valid else value
        if not cell.is_valid:
            return None
        if len(cell.as_buffer()) > MAX_CELL_BYTES:
            raise self._refusal(f"has an image of over {MAX_CELL_BYTES >> 20} MB")
        body: bytes = cell.as_py()
        return body or None

    def _put(self, name: str, body: bytes) -> None:
        self.left -= len(body)
        if self.left < 0:
            raise self._refusal("is too large in all")
        (self.folder / name).write_bytes(body)

    def _refusal(self, reason: str) -> InvalidRequest:
        return InvalidRequest(f"data: {self.dataset} {reason}; send the images, or a ZIP file.", field="data")


def _holds_bytes(kind: Any) -> bool:
    """True for a column of binaries, and for a struct that has a binary named bytes."""
    from pyarrow import types

    if types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_bytes(kind.field(index).type)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _is_text(pyarrow: Any, kind: Any) -> bool:
    return bool(pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind))

"""The kind of a file by its first bytes, in the word that people have for it: to name what is not read."""

import re

IMAGES = ("PNG", "JPEG", "WebP", "AVIF", "GIF", "BMP", "TIFF")  # as Pillow names them too, but for their case
WEB_PAGE = "a web page (HTML)"
VIDEO = "an MP4 video"
_STARTS = (
    (b"\x89PNG", "PNG"),
    (b"\xff\xd8", "JPEG"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "a BigTIFF"),
    (b"MM\0+", "a BigTIFF"),
    (b"\0\0\1\0", "an icon (ICO)"),
    (b"8BPS", "a Photoshop document (PSD)"),
    (b"gimp xcf", "a GIMP document (XCF)"),
    (b"%PDF", "a PDF"),
    (b"%!PS", "PostScript (EPS)"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"v/1\1", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"DDS ", "a DDS texture"),
    (b"qoif", "QOI"),
    (b"\x1a\x45\xdf\xa3", "a WebM or Matroska video"),
    (b"FLV\1", "a Flash video"),
    (b"\0\0\1\xba", "an MPEG video"),
    (b"PK\3\4", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a rar archive"),
)
_OF_RIFF = {b"WEBP": "WebP", b"AVI ": "an AVI video", b"WAVE": "a WAV sound"}
# The major brands of the container that MP4 came from; all others are videos.
_OF_BRAND = {
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIC"),
    b"crx ": "a raw photo (CR3)",
    b"M4A ": "a sound (M4A)",
}
_MP4_BOXES = (b"moov", b"mdat", b"wide", b"free", b"skip")  # with which a QuickTime film may begin
_NETPBM = re.compile(rb"P[1-7]\s")
_MARKUP = re.compile(rb"<(!doctype\s+)?(\?xml|[\w!-]+)", re.IGNORECASE)
_TEXT_BYTES = 512  # enough to tell a text from pixels


def kind_of(data: bytes) -> str | None:
    """Return the kind of a file: one of IMAGES, VIDEO, or a phrase with its article; None if it cannot be told."""
    if data[:4] == b"RIFF":
        return _OF_RIFF.get(data[8:12])
    if data[4:8] == b"ftyp":
        brand = data[8:12]
        return "AVIF" if brand == b"mif1" and b"avif" in data[:64] else _OF_BRAND.get(brand, VIDEO)
    if data[4:8] in _MP4_BOXES:
        return VIDEO
    named = next((kind for start, kind in _STARTS if data.startswith(start)), None)
    return named or ("a PPM or PGM image" if _NETPBM.match(data) else _kind_of_text(data))


def _kind_of_text(data: bytes) -> str | None:
    text = data.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text:
        return None
    if (markup := _MARKUP.match(text)) is not None:
        start = text[:_TEXT_BYTES].lower()
        if b"<svg" in start:
            return "SVG"
        is_page = markup[1] or b"<html" in start or markup[2].lower() not in (b"?xml", b"error")
        return WEB_PAGE if is_page else "XML text"
    if text.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS"
    beginning = text[:_TEXT_BYTES]
    try:
        characters = beginning.decode()
    except UnicodeDecodeError as error:
        if error.start < len(beginning) - 3:  # not merely a letter cut in two
            return None
        characters = beginning[: error.start].decode()
    if not all(char.isprintable() or char.isspace() for char in characters):
        return None
    return "JSON text" if text[:1] in b"{[" else "text"

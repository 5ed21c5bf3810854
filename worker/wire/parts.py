"""An answer in parts: its JSON cut into texts that are small enough for the chunks of a stream."""

import hashlib
import json

from pydantic import JsonValue

from worker.core.answer import Answer, AnyAnswer
from worker.wire.result import encode_answer, encode_whole

# RunPod takes 1 MB a chunk, and what is larger it would cut by itself.
MAX_CHUNK_BYTES = 1_000_000
_AROUND = 1_000  # of a chunk, for what stands around the text of a part
_QUOTED = 10_000  # and for the quotation marks of the text, which take a second byte each


def encode_parts(answer: Answer, max_bytes: int = MAX_CHUNK_BYTES) -> list[dict[str, JsonValue]]:
    """Write a finished job as parts, in order: `{index, total, sha256, data}`.

    All `data` together are the JSON of the whole answer, in ASCII, and `sha256` is its digest.
    """
    text = json.dumps(encode_whole(answer), allow_nan=False)
    digest = hashlib.sha256(text.encode("ascii")).hexdigest()
    texts = _cut(text, max_bytes - _AROUND)
    return [{"index": index, "total": len(texts), "sha256": digest, "data": data} for index, data in enumerate(texts)]


def encode_chunks(answer: AnyAnswer, max_bytes: int = MAX_CHUNK_BYTES) -> list[dict[str, JsonValue]]:
    """Write the answer to any request for a stream whose chunks are bounded: in one piece if it fits and may be."""
    if not isinstance(answer, Answer):
        return [encode_answer(answer)]
    if not answer.streamed:
        whole = encode_answer(answer)
        if len(json.dumps(whole)) <= max_bytes - _AROUND:
            return [whole]
    return encode_parts(answer, max_bytes)


def _cut(text: str, max_bytes: int) -> list[str]:
    """Cut `text`, which is ASCII, into pieces of at most `max_bytes` when they are written as JSON."""
    pieces: list[str] = []
    start, usual = 0, max(max_bytes - _QUOTED, max_bytes // 2)
    while start < len(text):
        piece = text[start : start + usual]
        while len(json.dumps(piece)) > max_bytes:
            piece = piece[: len(piece) // 2]
        pieces.append(piece)
        start += len(piece)
    return pieces

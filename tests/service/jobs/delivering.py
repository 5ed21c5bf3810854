"""Workers whose images no lossless format makes smaller, and what their answers hold."""

import base64
import random

from tests.answers import files_of
from tests.fakes.engine import FakeEngine, make_context
from worker.core.image import Raster

MAGIC = {"png": b"\x89PNG", "jpeg": b"\xff\xd8\xff", "webp": b"RIFF"}


def noise(job, seed):
    """An image that no lossless format makes smaller."""
    return Raster("RGB", 128, 128, random.Random(seed).randbytes(128 * 128 * 3))


def noisy(tmp_path, limit_mb, **settings):
    return make_context(tmp_path, FakeEngine(noise), max_response_mb=limit_mb, **settings)


def bucket_settings(bucket):
    return {
        "bucket_endpoint_url": bucket.endpoint,
        "bucket_name": "images",
        "bucket_access_key_id": "test-access",
        "bucket_secret_access_key": "test-secret",
    }


def files(answer):
    return [base64.b64decode(text, validate=True) for text in files_of(answer)]

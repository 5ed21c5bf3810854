"""Pixels in and out: decoding with limits, preprocessing, encoding. PIL, and no torch."""

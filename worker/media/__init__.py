"""Pixels in and out: decoding with limits, encoding, guarded fetching. PIL, and no torch."""

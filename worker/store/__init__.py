"""Bytes on disk: references, sources of weights, the volume cache. No torch."""

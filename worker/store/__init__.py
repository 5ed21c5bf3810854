"""Bytes on disk: references, the Hub cache, local folders, result buckets. No torch."""

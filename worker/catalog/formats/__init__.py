"""Readers of weight files' headers, and names for files that are no weights."""

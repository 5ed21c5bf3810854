"""Requests in other programs' words, read as fields of ours: by their keys alone, without a model."""

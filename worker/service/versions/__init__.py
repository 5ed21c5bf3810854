"""Versions of models: which one serves a job, how that is changed, and how two of them compare."""

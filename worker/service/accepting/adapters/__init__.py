"""Adapters of a request, checked and read before anything is loaded."""

"""Providers, one pure translator each."""

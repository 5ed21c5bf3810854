"""Levers: ways to generate the same faster, each tried against the model's own plain images before it is used."""

"""Fleets on a platform: what models.yaml asks for, beside what is there, and the calls that make one of the other."""

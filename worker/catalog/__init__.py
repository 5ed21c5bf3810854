"""The registry, the tables of model families and adapters, and the detector. No network, no torch."""

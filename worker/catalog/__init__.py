"""Models, families and detection. The registry, the tables and the detector; no network, no torch."""

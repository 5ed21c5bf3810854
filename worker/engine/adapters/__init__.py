"""Everything that can be put on a resident pipeline for one job, and taken off exactly."""

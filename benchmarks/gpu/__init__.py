"""Everything that can be measured of speed on one GPU, in one command of ten minutes: `python -m benchmarks.gpu`."""

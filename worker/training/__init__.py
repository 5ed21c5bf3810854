"""Training of adapters on the worker's own pipelines: dataset, trainer, checkpoints. Needs torch."""

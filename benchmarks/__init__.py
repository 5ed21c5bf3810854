"""What the worker costs around the model: each figure a ratio or a median inside one run."""

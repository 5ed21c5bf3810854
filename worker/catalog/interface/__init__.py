"""The interface of a model: its tasks, inputs and parameters, read from the signatures of diffusers' pipelines."""

"""The rows of the architecture table, by kind of denoiser. `worker.catalog.architectures` joins them."""

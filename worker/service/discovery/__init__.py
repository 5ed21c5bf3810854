"""Models and adapters that other people publish, as far as this worker can run them."""

"""The worker in a terminal: run, inspect, plan, models, schema, serve, lock, usage, cache, keys."""

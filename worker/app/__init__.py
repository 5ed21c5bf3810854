"""The composition of the rooms: settings in, a worker out."""

"""How the rooms are put together: settings in, a worker out."""

"""What the installed diffusers says of its pipeline classes, read from its text: calls, media, tasks, refusals."""

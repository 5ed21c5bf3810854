"""Facts about the installed diffusers' pipeline classes, read from its text: calls, media, tasks, refusals."""

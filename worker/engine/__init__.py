"""The serving room with torch and diffusers; everything here runs in the one GPU thread, but for `plan`."""

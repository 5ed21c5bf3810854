"""The room with torch and diffusers. All of it runs in the one GPU thread, except `plan`."""

"""The HTTP server's doors: one file each, all of them `routes(context) -> Door`."""

"""The doors: each decodes its wire format, calls the service, encodes its answer. No rule about jobs."""

"""The doors: each decodes its wire format, calls the service, encodes what comes back. No rule about jobs."""

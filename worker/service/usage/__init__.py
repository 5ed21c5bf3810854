"""One record of each request, for metrics, traces and the usage log."""

"""One file for each kind of place that a job can be sent to."""

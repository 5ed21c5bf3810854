"""From a request to a job: every rule that needs no weights."""

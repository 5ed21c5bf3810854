"""The rules of a job: what is accepted, what runs when, what is remembered. No torch, no web framework."""

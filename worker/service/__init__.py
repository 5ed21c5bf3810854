"""The rules of a job: acceptance, order of runs, records. No torch, no web framework."""

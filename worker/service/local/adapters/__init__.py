"""Files of a job's adapters: checked against the model from their headers, then fetched. One module a kind."""

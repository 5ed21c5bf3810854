"""What a job puts beside its model: found, checked against the model from its header, then fetched. One file a kind."""

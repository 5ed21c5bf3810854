"""Jobs by id, and their answers for as long as they are kept."""

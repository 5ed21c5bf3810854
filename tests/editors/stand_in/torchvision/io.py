"""Reading files, which no image processor does."""

"""The settings by group: each file holds its variables, what follows from them, and its warnings."""

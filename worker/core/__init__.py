"""The types, errors and ports that all other packages share. Standard library and pydantic only."""

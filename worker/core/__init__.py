"""The words of the house: types, errors and ports that walk between rooms. Standard library and pydantic only."""

"""The JSON of requests, answers and errors (docs/api.md), both ways: aliases in, canonical names on."""

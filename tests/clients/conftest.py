"""Tests with other people's clients: only where those are installed, which `make test-clients` sees to."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("litellm") else ["test_*.py"]

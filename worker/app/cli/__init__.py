"""The worker in a terminal. Only commands.py and terminal.py are imported for `--help`; a command imports its own."""

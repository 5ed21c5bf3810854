"""ai-toolkit, a trainer of other people's (MIT), as a process of its own: what it is asked for, and what it prints."""

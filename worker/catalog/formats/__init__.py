"""What a weight file says before anybody knows what it is: its header, and what it is when it has none."""

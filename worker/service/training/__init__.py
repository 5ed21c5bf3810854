"""Trainings as jobs: what is sent to learn from, and a worker's rules about trainings."""

"""Admission, quotas and keys: the limits on work."""

"""Places, quotas and keys: who may have work done now."""

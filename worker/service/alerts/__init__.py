"""Alerts: the operator's rules over what this worker measures of itself, and whom it tells."""

"""What a file or a component is: one table for each kind, read by the detector in one order."""

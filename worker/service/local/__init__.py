"""From a job to its result on this machine."""

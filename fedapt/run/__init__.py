"""Whole jobs, from folders to files: what the commands call."""

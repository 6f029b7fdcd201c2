"""Errors, configuration, seeds, records and files, which all other packages use. No torch."""

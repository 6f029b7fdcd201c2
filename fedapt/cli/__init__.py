"""The command line: one file per command; a body parses, calls one function, and shows."""

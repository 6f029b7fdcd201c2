"""Complete jobs, from folders to files, which the commands call."""

"""The demo: four parties, one prompt, one file, one page."""

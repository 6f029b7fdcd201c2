"""A static page that runs a fused model in the visitor's browser."""

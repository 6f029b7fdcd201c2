"""Folders of images -> splits -> image features."""

"""Backends of the fused graph; each is one file that implements `base.Backend`."""

"""What runs the fused graph; each backend is one file that meets `base.Backend`."""

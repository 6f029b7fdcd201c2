"""Federated adaptive prompt tuning of CLIP, from training to a deployed classifier."""

__version__ = "0.1.0"

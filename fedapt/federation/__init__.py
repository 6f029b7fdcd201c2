"""Engines that run the clients of a round."""

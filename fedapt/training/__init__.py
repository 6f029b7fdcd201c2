"""Federated training: what a client does, how the server averages, and the rounds around them."""

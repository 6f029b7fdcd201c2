"""Federated training: a client's training, the server's aggregation, and the rounds."""

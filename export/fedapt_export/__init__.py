"""Checkpoint -> one ONNX file: image tower, adaptive network and text banks, with its manifest."""

"""ONNX graphs of image towers: traced from torch, simplified exactly, run by ONNX Runtime."""

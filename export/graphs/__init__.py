"""Stages as ONNX graphs without data, and their writing: what every backend that starts from one shares."""

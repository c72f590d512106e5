"""A package as a model of NVIDIA Triton's Python backend: tensors to questions, tokens to tensors, counts to metrics."""

PACKAGE = "package"
"""The package's folder in that of a model's version, beside ``model.py``."""

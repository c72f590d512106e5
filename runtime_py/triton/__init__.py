"""A package as a model of NVIDIA Triton's Python backend: tensors to questions, tokens to tensors, counts to metrics."""

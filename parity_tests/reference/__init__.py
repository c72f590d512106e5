"""The PyTorch model as one more backend, whole or streamed."""

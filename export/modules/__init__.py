"""Specs as PyTorch modules: the reference, and what is traced."""

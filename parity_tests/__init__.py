"""Packages against the PyTorch reference: ``python -m parity_tests``."""

"""The stages' blocks written in Relax, each held against its PyTorch module by a test."""

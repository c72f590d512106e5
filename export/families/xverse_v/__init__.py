"""XVERSE-V-13B."""

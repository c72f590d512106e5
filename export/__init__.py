"""From a checkpoint to a verified package: ``python -m export``."""

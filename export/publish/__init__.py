"""Packages on their way to the model hub: the model card that goes with one, and the upload."""

"""Packages on the model hub: which one a name means, and how it comes into the hub's cache on this machine."""

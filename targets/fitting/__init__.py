"""Whether a package fits a device, and the nearest setting that does."""

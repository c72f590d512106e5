"""Better int4 codes for a package, chosen from samples: ``python -m calibrate``."""

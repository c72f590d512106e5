"""What a phone, GPU or server is: limits, precisions, devices: ``python -m targets``."""

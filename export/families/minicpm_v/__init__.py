"""MiniCPM-V 1.0 and 2.0."""

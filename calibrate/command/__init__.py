"""The command lines of calibration: calibrate, compare, search."""

"""How good a calibration is: scores on held-out samples, methods compared, outlier channels."""

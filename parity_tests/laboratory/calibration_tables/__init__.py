"""Many runs of ``python -m calibrate compare`` as tables."""

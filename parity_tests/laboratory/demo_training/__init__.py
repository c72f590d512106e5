"""How the demo checkpoints are trained from drawn pictures."""

"""The demo checkpoints that are delivered, and the questions they can answer."""

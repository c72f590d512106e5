"""The vision tower as machine code, compiled from its description for one kind of processor."""

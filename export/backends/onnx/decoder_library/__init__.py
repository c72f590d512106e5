"""The decoder as machine code, compiled from its own graph for one kind of processor."""

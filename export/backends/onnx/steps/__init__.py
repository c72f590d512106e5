"""The decoder's step as machine code: one token of each sequence, compiled from the decoder's own graph."""

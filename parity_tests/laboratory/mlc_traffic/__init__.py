"""What the kernels of a phone's library move and compute, counted from their scheduled loops."""

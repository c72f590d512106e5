"""Output error and time per layer beside other libraries' quantisers: the same weights, samples and grid in one run."""
